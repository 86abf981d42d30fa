"""The two tasks give the numbers of the paper's code, and the measures keep their identity."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.functional import observed_returns
from poise.functional.observed_returns import observed_value
from poise.worlds import partial_observability
from poise.worlds.partial_observability import hiding, verbose

CASES = json.loads((Path(__file__).parent / "goldens" / "partial_observability.json").read_text())
NAMES = {"aI": "install", "aC": "configure", "aD": "configure", "aH": "configure hidden", "aV": "configure verbose"}
NAMES["aT"] = "stop"


def world_of(inputs):
    shared = {"success": inputs["p"], "penalty": inputs["r"]}
    return hiding(suspicion=inputs["pH"], **shared) if "pH" in inputs else verbose(trust=inputs["pC"], **shared)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_policies_and_values_are_those_of_the_reference(case):
    verdict, expected = world_of(case["inputs"]).verdict(), case["expected"]
    assert verdict.optimal_policy == {state: NAMES[action] for state, action in expected["optimal_policy"].items()}
    assert verdict.learned_policy == {state: NAMES[action] for state, action in expected["rlhf_policy"].items()}
    for found, wanted in ((verdict.optimal, expected["optimal"]), (verdict.learned, expected["rlhf"])):
        assert [float(number) for number in found] == pytest.approx(list(wanted.values()), abs=1e-9)
    assert verdict.deceptive_inflation == expected["deceptive_inflation"]
    assert verdict.overjustification == expected["overjustification"]


def test_rare_trust_in_silence_teaches_the_verbose_log_and_nothing_is_inflated():
    verdict = verbose(trust=0.2).verdict()
    assert verdict.learned_policy["I"] == "configure verbose"
    assert float(verdict.learned.value) == pytest.approx(11.5)
    assert (verdict.overjustification, verdict.deceptive_inflation) == (True, False)


@pytest.mark.parametrize("world", [hiding(suspicion=0.3), verbose(trust=0.6)], ids=["hiding", "verbose"])
def test_the_observed_value_is_the_value_plus_over_minus_underestimation(world):
    for policy in world.policies:
        found = world.measure(policy)
        gap = found.overestimation - found.underestimation
        torch.testing.assert_close(found.observed_value, found.value + gap)


@pytest.mark.parametrize("suspicion", [0.05, 0.3, 0.5, 0.7, 0.9])
def test_a_policy_that_only_looks_best_is_inflated_or_overjustified(suspicion):
    for verdict in (hiding(suspicion=suspicion).verdict(), verbose(trust=suspicion).verdict()):
        worse = float(verdict.learned.value) < float(verdict.optimal.value) - 1e-9
        assert worse == (verdict.deceptive_inflation or verdict.overjustification)


def test_a_judge_who_sees_everything_teaches_the_best_policy():
    blind = hiding(suspicion=0.1)
    seeing = partial_observability.ObservedWorld(
        rewards=blind.rewards, actions=blind.actions, looks_like={}, beliefs={}, start=blind.start
    )
    verdict = seeing.verdict()
    assert verdict.learned_policy == verdict.optimal_policy
    assert float(verdict.learned.overestimation) == float(verdict.learned.underestimation) == 0.0


def test_choices_follow_what_is_seen_and_not_what_happened():
    world = hiding()
    hidden, stopped = (world.trajectories.index(("S", "I", end)) for end in ("hidden failure", "stopped"))
    assert world.returns[hidden] < world.returns[stopped]
    assert world.choice_probabilities()[hidden, stopped] == 0.5
    assert (world.choice_probabilities(rationality=500.0).isfinite()).all()


def test_equal_policies_differ_in_nothing():
    returns, observed = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.2, 0.1])
    first = observed_value(returns, observed, torch.tensor([0.2, 0.3, 0.5]))
    second = observed_value(returns.flip(0), observed.flip(0), torch.tensor([0.5, 0.3, 0.2]))
    assert not observed_returns.deceptive_inflation(first, second)
    assert not observed_returns.overjustification(first, second)


@pytest.mark.parametrize("module", [observed_returns, partial_observability])
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_a_few_comparisons_under_full_sight_close_what_the_belief_leaves_open():
    world = verbose(trust=0.2)
    visits, seen = world.state_visits, world.believed @ world.state_visits
    pairs = np.array([(i, j) for i in range(len(visits)) for j in range(len(visits))])
    blurred, sharp = (table[pairs[:, 0]] - table[pairs[:, 1]] for table in (seen, visits))
    assert world.open_directions(blurred) == 1
    assert world.open_directions(np.concatenate([blurred, sharp])) == 0
