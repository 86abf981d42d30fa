"""One step of on-policy training: what must not change it, what must stop it, and what it remembers."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from poise.errors import ConfigError, EngineError, FeedbackError, NonFiniteError
from poise.models.heads import ScoreModel
from poise.models.shared_rows import SharedRows
from poise.models.trainable import TrainablePolicy
from poise.rollout.native import NativeEngine
from poise.rollout.scripted import ScriptedEngine
from poise.train.algorithms import PPO, RLOO, KLPenalty
from poise.train.loop import linear
from poise.train.objectives import Lagrangian, Limit, ProjectedAscent, Unconstrained
from poise.train.on_policy import OnPolicyTrainer, OptimizerSettings
from poise.train.supervised import DemonstrationBatches
from poise.train.tabular import TablePolicy
from poise.types import Completion, Demonstration, Sampling, Scores

THREE_SAMPLES = replace(PPO, samples_per_prompt=3)
TWO_EPOCHS = replace(PPO, epochs=2)


class ScriptedScores:
    """The given scores in turn, one per completion, again and again."""

    def __init__(self, **channels):
        self.channels, self.calls = channels, 0

    def score(self, prompts, completions):
        self.calls += 1
        rows = range(len(completions))
        return [
            Scores(values={name: values[row % len(values)] for name, values in self.channels.items()}) for row in rows
        ]


class CountingController(ProjectedAscent):
    """Projected ascent that remembers the means it was given."""

    __slots__ = ("means",)

    def update(self, mean, limit):
        self.means = [*getattr(self, "means", []), mean]
        ProjectedAscent.update(self, mean, limit)


def assert_same(found, expected, share=1e-4):
    """Equal up to rounding: a share of the largest entry, as float32 sums in another order; 0 is bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= share * tensor.abs().max(), name


def moved(trainer, start, weights_of):
    return {name: after - start[name] for name, after in weights_of(trainer).items()}


@pytest.mark.parametrize("model", ["random:llama", "random:gpt2"])
@pytest.mark.parametrize("tokens", [1, 150])
@pytest.mark.parametrize("algorithm", [TWO_EPOCHS, RLOO])
def test_the_size_of_micro_batches_changes_neither_loss_nor_gradient(
    make_trainer, weights_of, model, tokens, algorithm
):
    whole, cut = (
        make_trainer(model=model, sgd=True, algorithm=algorithm, optimisation={"tokens_per_micro_batch": size})
        for size in (100_000, tokens)
    )
    start = weights_of(whole)
    metrics = [trainer.step_at(0) for trainer in (whole, cut)]
    assert max(change.abs().max() for change in moved(whole, start, weights_of).values()) > 1e-3
    assert_same(moved(cut, start, weights_of), moved(whole, start, weights_of))
    for name in ("gradient_norm", "value_loss", "logprob_gap", "kl", "entropy", "multiplier", "reward"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("model", ["random:llama", "random:gpt2"])
def test_more_padding_changes_nothing(make_trainer, weights_of, prompts, model):
    changes = []
    for padding in (0, 5):
        trainer = make_trainer(model=model, sgd=True)
        start = weights_of(trainer)
        batch = trainer.collect(prompts)
        advantages, targets = trainer.estimate(wider(batch, padding))
        trainer.update(wider(batch, padding), trainer.objective.mix(advantages, batch.groups), targets)
        changes.append(moved(trainer, start, weights_of))
    assert_same(changes[1], changes[0])


def wider(batch, padding):
    """The batch with columns of nonsense to the right of the prompt and response, where the masks are false."""

    def pad(tensor, value):
        return F.pad(tensor, (0, padding), value=value)

    features = F.pad(batch.critic_features, (0, 0, 0, padding), value=3.0)
    return replace(
        batch,
        token_ids=pad(batch.token_ids, 17),
        attention_mask=pad(batch.attention_mask, False),
        response_mask=pad(batch.response_mask, False),
        old_logprobs=pad(batch.old_logprobs, -9.0),
        ref_logprobs=pad(batch.ref_logprobs, 9.0),
        values={name: pad(values, 99.0) for name, values in batch.values.items()},
        shared_rows=None,
        critic_features=features,
    )


def test_a_batch_holds_prompt_then_response_and_marks_only_the_response(make_trainer, prompts):
    trainer = make_trainer()
    batch = trainer.collect(prompts)
    for row, rollout in enumerate(trainer.rollouts):
        head = trainer.renderer.prompt_ids(rollout.prompt.messages)[0]
        tail = list(rollout.completion.token_ids)
        assert batch.token_ids[row][batch.attention_mask[row]].tolist() == head + tail
        assert int(batch.response_mask[row].sum()) == len(tail)
        assert batch.prompt_lengths[row] == len(head)


def test_samples_of_one_prompt_share_their_group(make_trainer, prompts):
    trainer = make_trainer(algorithm=THREE_SAMPLES)
    batch = trainer.collect(prompts[:2])
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert len({rollout.completion.text for rollout in trainer.rollouts[:3]}) == 3
    assert trainer.step(prompts[:2])["reward"] == pytest.approx(float(batch.scores["reward"].mean()))


@pytest.mark.parametrize("model", ["random:llama", "random:gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_native_engine_and_the_trainer_agree_on_log_probabilities(make_trainer, model, temperature):
    trainer = make_trainer(model=model, sampling=Sampling(max_tokens=8, temperature=temperature))
    assert trainer.step_at(0)["logprob_gap"] < 1e-5


def test_log_probabilities_of_a_nucleus_are_replaced_by_those_of_the_policy(make_trainer):
    trainer = make_trainer(sampling=Sampling(max_tokens=8, top_p=0.5))
    assert trainer.step_at(0)["logprob_gap"] < 1e-5


def test_a_scripted_engine_is_trained_on_with_recomputed_log_probabilities(make_trainer, prompts):
    trainer = make_trainer(
        engine=ScriptedEngine(lambda prompt, sample: prompt.text[::-1]), sampling=Sampling(max_tokens=99)
    )
    batch = trainer.collect(prompts)
    encoded = [trainer.renderer.encode(prompt, prompt.text[::-1]) for prompt in prompts]
    assert batch.attention_mask.sum(-1).tolist() == [len(each.ids) for each in encoded]
    policy = trainer.policy
    expected, _ = policy.logprobs(SharedRows.of(batch.token_ids, batch.prompt_lengths, batch.response_mask))
    torch.testing.assert_close(batch.old_logprobs, expected.detach())
    metrics = trainer.step_at(0)
    assert metrics["logprob_gap"] < 1e-6
    assert metrics["finished"] == 1.0


def test_an_empty_response_is_the_end_of_turn_alone(make_trainer, prompts):
    trainer = make_trainer(engine=ScriptedEngine(lambda prompt, sample: "" if prompt.text == "Why?" else "So."))
    batch = trainer.collect(prompts)
    row = [prompt.text for prompt in prompts].index("Why?")
    assert batch.response_mask.sum(-1).tolist() == [1 if i == row else 4 for i in range(4)]
    trainer.step_at(0)


class Faulty:
    """A scripted engine some of whose completions failed or were cut."""

    def __init__(self, finish):
        self.finish = finish

    def generate(self, prompts, sampling):
        return [
            Completion(prompt_id=prompt.id, text=f"answer {i}", finish=finish, error="no memory" * (finish == "error"))
            for i, (prompt, finish) in enumerate(zip(prompts, self.finish, strict=True))
        ]


def test_failed_completions_are_left_out_and_counted(make_trainer, prompts):
    trainer = make_trainer(engine=Faulty(["stop", "error", "stop", "error"]))
    metrics = trainer.step(prompts)
    assert [rollout.prompt for rollout in trainer.rollouts] == [prompts[0], prompts[2]]
    assert trainer.collect(prompts).group.tolist() == [0, 1]
    assert metrics["dropped"] == 0.5


def test_a_response_that_was_cut_is_not_taught_to_end(make_trainer, prompts):
    batch = make_trainer(engine=Faulty(["stop", "length", "stop", "length"])).collect(prompts)
    assert batch.response_mask.sum(-1).tolist() == [9, 8, 9, 8]  # "answer 0" is 8 byte tokens


def test_an_engine_that_fails_everywhere_stops_the_step(make_trainer, prompts):
    with pytest.raises(EngineError, match="all 4 completions failed; the first: no memory"):
        make_trainer(engine=Faulty(["error"] * 4)).step(prompts)


class Unsure:
    """A scorer without a value for some completions."""

    def __init__(self, known):
        self.known = known

    def score(self, prompts, completions):
        return [
            Scores(values={"safety": 1.0}) if known else Scores(values={}, unscorable="the judge gave no verdict")
            for known in self.known
        ]


def test_completions_without_a_value_in_every_channel_are_left_out_and_counted(make_trainer, prompts):
    scorers = [ScriptedScores(reward=[1.0, 2.0, 3.0, 4.0], cost=[0.0]), Unsure([True, False, True, True])]
    trainer = make_trainer(scorers=scorers)
    metrics = trainer.step(prompts)
    assert (metrics["reward"], metrics["safety"], metrics["dropped"]) == (pytest.approx(8 / 3), 1.0, 0.25)
    trainer.scorers = (scorers[0], Unsure([False] * 4))
    assert trainer.step(prompts)["dropped"] == 0.0  # a channel that nobody has is no channel


def test_a_step_without_any_usable_score_stops(make_trainer, prompts):
    with pytest.raises(FeedbackError, match=r"none of 4 completions .* the judge gave no verdict"):
        make_trainer(scorers=[Unsure([False] * 4)]).step(prompts)


class HalfMarked:
    """A scorer that marks empty answers unscorable and gives them values all the same."""

    def score(self, prompts, completions):
        return [
            Scores(values={"reward": 1.0, "cost": 9.0}, unscorable="" if completion.text else "the response is empty")
            for completion in completions
        ]


def test_an_answer_that_is_marked_unscorable_is_never_learned_from_whatever_values_it_has(make_trainer, prompts):
    answers = ScriptedEngine(lambda prompt, sample: "" if prompt.text == "Why?" else "So.")
    trainer = make_trainer(engine=answers, scorers=[HalfMarked()])
    metrics = trainer.step(prompts)
    assert metrics["dropped"] == 0.25
    assert [rollout.completion.text for rollout in trainer.rollouts] == ["So."] * 3


def test_an_empty_answer_has_no_score_of_a_score_model_and_is_counted_as_dropped(make_trainer, make_policy, prompts):
    policy = make_policy()
    answers = ScriptedEngine(lambda prompt, sample: " " if prompt.text == "Why?" else "So.")
    trainer = make_trainer(policy=policy, engine=answers, scorers=[ScoreModel(policy.backbone)])
    assert trainer.step(prompts)["dropped"] == 0.25


@pytest.mark.parametrize("values", [[1, 2, 3, 4], [True, False, True, True], list(torch.arange(4.0))], ids=str)
def test_rewards_may_be_integers_booleans_and_scalars(make_trainer, prompts, values):
    scorer = ScriptedScores(reward=values, cost=[0])
    metrics = make_trainer(scorers=[scorer]).step(prompts)
    assert metrics["reward"] == pytest.approx(sum(map(float, values)) / 4)
    assert type(metrics["cost"]) is float


def test_rewards_that_are_no_numbers_stop_the_first_step_with_the_name_of_the_scorer(make_trainer, prompts):
    with pytest.raises(FeedbackError, match=r"'ScriptedScores': 2 of 4 values on channel 'reward' are not numbers"):
        make_trainer(scorers=[ScriptedScores(reward=[1.0, None], cost=[0.0])]).step(prompts)


def test_two_scorers_of_one_channel_are_refused_in_training_as_in_evaluation(make_trainer, prompts):
    scorers = [ScriptedScores(reward=[1.0], cost=[0.0]), ScriptedScores(reward=[2.0])]
    with pytest.raises(ConfigError, match=r"fills \['reward'\], which another scorer also fills"):
        make_trainer(scorers=scorers).step(prompts)


@pytest.mark.parametrize("rewards", [[1.0], [60.0, 1.0], [-60.0, 60.0]])
def test_the_share_of_responses_whose_reward_the_bound_holds_is_reported(make_trainer, prompts, rewards):
    trainer = make_trainer(scorers=[ScriptedScores(reward=rewards, cost=[0.0])])
    expected = sum(abs(reward) > 50 for reward in rewards) / len(rewards)
    assert trainer.step(prompts)["rewards_clipped"] == expected
    trainer.algorithm = replace(trainer.algorithm, kl=KLPenalty(score_clip=None))
    assert trainer.step(prompts)["rewards_clipped"] == 0


def test_a_cost_that_the_bound_holds_is_reported_too(make_trainer, prompts):
    trainer = make_trainer(scorers=[ScriptedScores(reward=[1.0], cost=[0.0, 0.0, 0.0, 99.0])])
    assert trainer.step(prompts)["rewards_clipped"] == 0.25


def test_a_prompt_that_is_listed_twice_has_other_samples_and_one_group(make_trainer, prompts):
    trainer = make_trainer(algorithm=replace(PPO, samples_per_prompt=2))
    batch = trainer.collect([prompts[0], prompts[1], prompts[0]])
    texts = [rollout.completion.token_ids for rollout in trainer.rollouts]
    assert len(set(texts)) == 6
    assert batch.group.tolist() == [0, 0, 1, 1, 0, 0]
    trainer.collect(prompts[:2])
    assert [rollout.completion.token_ids for rollout in trainer.rollouts] == texts[:4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_stops_names_itself_and_leaves_the_batch(make_trainer, weights_of, bad):
    trainer = make_trainer(scorers=[ScriptedScores(reward=[1.0], cost=[0.0, bad])])
    start = weights_of(trainer)
    with pytest.raises(NonFiniteError, match=r"cost has 2 of 4 values.*non-finite-step-000007") as caught:
        trainer.step_at(7)
    assert isinstance(caught.value, FeedbackError)
    assert "ScriptedScores" in str(caught.value)
    dumped = load_file(trainer.dump_folder / "non-finite-step-000007.safetensors")
    assert str(trainer.dump_folder) in str(caught.value)
    assert dumped["cost"].isfinite().sum() == 2
    assert len(dumped["token_ids"]) == 4
    assert_same(weights_of(trainer), start, share=0)


def test_a_gradient_that_is_not_finite_stops_names_its_weight_and_leaves_the_batch(make_trainer, weights_of):
    def steep(logprobs, old_logprobs, advantages, mask):
        return (logprobs - logprobs.detach()).abs().sqrt()  # 0, with a slope of 0 times infinity

    trainer = make_trainer(algorithm=replace(PPO, policy_loss=steep))
    start = weights_of(trainer)
    with pytest.raises(NonFiniteError, match=r"gradient of base_model\S+lora_\S+ has .* the batch is in"):
        trainer.step_at(0)
    dumped = load_file(trainer.dump_folder / "non-finite-step-000000.safetensors")
    assert {"token_ids", "reward", "cost", "advantages"} < set(dumped)
    assert_same(weights_of(trainer), start, share=0)


def test_the_pretraining_mix_adds_exactly_its_own_gradient(make_trainer, make_policy, weights_of, prompts):
    demonstrations = [Demonstration(prompt=prompt, response=f"Answer {i}.") for i, prompt in enumerate(prompts)]
    changes = []
    for coefficient in (0.0, 1.5):
        policy = make_policy()
        batches = DemonstrationBatches(demonstrations, policy, per_step=3)
        trainer = make_trainer(policy=policy, sgd=True, demonstrations=batches, optimisation={"ptx_coef": coefficient})
        start = weights_of(trainer)
        trainer.step_at(0)
        changes.append(moved(trainer, start, weights_of))
    policy = make_policy()
    DemonstrationBatches(demonstrations, policy, per_step=3).backward(policy, 0)
    for name, parameter in policy.parameters().items():
        torch.testing.assert_close(
            changes[0][name] - changes[1][name], 0.1 * 1.5 * parameter.grad, rtol=1e-3, atol=1e-6
        )


def test_the_weight_of_the_pretraining_mix_follows_its_schedule(make_trainer, make_policy, prompts, monkeypatch):
    weights = []
    monkeypatch.setattr(DemonstrationBatches, "backward", lambda self, policy, index, *, weight: weights.append(weight))
    policy = make_policy()
    batches = DemonstrationBatches([Demonstration(prompt=prompts[0], response="Yes.")], policy)
    falling = {"ptx_coef": 0.8, "ptx_schedule": partial(linear, to=0.25, by=0.5), "steps": 5}
    trainer = make_trainer(policy=policy, demonstrations=batches, optimisation=falling)
    for index in range(5):
        trainer.step_at(index)
    assert weights == pytest.approx([0.8, 0.5, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("algorithm", [PPO, TWO_EPOCHS, THREE_SAMPLES])
@pytest.mark.parametrize("tokens", [1, 100_000])
def test_the_multiplier_moves_exactly_once_per_rollout_batch(make_trainer, algorithm, tokens):
    controller = CountingController(multiplier=1.0)
    trainer = make_trainer(
        algorithm=algorithm,
        objective=Lagrangian(Limit(), controller),
        optimisation={"tokens_per_micro_batch": tokens},
    )
    metrics = [trainer.step_at(index) for index in range(2)]
    assert controller.means == pytest.approx([row["cost"] for row in metrics])
    assert metrics[0]["multiplier"] == pytest.approx(1.0 + 0.2 * metrics[0]["cost"])


def test_the_best_feasible_policy_is_remembered_across_a_restart_and_restored(make_trainer):
    def scored(trainer, index):
        trainer.scorers = (ScriptedScores(reward=[(1.0, 2.0, 9.0)[index // 4]], cost=[(-1.0, -1.0, 5.0)[index // 4]]),)
        trainer.step_at(index)

    trainer, snapshots = make_trainer(), []
    for index in range(12):  # what steps 1-8 sample is feasible, of which 5-8 are rewarded more; 9-12 are not
        scored(trainer, index)
        snapshots.append({name: p.detach().clone() for name, p in trainer.parameters.items()})
    resumed = make_trainer()
    resumed.load_state_dict(trainer.state_dict())
    for each in (trainer, resumed):
        assert each.load_best() == 7  # step 8 sampled from the policy that step 7 had left
        assert_same(dict(each.parameters), snapshots[6], share=0)


def test_there_is_no_best_policy_where_no_step_was_feasible_or_nothing_is_limited(make_trainer):
    for objective in (Lagrangian(Limit(at_most=-99.0)), Unconstrained()):
        trainer = make_trainer(objective=objective)
        for index in range(5):
            trainer.step_at(index)
        assert trainer.load_best() is None


def test_a_step_follows_from_its_index_and_seed_alone(make_trainer, weights_of):
    first, second, other = make_trainer(), make_trainer(), make_trainer(seed=1)
    torch.manual_seed(123)
    first.step_at(3)
    torch.manual_seed(456)
    second.step_at(3)
    other.step_at(3)
    assert_same(weights_of(second), weights_of(first), share=0)
    assert [r.completion.text for r in first.rollouts] == [r.completion.text for r in second.rollouts]
    assert [r.completion.text for r in first.rollouts] != [r.completion.text for r in other.rollouts]


def test_a_fully_fine_tuned_policy_moves_and_its_reference_stays(make_trainer, make_policy):
    policy = make_policy(lora=None)
    trainer = make_trainer(policy=policy, engine=NativeEngine(policy), optimisation={"lr": 1e-2})
    first, later = trainer.step_at(0), None
    for index in range(1, 4):
        later = trainer.step_at(index)
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert later["sequence_kl"] > 1e-3
    assert later["logprob_gap"] < 1e-5


def test_training_needs_prompts(make_trainer):
    with pytest.raises(ConfigError, match="no prompts"):
        make_trainer(prompts=())


def test_an_optimisation_is_a_record_with_the_recipe_defaults():
    assert (OptimizerSettings().lr, OptimizerSettings().critic_lr, OptimizerSettings().max_norm) == (3e-4, 3e-3, 1.0)


class Borrowed:
    """A policy of one's own: it has what `TrainablePolicy` asks for and nothing besides."""

    def __init__(self, inner):
        self.inner, self.version = inner, 0
        self.device, self.width, self.context = inner.device, inner.width, inner.context
        for name in ("renderer", "parameters", "frozen_states", "critic_states", "logprobs"):
            setattr(self, name, getattr(inner, name))


def test_language_models_tables_and_a_policy_of_ones_own_are_trainable_policies(make_trainer, prompts):
    trainer = make_trainer()
    table = TablePolicy(torch.zeros(2, 3))
    own = Borrowed(trainer.policy)
    assert all(isinstance(policy, TrainablePolicy) for policy in (trainer.policy, table, own))
    assert not any(hasattr(policy, name) for policy in (table, own) for name in ("backbone", "decoder"))
    edges = {"engine": trainer.engine, "scorers": trainer.scorers, "algorithm": PPO, "objective": Lagrangian(Limit())}
    metrics = OnPolicyTrainer(policy=own, prompts=prompts, sampling=trainer.sampling, **edges).step_at(0)
    assert math.isfinite(metrics["kl"])
    assert own.version == 1
