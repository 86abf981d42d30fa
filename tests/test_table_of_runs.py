"""Several runs in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poise.cli.table import table_of
from poise.errors import ConfigError, RunError


def write_run(folder: Path, arms: dict[str, dict[str, float]], **document: Any) -> Path:
    folder.mkdir()
    names = dict.fromkeys(name for found in arms.values() for name in found)
    made = {
        "recipe": "sft",
        "arguments": {"data": "a.jsonl", "seeds": [0]},
        "arms": {arm: arm for arm in arms},
        "metrics": [{"name": name, "label": f"the {name}"} for name in names],
        "estimates": {
            arm: {
                name: {"value": value, "n": 9, "low": value - 0.5, "high": value + 0.5, "method": "t over 9 prompts"}
                for name, value in found.items()
            }
            for arm, found in arms.items()
        },
        **document,
    }
    (folder / "results.json").write_text(json.dumps(made))
    return folder


def test_figures_of_several_runs_stand_side_by_side_with_their_intervals(tmp_path: Path):
    one = write_run(tmp_path / "one", {"sft": {"loss": 2.0, "nats": 1.5}})
    two = write_run(tmp_path / "two", {"a": {"loss": 3.0}, "b": {"loss": 4.0}}, is_quick=True)
    head, _, *rows = table_of([one, two]).splitlines()
    assert [cell.rpartition("/")[2].strip() for cell in head.split("|")[2:-1]] == [
        "one",
        "two: a (smoke test)",
        "two: b (smoke test)",
    ]
    cells = [cell.strip() for cell in rows[0].replace("\\", "").split("|")[1:-1]]
    assert cells == ["the loss", "2.00 [1.50, 2.50] (n=9)", "3.00 [2.50, 3.50] (n=9)", "4.00 [3.50, 4.50] (n=9)"]
    assert rows[1].split("|")[3:5] == [" – ", " – "]
    assert "95 % intervals: t over 9 prompts." in rows[-1]


def test_what_the_runs_differ_in_is_said_and_metrics_can_be_chosen_by_name_or_label(tmp_path: Path):
    one = write_run(tmp_path / "one", {"sft": {"loss": 2.0, "nats": 1.5}})
    two = write_run(tmp_path / "two", {"sft": {"loss": 3.0, "nats": 2.5}}, arguments={"data": "b.jsonl", "seeds": [0]})
    text = table_of([one, two / "results.json"], metrics=["the loss"])
    assert "nats" not in text
    assert "They differ in data:" in text
    assert "seeds" not in text
    with pytest.raises(ConfigError, match="no run has a metric 'los': did you mean 'loss'"):
        table_of([one], metrics=["los"])


def test_a_rate_that_its_judge_cannot_measure_is_not_printed(tmp_path: Path):
    """As on the page of the run: a table must not show what the page withholds."""
    metrics = [
        {"name": "wins", "label": "wins", "judged_by": "judge"},
        {"name": "judge", "label": "pairs that the judge orders as people do"},
    ]
    run = write_run(tmp_path / "one", {"policy": {"wins": 0.9, "judge": 0.6}}, metrics=metrics)
    row = table_of([run], metrics=["wins"]).splitlines()[2]
    assert "not measurable (judge right on" in row
    assert "0.90" not in row


def test_a_run_without_results_is_an_error_that_says_what_to_give(tmp_path: Path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="has not finished"):
        table_of([tmp_path])
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(RunError, match="holds no results of a run"):
        table_of([tmp_path])
