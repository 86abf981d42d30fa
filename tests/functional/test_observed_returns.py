"""Measures of a policy whose judge sees a part of what happens: by hand, their identity, and what must not matter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.functional.observed_returns import (
    deceptive_inflation,
    observed_value,
    overestimation,
    overjustification,
    underestimation,
)

RETURNS = torch.tensor([1.0, -5.0, 10.0], dtype=torch.float64)
OBSERVED = torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64)  # seen as it is, flattered, belittled
PROBABILITIES = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
NUMBERS = st.lists(st.tuples(st.floats(-500, 500), st.floats(-500, 500)), min_size=1, max_size=8)


def test_values_and_errors_by_hand():
    # .5 - 1.25 + 2.5;  .5 + .75 + 2;  a quarter of 8;  a quarter of 2
    assert [float(x) for x in observed_value(RETURNS, OBSERVED, PROBABILITIES)] == [1.75, 3.25, 2.0, 0.5]
    assert overestimation(RETURNS, OBSERVED).tolist() == [0.0, 8.0, 0.0]
    assert underestimation(RETURNS, OBSERVED).tolist() == [0.0, 0.0, 2.0]


@given(NUMBERS)
def test_what_is_seen_is_what_there_is_with_what_is_added_and_without_what_is_missed(rows):
    returns, observed = torch.tensor(rows, dtype=torch.float64).unbind(1)
    found = observed_value(returns, observed, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64))
    expected = found.value + found.overestimation - found.underestimation
    torch.testing.assert_close(found.observed_value, expected, rtol=1e-9, atol=1e-9)
    assert min(found.overestimation, found.underestimation) >= 0


@given(st.permutations(range(3)))
def test_the_order_of_trajectories_changes_nothing(order):
    moved = [x[list(order)] for x in (RETURNS, OBSERVED, PROBABILITIES)]
    torch.testing.assert_close(observed_value(*moved), observed_value(RETURNS, OBSERVED, PROBABILITIES))


@pytest.mark.parametrize("verdict", [deceptive_inflation, overjustification])
def test_no_policy_fails_against_itself(verdict):
    policy = observed_value(RETURNS, OBSERVED, PROBABILITIES)
    assert not verdict(policy, policy)


def test_each_failure_takes_both_of_its_signs():
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)

    def policy(returns, observed):
        return observed_value(*(torch.tensor(x, dtype=torch.float64) for x in (returns, observed)), half)

    honest, hidden = policy([2.0, 2.0], [2.0, 2.0]), policy([2.0, 4.0], [2.0, 0.0])
    flattered, flattered_and_worse = policy([0.0, 2.0], [4.0, 2.0]), policy([0.0, 0.0], [2.0, 0.0])
    assert deceptive_inflation(flattered, honest)
    assert not deceptive_inflation(flattered_and_worse, honest)  # overestimated, and looks worse all the same
    assert not deceptive_inflation(honest, flattered)
    assert overjustification(honest, hidden)  # gives up a return of 1 to be seen
    assert not overjustification(hidden, honest)
    assert not overjustification(policy([4.0, 2.0], [4.0, 2.0]), hidden)  # seen, and gives up nothing
