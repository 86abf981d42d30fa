"""On-policy training on conversations: every answer is learned from, and no word of the environment's."""

from dataclasses import replace

import pytest
import torch

from poise.evaluate.divergence import sequence_kl
from poise.models.shared_rows import SharedRows
from poise.rollout.conversation import ConversationEngine, ScriptedEnvironment
from poise.rollout.native import NativeEngine
from poise.rollout.scripted import ScriptedEngine
from poise.train.algorithms import GRPO, PPO, RLOO
from poise.train.on_policy import OnPolicyTrainer
from poise.train.rollout_batch import encode_rollouts
from poise.types import Completion, Prompt, Rollout, Sampling, Scores


class Brief(NativeEngine):
    """An engine whose answers end by themselves, at every third token or so."""

    def _ends(self, row, sampling):
        return row.tokens[-1] % 3 == 0


@pytest.fixture
def talk(make_policy):
    policy = make_policy()
    return ConversationEngine(Brief(policy), ScriptedEnvironment(["Sure?", "Why?"], role="tool"), max_turns=3)


def rollouts_of(engine, prompts, **sampling):
    sampling = Sampling(max_tokens=8, **sampling)
    owners = [prompt for prompt in prompts for _ in range(sampling.samples)]
    made = engine.generate(prompts, sampling)
    return [Rollout(prompt=p, completion=c, scores=Scores(values={})) for p, c in zip(owners, made, strict=True)]


def test_the_mask_is_true_on_what_was_drawn_and_sampler_and_trainer_agree_on_every_answer(talk, prompts):
    rollouts = rollouts_of(talk, prompts, samples=3)
    assert sum(len(rollout.completion.turns) > 2 for rollout in rollouts) > 3
    rows = encode_rollouts(rollouts, talk.renderer, torch.device("cpu"))
    for rollout, mask, ids, start in zip(
        rollouts, rows.response_mask, rows.token_ids, rows.prompt_lengths.tolist(), strict=True
    ):
        assert tuple(ids[start : start + len(mask)][mask].tolist()) == rollout.completion.token_ids
    assert not rows.response_mask[rows.sampled_logprobs == 0].any()
    found, _ = talk.policy.logprobs(SharedRows.of(rows.token_ids, rows.prompt_lengths, rows.response_mask))
    torch.testing.assert_close(found, rows.sampled_logprobs, atol=2e-4, rtol=1e-4)
    assert sequence_kl(talk.policy, rollouts, 1.0).n == len(rollouts)


def test_a_conversation_without_token_ids_is_encoded_as_its_template_writes_it(talk, prompts):
    script = ScriptedEngine({"Sure?": "Yes."}, default="Four.")
    engine = ConversationEngine(script, ScriptedEnvironment(["Sure?", "Why?"]))
    rollouts = rollouts_of(engine, [Prompt.of("2 + 2?")])
    rows = encode_rollouts(rollouts, talk.renderer, torch.device("cpu"))
    messages = [*rollouts[0].prompt.messages, *(turn.message for turn in rollouts[0].completion.turns)]
    tokenizer = talk.renderer.tokenizer
    assert tokenizer.decode(rows.token_ids[0]) == tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    said = rows.token_ids[0][rows.prompt_lengths[0] :][rows.response_mask[0]]
    assert tokenizer.decode(said) == "Four.<|im_end|>Yes.<|im_end|>Four.<|im_end|>"
    assert rows.sampled_logprobs is None


@pytest.mark.parametrize("algorithm", [RLOO, PPO, GRPO], ids=["rloo", "ppo", "grpo"])
def test_a_step_moves_the_weights_by_the_gradient_of_transformers_under_the_same_mask(
    make_trainer, talk, prompts, algorithm
):
    algorithm = replace(algorithm, samples_per_prompt=2, kl_coef=0.0, epochs=1)
    trainer: OnPolicyTrainer = make_trainer(policy=talk.policy, engine=talk, algorithm=algorithm, sgd=True)
    batch = trainer.collect(prompts)
    assert (batch.response_mask.sum(-1) < batch.attention_mask.sum(-1) - batch.prompt_lengths).any()
    advantages, targets = trainer.estimate(batch)
    mixed = trainer.objective.mix(advantages, batch.scores)
    mask = batch.response_mask
    scaled, weights = algorithm.scale(mixed, mask), algorithm.weights(mask.float())
    logprobs = torch.zeros(mask.shape)
    with trainer.policy.policy_mode():
        for row, start in enumerate(batch.prompt_lengths.tolist()):
            ids = batch.token_ids[row : row + 1]
            every = trainer.policy.model(ids, use_cache=False).logits[0].float().log_softmax(-1)
            for step in mask[row].nonzero()[:, 0].tolist():
                logprobs[row, step] = every[start + step - 1, ids[0, start + step]]
        loss = (algorithm.policy_loss(logprobs, batch.old_logprobs, scaled, mask) * weights).sum()
        expected = torch.autograd.grad(loss, list(trainer.parameters.values()))
    before = [p.detach().clone() for p in trainer.parameters.values()]
    metrics = trainer.update(batch, mixed, targets)
    for old, new, gradient in zip(before, trainer.parameters.values(), expected, strict=True):
        torch.testing.assert_close((old - new.detach()) / 0.1, gradient, atol=2e-4, rtol=1e-3)
    assert metrics["response_tokens"] == pytest.approx(float(mask.sum() / len(mask)))
    assert metrics["logprob_gap"] < 1e-4


def test_conversations_and_their_environment_train_through_whole_steps(make_trainer, talk):
    trainer = make_trainer(policy=talk.policy, engine=talk, prompts_per_step=4)
    for step in range(2):
        metrics = trainer.step_at(step)
        assert metrics["logprob_gap"] < 1e-4 and metrics["gradient_norm"] > 0
    assert any(rollout.completion.turns for rollout in trainer.rollouts)


def test_one_turn_with_its_tokens_is_encoded_as_it_was(make_policy, prompts):
    renderer = make_policy().backbone.renderer()
    ids = tuple(renderer.response_ids("Hi!")[0])
    said = Completion(prompt_id=prompts[0].id, text="Hi!", token_ids=ids, token_logprobs=(-1.0,) * len(ids))
    short = replace(said, token_ids=ids[:2], token_logprobs=(-2.0,) * 2)
    rows = encode_rollouts(
        [Rollout(prompt=prompts[0], completion=c, scores=Scores(values={})) for c in (said, short)],
        renderer,
        torch.device("cpu"),
    )
    assert rows.response_mask.tolist() == [[True] * 4, [True] * 2 + [False] * 2]
    assert rows.sampled_logprobs.tolist() == [[-1.0] * 4, [-2.0, -2.0, 0.0, 0.0]]
