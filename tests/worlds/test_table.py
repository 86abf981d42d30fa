"""A table of several channels, and the best policy under several limits at once."""

import doctest

import numpy as np
import pytest
import torch

from poise.errors import ConfigError
from poise.types import Prompt
from poise.worlds import optimum as exact
from poise.worlds import table as tables
from poise.worlds import toy_language as toy
from poise.worlds.table import Table

PROMPTS = (Prompt.of("a", context=0), Prompt.of("b", context=1))
SMALL = Table(
    prompts=PROMPTS,
    channels={
        "reward": np.array([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]]),
        "cost": np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
        "length": np.array([[9.0, 5.0, 1.0], [9.0, 5.0, 1.0]]),
    },
)


def test_two_limits_are_worked_by_hand():
    in_a = SMALL.weights_of("cost", lambda prompt: prompt.text == "a")
    found = exact.best_under_limits(SMALL, [(in_a, 0.0), (SMALL.weights_of("length"), 5.0)])
    # a: only the second and the third arm; b: the first. Half of 9 and half of the rest must be 5 or less: rest 1
    assert found.policy[0] == pytest.approx([0.0, 0.0, 1.0])
    assert found.policy[1] == pytest.approx([1.0, 0.0, 0.0])
    assert found.reward == pytest.approx(1.5)
    assert found.risk == pytest.approx(0.0, abs=1e-9)


def test_one_limit_agrees_with_the_bandit():
    weights = toy.table().weights_of("cost")
    several = exact.best_under_limits(toy.table(), [(weights, -0.5)])
    bandit = toy.bandit()
    alone = exact.best_under_limit(bandit, exact.mean_rows(bandit.costs), -0.5)
    assert several.reward == pytest.approx(alone.reward)
    assert several.multiplier == pytest.approx(alone.multiplier)


def test_limits_that_nobody_can_meet_are_refused():
    with pytest.raises(ConfigError, match="no policy meets all 2 limits"):
        exact.best_under_limits(SMALL, [(SMALL.weights_of("cost"), 0.0), (SMALL.weights_of("length"), 0.5)])


def test_scores_are_those_of_the_table():
    contexts, arms = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    scores = SMALL.sample(contexts, arms, torch.Generator())
    assert scores["length"].tolist() == [1.0, 9.0, 5.0]
    assert SMALL.num_arms == 3


def test_the_toy_language_has_all_gold_channels():
    table = toy.table()
    assert {"reward", "cost", "truth", "refusal", "length", *(f"harm_{c}" for c in toy.CATEGORIES)} == set(
        table.channels
    )
    assert table.mean_of(toy.base_policy(), "refusal") == pytest.approx(0.1)
    assert table.channels["reward"] == pytest.approx(toy.bandit().rewards)


def test_examples_run():
    assert doctest.testmod(tables).failed == 0
