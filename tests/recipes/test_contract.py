"""The contract suite: what it counts as reached, and that a stopped run goes on where it was."""

import json

import pytest

from poise.errors import ConfigError
from poise.recipes import _contract as suite
from poise.recipes.contract import contract
from poise.train import algorithms
from poise.train.algorithms import Algorithm


def attempt(share=1.0, excess=0.0):
    return suite.Attempt(share=share, excess=excess, multiplier=0.0)


def test_every_record_of_the_library_is_in_the_table():
    named = {name for name in vars(algorithms) if isinstance(getattr(algorithms, name), Algorithm)}
    assert set(suite.records_named("all")) == named >= {"PPO", "RLOO", "GRPO", "REMAX", "RISK_AVERSE"}
    assert list(suite.records_named("rloo+dr-grpo")) == ["RLOO", "DR_GRPO"]
    with pytest.raises(ConfigError, match="no algorithm TRPO"):
        suite.records_named("TRPO")


def test_one_bad_seed_is_a_miss():
    task = suite.tasks()["rate"]
    assert suite.reached(task, [attempt(), attempt(share=0.951, excess=0.019)])
    assert not suite.reached(task, [attempt(), attempt(share=0.949)])
    assert not suite.reached(task, [attempt(), attempt(excess=0.021)])
    assert suite._cell(task, [attempt(), attempt(share=0.9, excess=-0.1)]) == "**90.0%, +0.000**"


@pytest.mark.parametrize("name", list(suite.tasks()))
def test_the_best_policy_of_a_task_reaches_it(name):
    task = suite.tasks()[name]
    assert task.value(task.bandit, task.best.policy) == pytest.approx(task.best_value)
    assert task.excess(task.best.policy) == pytest.approx(0.0, abs=1e-9)
    uniform = task.bandit.uniform()
    assert task.value(task.bandit, uniform) < 0.95 * task.best_value or task.excess(uniform) > task.tolerance


@pytest.mark.parametrize("task", ["unconstrained", "penalty", "mean", "rate", "cvar"])
def test_leave_one_out_reaches_every_optimum(task):
    found = suite.attempt("RLOO", task, 0, 200)
    assert suite.reached(suite.tasks()[task], [found]), found


def test_the_worst_alone_miss_a_limit_that_the_worst_and_some_others_keep():
    """Why there is a record of its own for limits: the other one stays while its multiplier climbs."""
    stuck, found = (suite.attempt(name, "mean", 0, 200) for name in ("RISK_AVERSE", "RISK_AVERSE_UNDER_LIMITS"))
    task = suite.tasks()["mean"]
    assert stuck.excess > task.tolerance and stuck.multiplier > 1.5 * task.best.multiplier
    assert suite.reached(task, [found])


def test_a_quick_run_prints_the_table_writes_the_page_and_is_not_repeated(tmp_path, capsys):
    page = tmp_path / "page.md"
    settings = {"algorithms": "RLOO+PPO", "workers": 1, "folder": str(tmp_path / "run"), "quick": True}
    contract(**settings, page=str(page))
    printed = capsys.readouterr().out
    text = page.read_text()
    assert text in printed
    assert text == (tmp_path / "run" / "contract.md").read_text()
    assert "| RLOO |" in text and "| PPO |" in text
    summary = json.loads(printed.splitlines()[-1])
    assert summary["cells"] == 2 * len(suite.tasks())
    before = (tmp_path / "run" / "rloo" / "stage.json").stat().st_mtime_ns
    contract(**settings)
    assert (tmp_path / "run" / "rloo" / "stage.json").stat().st_mtime_ns == before
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["worst_share"] == summary["worst_share"]
