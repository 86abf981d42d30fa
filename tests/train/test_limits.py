"""Limits of every measure: what they measure, what they push the policy by, and over which prompts."""

from __future__ import annotations

import copy
import doctest
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import poise.feedback.groups
import poise.train.limits
import poise.train.objectives
from poise.errors import ConfigError
from poise.feedback.groups import of_category
from poise.feedback.rules import RefusalScorer
from poise.functional.statistics import PlattScale
from poise.models.heads import Channel, ScoreModel
from poise.train.algorithms import PPO
from poise.train.limits import RECTIFIED, check_limits, group_masks
from poise.train.objectives import (
    MEAN,
    PID,
    Lagrangian,
    Limit,
    Measure,
    ProjectedAscent,
    Unconstrained,
    among,
    cvar,
    per_category,
    rate,
)
from poise.types import Prompt, Scores

CALIBRATION = PlattScale(slope=2.0, offset=-1.0)
MEASURES = {
    "mean": MEAN,
    "share": rate(),
    "rate": rate(CALIBRATION),
    "cvar": cvar(0.3),
    "cvar1": cvar(1.0),
    "rectified": RECTIFIED,
}
COSTS = (3.0, -1.0, 0.5, 0.0, 7.0, -2.0, 1.0, 2.0, -4.0, 0.25)
PROMPTS = tuple(
    Prompt.of(f"Question {i}", categories=categories, kind=kind)
    for i, (categories, kind) in enumerate(
        [(("theft",), "harmful"), (("theft", "violence"), "harmful"), ((), "benign"), (("violence",), "harmful")]
    )
)


def batch(*costs, **others):
    return {"cost": torch.tensor(costs, dtype=torch.float64), "reward": torch.zeros(len(costs)).double()} | others


def measured(measure, *costs):
    return Lagrangian(Limit(measure=measure)).update(batch(*costs))["excess"]


@pytest.mark.parametrize("module", [poise.train.limits, poise.train.objectives, poise.feedback.groups])
def test_examples_run(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("mean", 0.675),
        ("share", 0.6),
        ("cvar", (7.0 + 3.0 + 2.0) / 3),
        ("cvar1", 0.675),
        ("rectified", 1.375),
        ("rate", sum(1 / (1 + math.exp(1 - 2 * cost)) for cost in COSTS) / 10),
    ],
)
def test_what_is_measured_by_hand(measure, expected):
    assert measured(MEASURES[measure], *COSTS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_the_costs_that_are_trained_on_have_the_mean_that_is_measured(measure):
    objective = Lagrangian(Limit(measure=measure))
    costs = objective.shape_scores(batch(*COSTS))[objective.limits[0].name]
    assert objective.update(batch(*COSTS))["excess"] == pytest.approx(costs.mean().item(), abs=1e-12)


def test_under_a_rectified_limit_no_safe_answer_makes_up_for_a_harmful_one():
    for measure, feasible in ((MEAN, 1.0), (RECTIFIED, 0.0)):
        assert Lagrangian(Limit(measure=measure)).update(batch(1.0, -5.0))["feasible"] == feasible
    objective = Lagrangian(Limit(measure=RECTIFIED))
    assert objective.shape_scores(batch(1.0, -5.0))[objective.limits[0].name].tolist() == [1.0, 0.0]


@given(st.permutations(range(10)))
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_the_order_of_the_batch_changes_nothing(measure, order):
    objective = Lagrangian(Limit(measure=measure))
    name = objective.limits[0].name
    shuffled = [COSTS[i] for i in order]
    torch.testing.assert_close(
        objective.shape_scores(batch(*shuffled))[name], objective.shape_scores(batch(*COSTS))[name][list(order)]
    )
    assert measured(measure, *shuffled) == pytest.approx(measured(measure, *COSTS))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_costs_far_out_stay_finite(measure):
    objective = Lagrangian(Limit(measure=measure, at_most=0.0), PID())
    shaped = objective.shape_scores(batch(500.0, -500.0))
    assert all(values.isfinite().all() for values in shaped.values())
    assert all(math.isfinite(value) for value in objective.update(batch(500.0, -500.0)).values())


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_a_multiplier_of_zero_is_no_limit_at_all(measure):
    constrained = Lagrangian(Limit(measure=measure), ProjectedAscent(multiplier=0.0))
    advantages = {name: torch.randn(3, 4) for name in constrained.signs}
    assert torch.equal(constrained.mix(advantages, {}), Unconstrained().mix(advantages, {}))


def test_one_channel_may_have_a_limit_of_each_measure():
    objective = Lagrangian(
        Limit("cost", 1.0), Limit("cost", 0.5, measure=rate()), Limit("cost", 5.0, measure=cvar(0.3)), reward=cvar(0.5)
    )
    assert objective.signs == {"reward": 1, "cost": -1, "cost_rate": -1, "cost_cvar30": -1}
    metrics = objective.update(batch(*COSTS))
    excesses = {name: value for name, value in metrics.items() if name.startswith("excess")}
    assert excesses == pytest.approx({"excess_cost": -0.325, "excess_cost_rate": 0.1, "excess_cost_cvar30": -1.0})
    assert metrics["feasible"] == 0.0


def test_the_worst_rewards_may_be_what_is_maximised():
    rewards = torch.tensor([1.0, 5.0, 2.0, 4.0], dtype=torch.float64)
    shaped = Unconstrained(measure=cvar(0.5)).shape_scores({"reward": rewards})["reward"]
    assert shaped.tolist() == [0.0, 2.0, 2.0, 2.0]  # nothing is gained above 2, and the mean is that of 1 and 2
    assert torch.equal(Unconstrained(measure=MEAN).shape_scores({"reward": rewards})["reward"], rewards)


def test_a_window_says_where_the_tail_begins():
    objective = Lagrangian(Limit(measure=cvar(0.25), window=8))
    objective.update(batch(10.0, 9.0, 1.0, 1.0, 1.0, 1.0))
    small = batch(2.0, 3.0)
    # of 10, 9, 1, 1, 1, 1, 2, 3 the worst quarter are 10 and 9
    assert objective.shape_scores(small)["cost_cvar25"].tolist() == [9.0, 9.0]
    assert objective.update(small)["excess"] == 9.5
    assert Lagrangian(Limit(measure=cvar(0.25))).shape_scores(small)["cost_cvar25"].tolist() == [3.0, 3.0]


def test_the_scale_weighs_the_measure_for_policy_and_controller_but_not_in_what_is_reported():
    limit = Limit(at_most=0.1, measure=rate())
    plain, scaled = (Lagrangian(replace(limit, scale=scale), ProjectedAscent(rate=1.0)) for scale in (1.0, 10.0))
    assert torch.equal(
        scaled.shape_scores(batch(*COSTS))["cost_rate"], 10 * plain.shape_scores(batch(*COSTS))["cost_rate"]
    )
    before, after = plain.update(batch(*COSTS)), scaled.update(batch(*COSTS))
    assert before["excess"] == after["excess"] == pytest.approx(0.5)
    assert (before["multiplier"], after["multiplier"]) == pytest.approx((1.5, 6.0))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Limit("cost", 2.0, measure=rate()), "2 % is 0.02"),
        (lambda: Limit("cost", math.nan), "at_most is nan"),
        (lambda: Limit("cost", math.inf), "at_most is inf"),
        (lambda: Limit(window=-1), "window is -1"),
        (lambda: Limit(scale=0.0), "scale 0.0"),
        (lambda: Lagrangian(Limit(measure=cvar(5))).update(batch(1.0)), "share of 5"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(make, reason):
    with pytest.raises(ConfigError, match=reason):
        make()


def grouped(prompts, *costs, objective):
    """Scores of one completion of each prompt, and which rows belong to which group, as the trainer gathers them."""
    return batch(*costs), group_masks(objective.groups, prompts)


def test_a_limit_of_a_category_sees_the_prompts_of_that_category_alone():
    objective = Lagrangian(
        Limit("cost", 1.0, measure=per_category("theft")),
        Limit("cost", 0.0, measure=per_category("violence", rate())),
        Limit("cost", 0.0, measure=among("harmless", lambda prompt: prompt.tags["kind"] == "benign")),
    )
    scores = grouped(PROMPTS, 4.0, 2.0, -3.0, -1.0, objective=objective)
    shaped = objective.shape_scores(*scores)
    assert shaped["cost_theft"].tolist() == [8.0, 4.0, 0.0, 0.0]  # half of the prompts: twice the cost
    assert shaped["cost_rate_violence"].tolist() == [0.0, 2.0, 0.0, 0.0]
    assert shaped["cost_harmless"].tolist() == [0.0, 0.0, -12.0, 0.0]
    metrics = objective.update(*scores)
    assert [metrics[f"excess_{name}"] for name in list(objective.signs)[1:]] == [2.0, 0.5, -3.0]


def test_where_a_limit_says_nothing_the_reward_counts_whole():
    objective = Lagrangian(
        Limit("cost", 1.0, measure=per_category("theft")),
        Limit("cost", 1.0, measure=per_category("violence", rate())),
        ProjectedAscent(multiplier=3.0),
        ProjectedAscent(multiplier=1.0),
    )
    scores = grouped(PROMPTS, 0.0, 0.0, 0.0, 0.0, objective=objective)  # theft; both; neither; violence
    weights = {"reward": 8.0, "cost_theft": 1.0, "cost_rate_violence": 2.0}
    advantages = {name: torch.tensor([[weight, 2 * weight]] * 4) for name, weight in weights.items()}
    mixed = objective.mix(advantages, scores[1])
    expected = torch.tensor([[1.25, 2.5], [0.6, 1.2], [8.0, 16.0], [3.0, 6.0]])
    torch.testing.assert_close(mixed, expected)
    totals = {name: values.sum(-1) for name, values in advantages.items()}
    torch.testing.assert_close(objective.mix(totals, scores[1]), expected.sum(-1))


def test_the_gradient_of_a_category_is_that_of_its_conditional_mean():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    costs = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0]]).expand(4, 5).double() * torch.arange(1, 5)[:, None]
    (logits[:2].softmax(-1) * costs[:2]).sum(-1).mean().backward()
    exact, logits.grad = logits.grad, None
    objective = Lagrangian(Limit(measure=per_category("theft")))
    total = torch.zeros((), dtype=torch.float64)
    for action in range(5):  # the expectation over actions, one at a time
        scores = grouped(PROMPTS, *costs[:, action].tolist(), objective=objective)
        weights = logits.softmax(-1)[:, action].detach()
        total = (
            total + (weights * objective.shape_scores(*scores)["cost_theft"] * logits.log_softmax(-1)[:, action]).mean()
        )
    total.backward()
    torch.testing.assert_close(logits.grad, exact)


def test_a_batch_without_the_category_moves_nothing_and_is_not_feasible_before_the_first():
    objective = Lagrangian(Limit("cost", 1.0, measure=per_category("theft")))
    harmless = grouped(PROMPTS[2:], 9.0, 9.0, objective=objective)
    assert objective.shape_scores(*harmless)["cost_theft"].tolist() == [0.0, 0.0]
    assert objective.update(*harmless) == {"multiplier": 1.0, "saturated": 0.0, "feasible": 0.0}
    objective.update(*grouped(PROMPTS[:1], 0.5, objective=objective))
    kept = objective.update(*harmless)
    assert (kept["excess"], kept["feasible"], kept["multiplier"]) == (-0.5, 1.0, 0.9)


def test_the_weight_of_a_category_is_its_share_of_all_prompts_so_far():
    objective = Lagrangian(Limit(measure=per_category("theft")))
    objective.update(*grouped(PROMPTS, 1.0, 1.0, 1.0, 1.0, objective=objective))
    one_of_two = grouped(PROMPTS[1:3], 3.0, 1.0, objective=objective)
    assert objective.shape_scores(*one_of_two)["cost_theft"].tolist() == [
        3.0 * 6 / 3,
        0.0,
    ]  # 3 of 6 prompts, not 1 of 2
    one_of_one = grouped(PROMPTS[:1], 3.0, objective=objective)
    assert objective.shape_scores(*one_of_one)["cost_theft"].tolist() == [3.0 * 5 / 3]


def test_a_batch_that_does_not_say_which_rows_are_in_the_group_is_refused():
    objective = Lagrangian(Limit(measure=per_category("theft")))
    with pytest.raises(ConfigError, match=r"needs the rows of group 'theft', but got no group: pass `RolloutBatch"):
        objective.shape_scores(batch(1.0))
    with pytest.raises(ConfigError, match="but got violence"):
        objective.update(batch(1.0), {"violence": torch.tensor([True])})


def test_a_restored_objective_continues_exactly_where_it_was():
    def make():
        return Lagrangian(
            Limit(measure=cvar(0.5), window=5), Limit(measure=per_category("theft", rate()), at_most=0.5), PID(), PID()
        )

    original, restored = make(), make()
    for cost in (0.3, -0.1, 0.7):
        original.update(*grouped(PROMPTS, cost, 2 * cost, -cost, 1.0, objective=original))
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    scores = grouped(PROMPTS[1:], 2.0, 1.0, -3.0, objective=original)
    for name, values in original.shape_scores(*scores).items():
        assert torch.equal(restored.shape_scores(*scores)[name], values)
    assert restored.update(*scores) == original.update(*scores)
    assert restored.state_dict() == original.state_dict()


def test_an_objective_names_each_group_once():
    objective = Lagrangian(*(Limit("cost", 0.0, measure=per_category("theft", m)) for m in (MEAN, rate())))
    assert [group.name for group in objective.groups] == ["theft"]
    assert Lagrangian(Limit()).groups == Unconstrained().groups == ()


def test_groups_of_prompts_are_masks_of_the_batch_and_no_scores(make_trainer, prompts):
    tagged = [replace(prompt, tags={"categories": ("theft",)} if i < 2 else {}) for i, prompt in enumerate(prompts)]
    trainer = make_trainer(prompts=tagged, objective=Lagrangian(Limit(measure=per_category("theft"))))
    found = trainer.collect(tagged)
    assert found.groups["theft"].dtype == torch.bool
    assert found.groups["theft"].tolist() == [True, True, False, False]
    assert set(found.scores) == {"reward", "cost"}
    assert all(set(rollout.scores.values) == {"reward", "cost"} for rollout in trainer.rollouts)


def test_the_trainer_gives_limits_of_categories_the_prompts_they_speak_of(make_trainer, prompts):
    tagged = [replace(prompt, tags={"categories": ("theft",)} if i < 2 else {}) for i, prompt in enumerate(prompts)]
    trainer = make_trainer(prompts=tagged, objective=Lagrangian(Limit(measure=per_category("theft"))))
    metrics = trainer.step_at(0)
    inside = [r.scores.values["cost"] for r in trainer.rollouts if r.prompt.tags]
    assert metrics["excess"] == pytest.approx(sum(inside) / 2)
    assert metrics["in:theft"] == 0.5


class CostsInTurn:
    """One batch of costs after another, the same reward for all but more of it at every step."""

    def __init__(self, *batches):
        self.batches, self.calls = batches, 0

    def score(self, prompts, completions):
        row = self.batches[min(self.calls, len(self.batches) - 1)]
        self.calls += 1
        return [
            Scores(values={"reward": float(self.calls), "cost": cost}) for cost, _ in zip(row, prompts, strict=True)
        ]


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [
        (Limit("cost", 0.5), (0.0, 1.0, 0.0, 1.0), (1.0, 1.0, 0.0, 1.0)),
        (Limit("cost", 0.25, measure=rate()), (0.1, -9.0, -9.0, -9.0), (0.1, 0.1, -9.0, -9.0)),
        (Limit("cost", 2.0, measure=cvar(0.5)), (3.0, 1.0, -50.0, 0.0), (3.0, 2.0, -50.0, -50.0)),
        (Limit("cost", 1.0, measure=per_category("theft")), (1.0, 1.0, 9.0, 9.0), (1.0, 2.0, -9.0, -9.0)),
    ],
    ids=["mean", "rate", "cvar", "category"],
)
def test_the_best_feasible_policy_is_kept_under_every_measure(make_trainer, prompts, limit, good, bad):
    tagged = [replace(prompt, tags={"categories": ("theft",)} if i < 2 else {}) for i, prompt in enumerate(prompts)]
    trainer = make_trainer(prompts=tagged, objective=Lagrangian(limit))
    trainer.scorers = (CostsInTurn(*[good] * 5, *[bad] * 4),)
    for index in range(9):
        trainer.index = index
        metrics = trainer.step(tagged)
        assert metrics["feasible"] == float(index < 5)
    assert trainer.load_best() == 4


def test_there_is_no_best_policy_while_one_of_several_limits_was_never_measured(make_trainer):
    limits = Limit("cost", 99.0), Limit("cost", 99.0, measure=per_category("theft"))
    trainer = make_trainer(objective=Lagrangian(*limits))  # no prompt has the category
    for index in range(5):
        assert trainer.step_at(index)["feasible"] == 0.0
    assert trainer.load_best() is None


@pytest.mark.parametrize("measure", [rate(CALIBRATION), cvar(0.5), per_category("theft")])
def test_a_limit_moves_the_policy_as_a_mean_limit_on_its_costs_would(make_trainer, prompts, weights_of, measure):
    """The whole step, by another road: the costs of the measure as scores of a channel of their own.

    A limit on all prompts halves the reward of those that a limit on a group leaves whole: there it is given twice.
    """
    tagged = [replace(prompt, tags={"categories": ("theft",)} if i < 2 else {}) for i, prompt in enumerate(prompts)]
    direct = make_trainer(sgd=True, prompts=tagged, objective=Lagrangian(Limit("cost", 0.0, measure=measure)))
    collected = direct.collect(tagged)
    costs = direct.objective.shape_scores(collected.scores, collected.groups)[direct.objective.limits[0].name]
    rewards = collected.scores["reward"] * (2 - collected.groups.get("theft", torch.ones(len(costs))).float())

    class AsScores:
        def score(self, prompts, completions):
            return [
                Scores(values={"reward": float(reward), "cost": float(cost)})
                for reward, cost in zip(rewards, costs, strict=True)
            ]

    around = make_trainer(sgd=True, prompts=tagged, scorers=[AsScores()], objective=Lagrangian(Limit("cost", 0.0)))
    start = weights_of(direct)
    for trainer in (direct, around):
        trainer.step(tagged)
    found, expected = weights_of(direct), weights_of(around)
    assert any((found[name] - start[name]).abs().max() > 1e-4 for name in found)
    same = torch.equal(rewards, collected.scores["reward"])  # otherwise the critics have other targets
    for name in found if same else direct.parameters:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


def test_a_measure_of_ones_own_is_one_function_and_one_record():
    worst = Measure(name="worst", costs=lambda scores, seen: seen.max() * torch.ones_like(scores))
    assert measured(worst, 1.0, 7.0, 2.0) == 7.0


def test_any_algorithm_record_takes_any_measure(make_trainer):
    trainer = make_trainer(
        algorithm=replace(PPO, samples_per_prompt=2),
        objective=Lagrangian(Limit(measure=cvar(0.25), window=16), Limit(measure=rate(), at_most=0.02)),
    )
    metrics = trainer.step_at(0)
    assert {"excess_cost_cvar25", "multiplier_cost_rate", "saturated_cost_rate"} <= set(metrics)


def test_a_group_reads_tags_and_nothing_else():
    assert group_masks([of_category("violence")], PROMPTS)["violence"].tolist() == [False, True, False, True]


class Bounded:
    """A scorer that says between what its cost lies."""

    bounds = {"cost": (-1.0, 1.0)}  # noqa: RUF012

    def score(self, prompts, completions):
        return [Scores(values={"reward": 0.0, "cost": 0.5}) for _ in completions]


@pytest.mark.parametrize(
    ("measure", "at_most", "said"),
    [
        *((MEAN, 5.0, "between -1 and 1"), (MEAN, -1.5, "between -1 and 1"), (cvar(0.1), 1.1, "between -1 and 1")),
        *((rate(CALIBRATION), 0.9, "between 0.0474.* and 0.731"), (rate(CALIBRATION), 0.01, "between 0.0474")),
        (per_category("theft"), 5.0, "between -1 and 1"),
    ],
)
def test_a_limit_beyond_what_its_channel_can_be_is_refused_with_the_range(make_trainer, measure, at_most, said):
    with pytest.raises(ConfigError, match=f"limit on 'cost.*at_most is {at_most}.*{said}"):
        make_trainer(scorers=[Bounded()], objective=Lagrangian(Limit("cost", at_most, measure=measure)))


@pytest.mark.parametrize(
    ("measure", "at_most"), [(MEAN, 1.0), (MEAN, -1.0), (rate(), 0.0), (rate(), 1.0), (cvar(0.5), 0)]
)
def test_a_limit_within_what_its_channel_can_be_is_taken_and_one_of_an_unknown_channel_too(measure, at_most):
    check_limits([Limit("cost", at_most, measure=measure)], [Bounded()])
    check_limits([Limit("length", 5000.0), Limit("cost", 0.0)], [Bounded(), object()])


@pytest.mark.parametrize("at_most", [-0.01, 1.01, 2.0, math.nan, math.inf])
def test_a_rate_outside_of_a_share_is_refused_with_the_range(at_most):
    with pytest.raises(ConfigError, match=r"between 0\.0 and 1\.0"):
        Limit("cost", at_most, measure=rate())


def test_score_models_and_rules_say_between_what_their_values_lie(make_policy):
    cost = Channel(name="cost", higher_is_worse=True, bound=1.5)
    model = ScoreModel(make_policy().backbone, (Channel(name="reward"), cost))
    assert model.bounds == {"cost": (-1.5, 1.5)}
    with pytest.raises(ConfigError, match=r"between -1\.5 and 1\.5"):
        check_limits([Limit("cost", 1.6)], [model])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        check_limits([Limit("refusal", 5.0)], [RefusalScorer()])
