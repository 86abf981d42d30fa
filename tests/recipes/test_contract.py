"""The contract suite: what it counts as reached, and that leave-one-out reaches all of it."""

import pytest

from poise.recipes.contract import RECORDS, SHARE, contract, learn, reach, tasks
from poise.train import algorithms
from poise.train.algorithms import RISK_AVERSE, RISK_AVERSE_UNDER_LIMITS, RLOO, Algorithm
from poise.train.averaging import MeanOfLast


def test_every_record_of_the_library_is_an_arm():
    named = {name for name in vars(algorithms) if isinstance(getattr(algorithms, name), Algorithm)}
    assert set(contract.build().arms) == set(RECORDS) == named >= {"PPO", "RLOO", "GRPO", "REMAX", "RISK_AVERSE"}


@pytest.mark.parametrize("name", tasks())
def test_the_best_policy_of_a_task_reaches_it_and_playing_at_random_does_not(name):
    task = tasks()[name]
    assert task.excess(task.best.policy) == pytest.approx(0.0, abs=1e-9)
    uniform = task.bandit.uniform()
    assert task.value(uniform) < 0.95 * task.value(task.best.policy) or task.excess(uniform) > task.tolerance


def test_leave_one_out_reaches_every_optimum():
    assert learn(RLOO, 0, 200).metrics["reached"] == len(tasks())


@pytest.mark.parametrize("average", [0.9, MeanOfLast(100)])
def test_an_average_of_the_weights_reaches_the_optimum_and_keeps_the_limit(average):
    for name in ("mean", "rate", "cvar"):
        task = tasks()[name]
        share, excess, _ = reach(RLOO, task, 0, 200, average=average)
        assert share >= SHARE, name
        assert excess <= task.tolerance, name


def test_the_worst_alone_miss_a_limit_that_the_worst_and_some_others_keep():
    """Why there is a record of its own for limits: the other one stays while its multiplier climbs."""
    task = tasks()["mean"]
    stuck, found = (reach(record, task, 0, 200) for record in (RISK_AVERSE, RISK_AVERSE_UNDER_LIMITS))
    (_, missed, multiplier), (share, kept, _) = stuck, found
    assert missed > task.tolerance and multiplier > 1.5 * task.best.multiplier
    assert share > 0.95 and kept <= task.tolerance
