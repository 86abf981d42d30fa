"""A constant violation, then a slack limit: which rules run away, and which return to zero."""

from __future__ import annotations

import doctest
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from poise.functional.constraints import LARGEST_MULTIPLIER
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
