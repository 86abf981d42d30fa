"""A constant violation, then a slack limit: which rules run away, and which return to zero."""

from __future__ import annotations

import doctest
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import ConfigError, TrainingError
from poise.functional.constraints import LARGEST_MULTIPLIER, PIDGains
from poise.train.controllers import adaptive_kl, reference_adaptive_kl
from poise.train.objectives import PID, Lagrangian, Limit, ProjectedAscent, ReferenceAscent

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
VIOLATED, SLACK = 20, 40
RULES = {
    "reference": lambda: ReferenceAscent(maximum=None),
    "reference, maximum 5": lambda: ReferenceAscent(maximum=5.0),
    "projected": ProjectedAscent,
    "PID": lambda: PID(multiplier=1.0),
}


def history(rule):
    """Metrics of a Lagrangian whose cost is 2.5 above its limit for 20 updates and 2.5 below for 40."""
    objective = Lagrangian(Limit("cost", -3.0), RULES[rule]())
    costs = [-0.5] * VIOLATED + [-5.5] * SLACK
    return [objective.update({"cost": torch.full((4,), cost)}) for cost in costs]


def test_under_the_reference_rule_the_multiplier_blows_up_with_a_constant_violation():
    multipliers = [row["multiplier"] for row in history("reference")]
    growth = [after / before for before, after in pairwise(multipliers[:6])]
    assert growth == sorted(growth)  # faster than exponentially
    assert multipliers[6] == multipliers[VIOLATED - 1] == LARGEST_MULTIPLIER
    assert multipliers[VIOLATED] == multipliers[-1] == 0.0  # one update below the limit throws it to 0, where it stays


def test_a_maximum_hides_the_blow_up_of_the_reference_rule_and_it_never_reaches_zero():
    rows = history("reference, maximum 5")
    assert [row["saturated"] for row in rows[4:VIOLATED]] == [1.0] * (VIOLATED - 4)
    assert rows[-1]["multiplier"] > 0.05


@pytest.mark.parametrize("rule", ["projected", "PID"])
def test_the_default_controller_and_pid_rise_evenly_and_return_to_zero(rule):
    rows = history(rule)
    multipliers = [row["multiplier"] for row in rows]
    steps = [after - before for before, after in pairwise(multipliers[:VIOLATED])]
    assert max(steps) <= 0.5 + 1e-9  # rate times excess, however large the multiplier is
    assert max(multipliers) <= 10.0
    assert multipliers[VIOLATED] < multipliers[VIOLATED - 1]  # down with the first update below the limit
    assert multipliers[-1] == 0.0
    assert [row["feasible"] for row in rows] == [0.0] * VIOLATED + [1.0] * SLACK


def test_saturation_is_reported_while_the_maximum_holds_the_multiplier():
    rows = history("projected")
    assert [row["saturated"] for row in rows[:VIOLATED]] == [0.0] * 17 + [1.0] * 3
    assert not any(row["saturated"] for row in rows[VIOLATED:])


@pytest.mark.parametrize("start", [4823.0, LARGEST_MULTIPLIER])
def test_the_reference_rule_is_lost_for_good_once_it_has_run_away(start):
    objective = Lagrangian(Limit(), ReferenceAscent(multiplier=start, maximum=None))
    for cost in (-2.5, 2.5, 2.5):
        found = objective.update({"cost": torch.tensor([cost])})["multiplier"]
    assert found == 0.0


def test_the_page_shows_these_numbers():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text("utf-8"), re.M)
    assert len(rows) == 10
    histories = [history(rule) for rule in RULES]
    for update, cells in rows:
        values = [each[int(update) - 1]["multiplier"] for each in histories]
        found = [f"{value:.2f}" if value < 1e6 else f"{value:.0e}" for value in values]
        assert cells.split(" | ") == found, update


def test_the_example_of_the_page_runs():
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 0
    assert found.failed == 0


CONTROLLERS = {
    "projected": ProjectedAscent,
    "projected, no maximum": lambda **start: ProjectedAscent(maximum=math.inf, rate=1e6, **start),
    "PID": PID,
    "PID without an integral": lambda **start: PID(gains=PIDGains(proportional=0.5, integral=0.0), **start),
    "PID, no maximum": lambda **start: PID(gains=PIDGains(1e6, 1e6, 1e6), maximum=math.inf, **start),
    "derivative alone": lambda **start: PID(gains=PIDGains(0.0, 0.0, 1.0), **start),
    "reference": ReferenceAscent,
    "reference, no maximum": lambda **start: ReferenceAscent(maximum=None, **start),
}


@pytest.mark.parametrize("name", CONTROLLERS)
@given(st.lists(st.floats(-1e200, 1e200), min_size=1, max_size=20))
def test_a_multiplier_is_finite_not_negative_and_within_its_maximum_whatever_is_measured(name, measured):
    controller = CONTROLLERS[name](multiplier=1.0)
    most = min(controller.maximum or math.inf, LARGEST_MULTIPLIER)
    for mean in measured:
        controller.update(mean, 0.0)
        assert 0 <= controller.multiplier <= most
        state = controller.state_dict()
        assert all(value is None or math.isfinite(value) for value in state.values())
        other = CONTROLLERS[name](multiplier=1.0)
        other.load_state_dict(state)
        for each in (controller, other):
            each.update(0.5, 0.0)
        assert other.multiplier == controller.multiplier
        controller.load_state_dict(state)


@pytest.mark.parametrize("start", [0.5, 2.0])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_keeps_its_start_until_something_exceeds_its_limit(name, start):
    controller = CONTROLLERS[name](multiplier=start)
    for _ in range(3):
        controller.update(0.3, 0.3)
        assert controller.multiplier == pytest.approx(start)
    before = controller.multiplier
    controller.update(0.4, 0.3)
    assert controller.multiplier > before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_refuses_what_is_no_finite_number_and_stays_as_it_is(name, bad):
    controller = CONTROLLERS[name](multiplier=1.0)
    before = controller.state_dict()
    for mean, limit in ((bad, 0.0), (0.0, bad)):
        with pytest.raises(TrainingError, match="a multiplier cannot be updated with"):
            controller.update(mean, limit)
    assert controller.state_dict() == before


@pytest.mark.parametrize("start", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_start_that_is_no_price_is_refused(name, start):
    with pytest.raises(ConfigError, match="start and rate must be finite"):
        CONTROLLERS[name](multiplier=start)


def test_rules_that_could_not_move_a_multiplier_are_refused():
    for make in (lambda: ProjectedAscent(rate=math.nan), lambda: ProjectedAscent(maximum=math.nan)):
        with pytest.raises(ConfigError, match="rate must be finite"):
            make()
    with pytest.raises(ConfigError, match="the logarithm of 0 never changes"):
        ReferenceAscent(multiplier=0.0)
    for gains in ((math.nan, 0.1, 0.0), (0.1, math.inf, 0.0)):
        with pytest.raises(ConfigError, match="not finite"):
            PIDGains(*gains)


@pytest.mark.parametrize("make", [adaptive_kl, reference_adaptive_kl])
def test_the_weight_of_the_kl_stays_positive_and_finite_and_refuses_nan(make):
    control, weight = make(gain=4.9), 0.1
    for kl in (0.0, 1e9, 0.0, 0.0, -1e9, *[1e9] * 400):
        weight = control(weight, kl, 1.0)
        assert 0 < weight <= LARGEST_MULTIPLIER
    with pytest.raises(TrainingError, match="the KL of a step is nan"):
        control(0.1, math.nan, 1.0)
    for wrong in ({"target": 0.0}, {"target": -1.0}, {"gain": -0.1}, {"gain": 5.0}, {"gain": math.nan}):
        with pytest.raises(ConfigError, match="KL control"):
            make(**wrong)


def test_advantages_are_finite_after_the_reference_rule_has_run_away():
    objective = Lagrangian(Limit(), ReferenceAscent(maximum=None))
    for _ in range(40):
        objective.update({"cost": torch.full((4,), 9.0)})
    advantages = {"reward": torch.tensor([1.0, -1.0]), "cost": torch.tensor([3.0, -3.0])}
    torch.testing.assert_close(objective.mix(advantages, {}), torch.tensor([-3.0, 3.0]))
