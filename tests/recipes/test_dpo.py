"""Preference optimisation from comparisons to report with a tiny random model, and a killed run that ends the same."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import poise
from poise.errors import ConfigError, DataError
from poise.files import read_json, read_jsonl_tolerant
from poise.pipeline import preferences as pipeline_preferences
from poise.recipes import _preferences as preferences
from poise.recipes.dpo import LossName
from poise.train import preference
from poise.train.preference_feedback import ResponseFeedback

CLOCKS = {"minutes", "peak_rss_gib", "time", "seconds"}
KEYS = {
    *("reward_accuracy", "reward_accuracy_helpful", "reward_accuracy_safe", "held_out_reward_margin"),
    *("held_out_chosen_drift", "held_out_rejected_drift", "harm_rate_before", "harm_rate_after"),
    *("helpful_win_rate", "over_refusal_before", "over_refusal_after", "kl"),
}


def quick(folder: Path, **arguments: Any) -> tuple[Path, str]:
    printed = StringIO()
    with redirect_stdout(printed):
        poise.dpo(quick=True, folder=str(folder), **arguments)
    return folder, printed.getvalue()


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCKS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One quick run of constrained DPO, which needs every part."""
    return quick(tmp_path_factory.mktemp("runs") / "constrained", loss="constrained")


def test_the_summary_has_every_figure_and_is_the_last_printed_line(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    summary = read_json(folder / "summary.json")
    assert json.loads(printed.splitlines()[-1]) == summary
    for name in KEYS:
        assert summary[name]["n"] > 0
        assert summary[name]["low"] <= summary[name]["value"] <= summary[name]["high"], name
    assert summary["loss"] == "constrained"


def test_the_metrics_show_where_both_sides_drift(finished: tuple[Path, str]) -> None:
    rows = [row for row in read_jsonl_tolerant(finished[0] / "metrics.jsonl") if row["stage"] == "policy"]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert {"chosen_drift", "rejected_drift", "reward_accuracy", "reward_margin", "mean_cost"} <= row.keys()
    assert rows[0]["chosen_drift"] == pytest.approx(0.0, abs=1e-3)
    assert rows[0]["multiplier"] == pytest.approx(max(0.0, 2.0 + rows[0]["mean_cost"] + 0.5))  # from 2, limit -0.5


def test_the_page_stands_alone_and_the_policy_loads(finished: tuple[Path, str]) -> None:
    from poise.models.policy import load_policy

    page = (finished[0] / "report.html").read_text("utf-8")
    assert "Preference optimisation" in page
    assert "smoke test" in page
    policy = load_policy(str(finished[0] / "policy" / "model"))
    assert any(bool(p.any()) for name, p in policy.parameters().items() if "lora_B" in name)


def test_a_run_stopped_in_training_ends_as_one_that_was_not(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_at = preference.PreferenceTrainer.step_at

    def stopped(self: Any, index: int) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return step_at(self, index)

    monkeypatch.setattr(preference.PreferenceTrainer, "step_at", stopped)
    monkeypatch.setattr(pipeline_preferences, "fit", every_step_saved(pipeline_preferences.fit))
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "run", loss="constrained")
    monkeypatch.undo()
    folder, _ = quick(tmp_path / "run", loss="constrained")
    for name in ("summary.json", "policy/reference.json"):
        both = [without_clocks(read_json(run / name)) for run in (folder, finished[0])]
        assert both[0] == both[1], name
    rows = [[without_clocks(r) for r in read_jsonl_tolerant(run / "metrics.jsonl")] for run in (folder, finished[0])]
    assert rows[0] == rows[1]


def every_step_saved(fit: Callable[..., None]) -> Callable[..., None]:
    def saving(*positional: Any, **named: Any) -> None:
        fit(*positional, **named | {"save_every": 1})

    return saving


def test_unpaired_learning_runs_too(tmp_path: Path) -> None:
    folder, _ = quick(tmp_path / "run", loss="kto", criterion="safe")
    rows = [row for row in read_jsonl_tolerant(folder / "metrics.jsonl") if row["stage"] == "policy"]
    assert all(row["baseline"] >= 0 for row in rows)
    assert not (folder / "scores").exists()  # no score model is learned for a loss that asks none


def test_every_loss_can_be_named_and_made() -> None:
    assert set(typing.get_args(LossName)) == set(preferences.LOSSES)
    for name, choice in preferences.LOSSES.items():
        method = choice.make(beta=choice.beta)
        assert (method.feedback is ResponseFeedback) == (name == "kto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "ppo"}, "no loss 'ppo': choose dpo, cdpo"),
        ({"criterion": "kind"}, "no criterion 'kind': choose helpful"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"loss": "constrained", "limit": -1.2}, "limit is -1.2.*between -1 and 1, so that no policy meets it"),
        ({"loss": "constrained", "limit": 5.0}, "limit is 5.0.*between -1 and 1, so that every policy meets it"),
        ({"prompts_per_step": 0}, "prompts_per_step is 0"),
        ({"supervised_weight": -1.0}, "supervised_weight is -1.0"),
        ({"supervised_weight": 1.0, "loss": "kto"}, "needs a loss of pairs"),
        ({"data": "no-such-set"}, "no-such-set"),
    ],
)
def test_a_setting_that_cannot_work_is_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        poise.dpo(**({"quick": True, "folder": str(tmp_path / "run")} | arguments))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # before anything was trained


def written(folder: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(chosen: str = "chosen", rejected: str = "rejected", **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Bread {i}?", chosen: f"Bake it {i}.", rejected: "No."} | more for i in range(40)]


def test_plain_preferences_are_learned_and_measured_on_what_is_held_out(tmp_path: Path, capfd: Any) -> None:
    data = written(tmp_path, [*pairs(), {"prompt": 3, "chosen": "a", "rejected": "b"}])
    folder, printed = quick(tmp_path / "run", data=data, criterion="helpful")
    summary = json.loads(printed.splitlines()[-1])
    accuracy = summary["reward_accuracy"]
    assert 1 < accuracy["n"] < 20
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert not [name for name in summary if "harm" in name or "refusal" in name]
    page = (folder / "report.html").read_text("utf-8")
    assert "No answers were sampled or judged" in page
    assert "1 of 41 rows cannot be read" in capfd.readouterr().err
    assert len((folder / "quarantine.jsonl").read_text().splitlines()) == 1


def test_a_file_named_train_is_held_out_from_too(tmp_path: Path) -> None:
    _, printed = quick(tmp_path / "run", data=written(tmp_path, pairs(), "train.jsonl"), criterion="helpful")
    assert json.loads(printed.splitlines()[-1])["reward_accuracy"]["n"] > 1


def test_unpaired_verdicts_are_learned_by_kto_and_refused_by_losses_of_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": f"Bread {i}?", "completion": "Bake." if i % 2 else "No.", "label": i % 2 > 0} for i in range(40)]
    data = written(tmp_path, rows)
    folder, printed = quick(tmp_path / "run", data=data, loss="kto")
    assert json.loads(printed.splitlines()[-1])["reward_accuracy"]["n"] > 1
    (*_, last) = (row for row in read_jsonl_tolerant(folder / "metrics.jsonl") if row["stage"] == "policy")
    assert last["chosen_drift"] > last["rejected_drift"]
    with pytest.raises(DataError, match="judged one by one there, which --loss kto learns from"):
        quick(tmp_path / "pairs", data=data)


def test_columns_of_other_names_and_losses_with_a_reward_model_need_no_feedback_on_harm(tmp_path: Path) -> None:
    data = written(tmp_path, pairs("better", "worse", score=3))
    columns = "chosen=better,rejected=worse,ignore=score"
    _, printed = quick(tmp_path / "run", data=data, columns=columns, loss="mmpo", criterion="helpful")
    assert json.loads(printed.splitlines()[-1])["reward_accuracy"]["n"] > 1
    with pytest.raises(DataError, match="needs comparisons under safe or safety labels"):
        quick(tmp_path / "other", data=data, columns=columns, loss="constrained")
