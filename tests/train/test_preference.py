"""The preference trainer: the losses are those of whole transformers models, however a step is cut."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from poise.checksums import SEAL
from poise.errors import ConfigError, DataError, FeedbackError, NonFiniteError
from poise.files import read_json
from poise.functional.implied_rewards import jensen_shannon_reward
from poise.functional.preference_targets import signed_log1p
from poise.models.adapters import use_adapter
from poise.train import responses
from poise.train.loop import constant
from poise.train.objectives import Limit, ProjectedAscent
from poise.train.preference import PreferenceTrainer, evaluate_preferences
from poise.train.preference_feedback import PairFeedback, ResponseFeedback
from poise.train.preference_methods import (
    ConstrainedLabels,
    PreferenceMethod,
    conservative_dpo,
    dpo,
    graded_by,
    ipo,
    kto,
    mmpo,
    offset_dpo,
    orpo,
    robust_dpo,
    safe_dpo,
    simpo,
    with_supervised,
)
from poise.types import Comparison, PairBatch, SafetyLabel, Scores

TEXTS = ("Good day.", "No", "A rather long answer, it is", "")
PAIR_METHODS = {
    "dpo": dpo(),
    "js": dpo(implied_reward=jensen_shannon_reward),
    "cdpo": conservative_dpo(),
    "rdpo": robust_dpo(),
    "ipo": ipo(),
    "simpo": simpo(),
    "orpo": orpo(),
    "mmpo": mmpo(),
    "odpo": offset_dpo(),
    "safe-dpo": safe_dpo(),
    "dpo+sft": with_supervised(dpo(), coefficient=0.5),
}


class LengthScorer:
    """Reward and cost from the length of a text."""

    def score(self, prompts, completions):
        return [Scores(values={"reward": len(c.text) / 10, "cost": len(c.text) / 10 - 1}) for c in completions]


@pytest.fixture
def comparisons(prompts):
    found = [
        Comparison(prompt=p, responses=(TEXTS[i % 4], TEXTS[(i + 1) % 4]), winner=i % 2, margin=1.0 + i)
        for i, p in enumerate(prompts)
    ]
    return [*found, Comparison(prompt=prompts[0], responses=TEXTS[:3], winner=2, probability=0.3)]


@pytest.fixture
def make(make_policy, comparisons):
    """A trainer for a method on the tiny world, with the gradient of its first step left in place."""

    def build(method=None, *, policy=None, labels=None, safety=(), descend=False, **changes):
        method = method or dpo()
        policy = policy or make_policy()
        feedback = method.feedback(policy, comparisons, safety, scorer=LengthScorer())
        trainer = PreferenceTrainer(
            policy=policy, method=method, feedback=feedback, labels=labels, max_norm=None, **({"lr": 1e-2} | changes)
        )
        if not descend:
            trainer.optimizer.step = lambda: None
            trainer.optimizer.zero_grad = lambda **_: None
        return trainer

    return build


def gradients(trainer):
    return {name: p.grad.clone() for name, p in trainer.policy.parameters().items()}


def logprob(policy, prompt, text, *, reference=False):
    """The log-probability of a response by the whole transformers model, one row without padding."""
    row = policy.backbone.renderer().encode(prompt, text)
    ids = torch.tensor([row.ids])
    with torch.no_grad(), use_adapter(policy.model, None if reference else policy.adapter):
        logprobs = policy.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
    return float(logprobs.gather(-1, ids[0, 1:, None])[row.prompt_length - 1 :].sum())


def test_the_loss_is_dpo_of_the_log_probabilities_of_transformers(make, comparisons):
    trainer = make(dpo(beta=0.5))
    found = trainer.step_at(0)
    losses, hits = [], []
    for comparison in comparisons:
        texts = comparison.responses
        for other in (i for i in range(len(texts)) if i != comparison.winner):
            policy, ref = (
                [logprob(trainer.policy, comparison.prompt, texts[i], reference=r) for i in (comparison.winner, other)]
                for r in (False, True)
            )
            h = torch.tensor(0.5 * (policy[0] - ref[0] - policy[1] + ref[1]))
            losses.append(-torch.nn.functional.logsigmoid(h))
            hits.append(float(h > 0))
    assert len(losses) == 6
    assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert found["reward_accuracy"] == pytest.approx(sum(hits) / 6)


def test_a_policy_that_equals_its_reference_loses_log_two(make, make_policy):
    policy = make_policy()
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            if "lora_B" in name:
                parameter.zero_()
    metrics = make(policy=policy).step_at(0)
    assert metrics["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert metrics["chosen_drift"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("method", [*PAIR_METHODS.values(), kto()], ids=[*PAIR_METHODS, "kto"])
def test_the_size_of_micro_batches_changes_neither_metrics_nor_gradient(make, make_policy, method):
    metrics, found = [], []
    for tokens in (100_000, 200, 1):
        trainer = make(method, policy=make_policy(dtype=torch.float64), tokens_per_micro_batch=tokens)
        metrics.append(trainer.step_at(0))
        found.append(gradients(trainer))
    for other in (1, 2):
        assert metrics[other] == pytest.approx(metrics[0], rel=1e-4, abs=1e-5)
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[other][name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
@pytest.mark.parametrize("method", [*PAIR_METHODS.values(), kto(beta=0.5)], ids=[*PAIR_METHODS, "kto"])
def test_training_separates_chosen_from_rejected(make, make_policy, comparisons, method, lora):
    policy = make_policy() if lora else make_policy(lora=None)
    feedback = method.feedback(policy, comparisons[:4], max_tokens=64)
    trainer = PreferenceTrainer(
        policy=policy, method=method, feedback=feedback, lr=5e-3 if lora else 1e-3, steps=50, schedule=constant
    )
    first = trainer.step_at(0)
    for index in range(1, 50):
        last = trainer.step_at(index)
    assert last["loss"] < first["loss"]
    assert last["reward_accuracy"] == 1.0
    assert last["chosen_drift"] - last["rejected_drift"] > first["chosen_drift"] - first["rejected_drift"]
    assert policy.version == 50


def test_the_supervised_term_keeps_the_chosen_response_likely(make, make_policy, comparisons):
    drifts = []
    for coefficient in (0.0, 5.0):
        policy = make_policy()
        method = with_supervised(dpo(beta=0.5), coefficient=coefficient)
        feedback = PairFeedback(policy, comparisons[:4])
        trainer = PreferenceTrainer(policy=policy, method=method, feedback=feedback, lr=3e-3, schedule=constant)
        for index in range(30):
            metrics = trainer.step_at(index)
        drifts.append(metrics["chosen_drift"])
    assert drifts[1] > drifts[0]


def test_a_soft_label_below_one_half_swaps_the_pair(make_policy, prompts):
    soft = Comparison(prompt=prompts[0], responses=TEXTS[:2], probability=0.2)
    feedback = PairFeedback(make_policy(), [soft])
    [[pair]] = feedback.groups
    assert feedback.responses.texts[pair.chosen] == TEXTS[1]
    assert pair.probability == pytest.approx(0.8)


def test_a_response_is_run_once_however_many_pairs_it_stands_in(make, monkeypatch):
    trainer = make()
    runs, logprobs = [], trainer.policy.logprobs
    monkeypatch.setattr(trainer.policy, "logprobs", lambda rows: (runs.append(len(rows.owner)), logprobs(rows))[1])
    trainer.step_at(0)
    assert sum(runs) == len(trainer.feedback.rows)


def test_the_reference_is_read_from_its_cache_until_data_or_weights_change(make, make_policy, comparisons, tmp_path):
    cache = tmp_path / "reference.json"
    policy = make_policy()
    first = make(policy=policy, cache=cache)
    content = read_json(cache)
    marked = content | {"logprobs": [value - 1 for value in content["logprobs"]]}
    responses.write_sealed(cache, {name: value for name, value in marked.items() if name != SEAL})
    torch.testing.assert_close(make(policy=policy, cache=cache).reference, first.reference - 1)

    feedback = PairFeedback(policy, comparisons[:2])
    arguments = {"policy": policy, "method": dpo(), "cache": cache}
    assert len(PreferenceTrainer(feedback=feedback, **arguments).reference) == len(feedback.rows)

    responses.write_sealed(cache, {name: value for name, value in marked.items() if name != SEAL})
    policy.merge()
    moved = make(policy=policy, cache=cache).reference
    assert not torch.allclose(moved, first.reference - 1)
    assert not torch.allclose(moved, first.reference)


def test_margins_can_come_from_a_scorer(make):
    plain = make(mmpo(gamma=2.0)).step_at(0)["loss"]
    graded = make(graded_by(mmpo(gamma=2.0), "reward")).step_at(0)["loss"]
    assert graded != pytest.approx(plain)
    with pytest.raises(DataError, match=r"no scores on channel 'kindness' \(they have: cost, reward\)"):
        make(graded_by(mmpo(), "kindness")).step_at(0)


def test_labels_and_comparisons_are_verdicts_of_kto(make_policy, comparisons, prompts):
    labels = [SafetyLabel(prompt=prompts[1], response="Careful", safe=False)]
    feedback = ResponseFeedback(make_policy(), comparisons[:2], labels)
    texts, owners = feedback.responses.texts, feedback.responses.prompts
    verdicts = {(owners[v.response].text, texts[v.response], v.desirable) for group in feedback.groups for v in group}
    assert verdicts == {
        ("Hello", "Good day.", True),
        ("Hello", "No", False),
        (prompts[1].text, TEXTS[2], True),
        (prompts[1].text, "No", False),
        (prompts[1].text, "Careful", False),
    }


def test_a_mismatched_response_answers_another_prompt(make_policy, prompts):
    labels = [SafetyLabel(prompt=p, response=f"answer {i}", safe=True) for i, p in enumerate(prompts)]
    feedback = ResponseFeedback(make_policy(), [], labels)
    texts, owners = feedback.responses.texts, feedback.responses.prompts
    for [verdict] in feedback.groups:
        assert owners[verdict.response] == owners[verdict.mismatched]
        assert texts[verdict.response] != texts[verdict.mismatched]


def test_the_baseline_of_kto_is_that_of_the_whole_step(make):
    trainer = make(kto(), tokens_per_micro_batch=1)
    items = [item for group in trainer.feedback.groups for item in group]
    gains = []
    for verdict in items:
        prompt = trainer.feedback.responses.prompts[verdict.mismatched]
        text = trainer.feedback.responses.texts[verdict.mismatched]
        gains.append(logprob(trainer.policy, prompt, text) - logprob(trainer.policy, prompt, text, reference=True))
    expected = max(0.0, sum(gains) / len(gains))
    assert float(trainer.baseline(items)) == pytest.approx(expected, abs=1e-4)


def test_kto_needs_two_prompts(make_policy, comparisons):
    with pytest.raises(DataError, match="1 prompts"):
        ResponseFeedback(make_policy(), comparisons[:1])


def test_a_method_with_feedback_of_another_form_is_named(make_policy, comparisons):
    policy = make_policy()
    with pytest.raises(ConfigError, match="reads ResponseFeedback, not PairFeedback"):
        PreferenceTrainer(policy=policy, method=kto(), feedback=PairFeedback(policy, comparisons))


def test_pairs_are_needed(make_policy, prompts):
    same = Comparison(prompt=prompts[0], responses=("Yes", "Yes"), winner=0)
    with pytest.raises(DataError, match="no pairs"):
        PairFeedback(make_policy(), [same])


def test_a_loss_that_is_not_finite_stops(make):
    trainer = make()
    with torch.no_grad():
        next(iter(trainer.policy.parameters().values())).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="preference loss"):
        trainer.step_at(0)


def test_evaluation_says_what_a_step_over_all_pairs_says(make):
    trainer = make(dpo(beta=0.5))
    step = trainer.step_at(0)
    found = evaluate_preferences(trainer.policy, trainer.method, trainer.feedback)
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(step[name], rel=1e-4, abs=1e-5), name
    assert found["reward_accuracy"].unit == "share"
    assert found["reward_accuracy"].n == 6


def test_pairs_without_a_winner_have_no_accuracy(make_policy, prompts):
    tie = Comparison(prompt=prompts[0], responses=TEXTS[:2], probability=0.5)
    policy = make_policy()
    found = evaluate_preferences(policy, dpo(), PairFeedback(policy, [tie]))
    assert "reward_accuracy" not in found
    assert found["loss"].n == 1


def test_the_price_of_cost_moves_when_it_is_due_and_turns_the_labels(make):
    asked = []

    def mean_cost(index):
        asked.append(index)
        return 0.5

    labels = ConstrainedLabels(Limit(at_most=0.0), ProjectedAscent(multiplier=0.0, rate=4.0), mean_cost, every=2)
    trainer = make(labels=labels)
    batch = trainer.feedback.batch(trainer.feedback.groups[0], trainer.reference, trainer.reference, torch.zeros(()))
    by_reward = labels.label(batch).probability  # reward and cost are both the length: a price of 1 balances them
    metrics = [trainer.step_at(index) for index in range(4)]
    assert asked == [1, 3]
    assert [row["multiplier"] for row in metrics] == [0.0, 2.0, 2.0, 4.0]
    assert metrics[1]["excess"] == 0.5
    labels.controller.multiplier = 2.0
    torch.testing.assert_close(labels.label(batch).probability, 1 - by_reward)


def test_a_loss_is_any_function_of_the_batch(make):
    method = PreferenceMethod(loss=lambda pairs: dpo(beta=0.3).loss(pairs))
    assert make(method).step_at(0)["loss"] == make(dpo(beta=0.3)).step_at(0)["loss"]


class Unsure(LengthScorer):
    """Marks the empty text unscorable, and gives it values all the same."""

    def score(self, prompts, completions):
        found = super().score(prompts, completions)
        return [replace(s, unscorable="" if c.text else "empty") for s, c in zip(found, completions, strict=True)]


def test_pairs_with_a_response_that_the_scorer_has_no_value_for_are_left_out_and_counted(make_policy, comparisons):
    policy = make_policy()
    whole = PairFeedback(policy, comparisons[:4], scorer=LengthScorer())
    feedback = PairFeedback(policy, comparisons[:4], scorer=Unsure())  # two of the four have the empty text
    assert (sum(map(len, whole.groups)), whole.dropped) == (4, 0.0)
    assert (sum(map(len, feedback.groups)), feedback.dropped) == (2, 0.5)
    assert set(feedback.scores) == {"reward", "cost"}
    trainer = PreferenceTrainer(policy=policy, method=graded_by(offset_dpo(), "reward"), feedback=feedback)
    assert trainer.step_at(0)["dropped"] == 0.5


def test_a_scorer_without_a_value_for_any_pair_stops_before_the_first_step(make_policy, comparisons):
    class Silent:
        def score(self, prompts, completions):
            return [Scores(values={}, unscorable="no verdict") for _ in completions]

    with pytest.raises(FeedbackError, match=r"'Silent' has a value for both responses of none of 2 pairs.*no verdict"):
        PairFeedback(make_policy(), comparisons[:2], scorer=Silent())


@pytest.mark.parametrize("margin", [-1e4, -2.0, -1.0, 0.0, 3.0, 1e4])
def test_margins_of_either_sign_are_learned_from(make_policy, prompts, margin):
    pair = Comparison(prompt=prompts[0], responses=TEXTS[:2], winner=0, margin=margin)
    trainer = PreferenceTrainer(policy=make_policy(), method=offset_dpo(), feedback=PairFeedback(make_policy(), [pair]))
    metrics = trainer.step_at(0)
    assert all(math.isfinite(value) for value in metrics.values())
    if margin >= 0:
        torch.testing.assert_close(signed_log1p(torch.tensor(margin)), torch.log1p(torch.tensor(margin)))


def test_safe_dpo_asks_for_more_where_only_the_winner_is_safe_and_is_dpo_elsewhere():
    here, zeros, ones = torch.zeros(2), torch.zeros(2), torch.ones(2)
    sides = {"chosen": here, "rejected": here, "ref_chosen": here, "ref_rejected": here}
    tokens = {"chosen_tokens": ones, "rejected_tokens": ones, "probability": ones}
    losses = safe_dpo(offset=2.0).loss(PairBatch(**sides, **tokens, margin=torch.tensor([0.0, 1.0]))).losses
    assert losses.tolist() == pytest.approx([math.log(2.0), math.log(1 + math.exp(2.0))])
    same = [method.loss(PairBatch(**sides, **tokens, margin=zeros)).losses for method in (safe_dpo(), dpo())]
    torch.testing.assert_close(*same)


def test_a_scaling_that_has_no_value_for_a_margin_is_an_error(make_policy, prompts):
    pair = Comparison(prompt=prompts[0], responses=TEXTS[:2], winner=0, margin=-2.0)
    method = offset_dpo(scaling=torch.log)
    trainer = PreferenceTrainer(policy=make_policy(), method=method, feedback=PairFeedback(make_policy(), [pair]))
    with pytest.raises(DataError, match="no finite value for 1 of 1 margins, such as -2"):
        trainer.step_at(0)
