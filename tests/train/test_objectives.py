"""Multipliers: which way they move, when, how far, and that they survive a restart."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from poise.errors import ConfigError
from poise.functional.constraints import PIDGains
from poise.train.objectives import (
    PID,
    Lagrangian,
    Limit,
    Penalty,
    ProjectedAscent,
    ReferenceAscent,
    Unconstrained,
    rate,
)

CONTROLLERS = {"projected": ProjectedAscent, "pid": PID, "reference": ReferenceAscent}


def batch(*costs, **others):
    return {"cost": torch.tensor(costs, dtype=torch.float64), "reward": torch.zeros(len(costs))} | others


def multiplier_after(objective, *costs):
    return objective.update(batch(*costs))["multiplier"]


@pytest.mark.parametrize("name", ["basic", "threshold_minus_3", "delay"])
def test_reference_ascent_moves_as_the_published_code(goldens, name):
    case = goldens[f"safe.lambda_update.{name}"]
    given = case["inputs"]
    controller = ReferenceAscent(
        multiplier=given["lambda_init"],
        rate=given["lambda_lr"],
        maximum=given.get("lambda_max"),
        delay=given.get("lambda_update_delay_steps", 0),
    )
    objective = Lagrangian(Limit(at_most=given["threshold"], window=2), controller)
    # each batch fills the window of two episodes, so the window's mean is the batch's
    moved = [multiplier_after(objective, mean - 1.0, mean + 1.0) for mean in given["mean_episode_costs"]]
    assert moved == pytest.approx(case["expected"]["lambdas"], abs=1e-12)


def test_a_window_averages_the_last_episodes_whatever_batch_they_came_in():
    objective = Lagrangian(Limit(window=4))
    batches = [(1.0, 2.0), (3.0, 4.0), (10.0, -10.0, 0.5)]
    means = [objective.update(batch(*costs))["excess"] for costs in batches]
    assert means == [1.5, 2.5, 1.125]  # the last is the mean of 4, 10, -10 and 0.5


def test_without_a_window_only_the_current_batch_counts():
    objective = Lagrangian(Limit(at_most=1.0))
    objective.update(batch(100.0, 100.0))
    assert objective.update(batch(2.0, 4.0))["excess"] == 2.0


def test_a_maximum_holds_the_reference_rule_and_lets_it_come_down():
    objective = Lagrangian(Limit(), ReferenceAscent(multiplier=4.9, rate=0.1, maximum=5.0))
    assert multiplier_after(objective, 100.0) == 5.0
    assert multiplier_after(objective, -1.0) == pytest.approx(5.0 * math.exp(-0.5))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_costs_above_the_limit_raise_the_multiplier(name):
    objective = Lagrangian(Limit(at_most=-3.0), CONTROLLERS[name]())
    before = objective.multipliers["cost"]
    metrics = objective.update(batch(-2.5, -1.5))
    assert metrics["multiplier"] > before
    assert metrics["excess"] == 1.0
    assert metrics["feasible"] == 0.0


@pytest.mark.parametrize("name", CONTROLLERS)
def test_costs_at_the_limit_change_nothing_and_are_feasible(name):
    objective = Lagrangian(Limit(at_most=0.5), CONTROLLERS[name]())
    before = objective.multipliers["cost"]
    metrics = objective.update(batch(0.0, 1.0))
    assert metrics == {"multiplier": before, "saturated": 0.0, "excess": 0.0, "feasible": 1.0}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_costs_far_below_the_limit_never_make_the_multiplier_negative(name):
    objective = Lagrangian(Limit(), CONTROLLERS[name]())
    moved = [multiplier_after(objective, cost) for cost in (-100.0, -5.0, -0.1, -100.0)]
    assert min(moved) >= 0.0


@pytest.mark.parametrize("name", ["projected", "pid"])
def test_a_saturated_multiplier_comes_down_with_the_first_batch_below_the_limit(name):
    objective = Lagrangian(Limit(), CONTROLLERS[name](maximum=10.0))
    raised = [multiplier_after(objective, 5.0) for _ in range(100)]
    assert raised[-50:] == [10.0] * 50
    assert multiplier_after(objective, -1.0) < 10.0


def test_projected_ascent_takes_the_same_step_near_zero_as_far_from_it():
    low, high = (Lagrangian(Limit(), ProjectedAscent(multiplier=start, rate=0.2)) for start in (0.0, 5.0))
    assert multiplier_after(low, 1.5) - 0.0 == pytest.approx(multiplier_after(high, 1.5) - 5.0) == pytest.approx(0.3)


def test_pid_with_an_integral_alone_is_projected_ascent():
    pid = Lagrangian(Limit(), PID(gains=PIDGains(proportional=0, integral=0.2, derivative=0)))
    projected = Lagrangian(Limit(), ProjectedAscent(multiplier=0.0, rate=0.2))
    for cost in (1.0, 3.0, -2.0, -9.0, 4.0):
        assert multiplier_after(pid, cost) == pytest.approx(multiplier_after(projected, cost))


def test_pid_starts_from_the_multiplier_it_is_given():
    objective = Lagrangian(Limit(), PID(gains=PIDGains(proportional=0, integral=0.2, derivative=0), multiplier=3.0))
    assert multiplier_after(objective, 1.0) == pytest.approx(3.2)


def test_several_limits_move_apart_and_are_feasible_only_together():
    limits = (Limit("cost", 1.0), Limit("length", 10.0))
    objective = Lagrangian(
        *limits, ProjectedAscent(multiplier=1.0, rate=0.5, maximum=1.5), ProjectedAscent(multiplier=2.0, rate=0.1)
    )
    metrics = objective.update(batch(2.0, 2.0, length=torch.tensor([4.0, 6.0])))
    assert metrics == {
        "multiplier_cost": pytest.approx(1.5),
        "saturated_cost": 1.0,
        "excess_cost": pytest.approx(1.0),
        "multiplier_length": pytest.approx(1.5),
        "saturated_length": 0.0,
        "excess_length": pytest.approx(-5.0),
        "feasible": 0.0,
    }
    assert objective.signs == {"reward": 1, "cost": -1, "length": -1}
    mixed = objective.mix({"reward": torch.tensor(4.0), "cost": torch.tensor(1.0), "length": torch.tensor(-2.0)}, {})
    assert mixed.item() == pytest.approx((4.0 - 1.5 * 1.0 + 1.5 * 2.0) / (1 + 1.5 + 1.5))
    assert objective.update(batch(1.0, length=torch.tensor([10.0])))["feasible"] == 1.0


TWICE = PID()


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((Limit(), Limit()), "distinct channels"),
        ((Limit("cost", 0.1, measure=rate()), Limit("cost", 0.2, measure=rate())), "distinct channels"),
        ((Limit("reward"),), "channels other than the reward"),
        ((Limit(), Limit("length"), ProjectedAscent()), "2 limits need one controller each"),
        ((Limit(), ProjectedAscent(), ProjectedAscent()), "1 limits need one controller each"),
        ((Limit(), Limit("length"), TWICE, TWICE), "one controller each"),
        (((Limit(), Limit("length")),), r"got a tuple: write Lagrangian\(Limit"),
        ((0.5,), "got a float"),
    ],
)
def test_limits_and_controllers_that_do_not_fit_are_refused(parts, reason):
    with pytest.raises(ConfigError, match=reason):
        Lagrangian(*parts)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Lagrangian(Limit("cots")), "limit on 'cots' needs channel 'cots'.* give cost, reward: did you mean 'cost'"),
        (Lagrangian(Limit("length")), "'length', but .* add a scorer that gives this channel"),
        (Unconstrained("rewards"), "did you mean 'reward'"),
        (Penalty({"harm": 1.0}), "the penalty needs channel 'harm'"),
    ],
)
def test_a_channel_that_no_scorer_gives_is_named_with_those_there_are(objective, message):
    with pytest.raises(ConfigError, match=message):
        objective.shape_scores(batch(1.0))


def test_shape_takes_only_the_channels_that_are_trained():
    scores = batch(1.0, other=torch.zeros(1))
    assert set(Lagrangian().shape_scores(scores)) == {"reward", "cost"}
    assert set(Unconstrained("other").shape_scores(scores)) == {"other"}


def test_penalty_shapes_as_the_published_baseline(goldens):
    case = goldens["safe.reward_shaping"]
    scores = {name: torch.tensor(case["inputs"][name], dtype=torch.float64) for name in ("reward", "cost")}
    shaped = [Penalty(nu).shape_scores(scores)["shaped"].tolist() for nu in case["inputs"]["nus"]]
    for found, expected in zip(shaped, case["expected"]["shaped"], strict=True):
        assert found == pytest.approx(expected, abs=1e-12)


def test_penalty_takes_a_coefficient_for_each_channel():
    scores = batch(1.0, 2.0, length=torch.tensor([10.0, 20.0]))
    assert Penalty({"cost": 2.0, "length": 0.1}).shape_scores(scores)["shaped"].tolist() == [-3.0, -6.0]


def test_penalty_without_reward_minimises_the_cost_alone():
    scores = {"reward": torch.tensor([5.0, -7.0]), "cost": torch.tensor([1.0, -2.0])}
    assert Penalty(1.0, reward_weight=0.0).shape_scores(scores)["shaped"].tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("objective", [Unconstrained(), Penalty()])
def test_objectives_without_multipliers_learn_and_keep_nothing(objective):
    assert objective.update(batch(1.0)) == objective.state_dict() == {}
    objective.load_state_dict({})


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_restored_objective_continues_exactly_where_it_was(name):
    original = Lagrangian(Limit(window=3), CONTROLLERS[name]())
    for cost in (0.3, -0.1, 0.7, 0.2):
        original.update(batch(cost))
    restored = Lagrangian(Limit(window=3), CONTROLLERS[name]())
    restored.load_state_dict(copy.deepcopy(original.state_dict()))
    assert restored.state_dict() == original.state_dict()
    for cost in (0.4, -0.6, 0.1):
        assert restored.update(batch(cost)) == original.update(batch(cost))
