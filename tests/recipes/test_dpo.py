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
from poise.cli import main
from poise.errors import ConfigError, DataError
from poise.experiment.planning import plan_stages
from poise.files import read_json, read_jsonl_tolerant
from poise.pipeline import preferences as pipeline_preferences
from poise.plan.compute import Compute
from poise.plan.machines import named_machine
from poise.plan.model_sizes import MODEL_SIZES
from poise.plan.work import Tokens
from poise.recipes.dpo import LossName
from poise.train import preference
from poise.train.preference_feedback import ResponseFeedback
from poise.train.preference_names import LOSSES

CLOCKS = {"minutes", "peak_rss_gib", "time", "seconds", "results"}  # and where a run is
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


def run_copy(folder: Path, *words: str) -> str:
    """A quick run of a copy of the recipe in another folder; what it printed."""
    mine, printed = str(folder.with_name("mine.py")), StringIO()
    with redirect_stdout(printed):
        for command in (["copy", "dpo", mine], ["run", mine, "--quick", *words, "--folder", str(folder)]):
            with pytest.raises(SystemExit) as stop:
                main(command)
            assert not stop.value.code
    return printed.getvalue()


def updates(folder: Path, loss: str) -> list[dict[str, Any]]:
    rows = read_jsonl_tolerant(folder / f"{loss}-seed-0" / "metrics.jsonl")
    return [without_clocks(row) for row in rows if row["stage"] == "policy"]


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCKS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One quick run, by a copy, of constrained DPO, which needs every part, beside plain DPO."""
    folder = tmp_path_factory.mktemp("runs") / "constrained"
    return folder, run_copy(folder, "--loss", "constrained,dpo")


def test_the_summary_has_every_figure_and_is_the_last_printed_line(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    summary = read_json(folder / "summary.json")
    assert json.loads(printed.splitlines()[-1]) == summary
    for name in KEYS:
        assert summary[name]["n"] > 0
        assert summary[name]["low"] <= summary[name]["value"] <= summary[name]["high"], name
    assert summary["loss"] == "constrained"


def test_the_metrics_show_where_both_sides_drift(finished: tuple[Path, str]) -> None:
    rows = updates(finished[0], "constrained")
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
    policy = load_policy(str(finished[0] / "constrained-seed-0" / "policy" / "model"))
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
        quick(tmp_path / "run", loss="constrained,dpo")
    monkeypatch.undo()
    folder, _ = quick(tmp_path / "run", loss="constrained,dpo")
    for name in ("summary.json", "constrained-seed-0/policy/reference.json"):
        both = [without_clocks(read_json(run / name)) for run in (folder, finished[0])]
        assert both[0] == both[1], name
    for name in ("seed-0", "constrained-seed-0", "dpo-seed-0"):
        logs = [read_jsonl_tolerant(run / name / "metrics.jsonl") for run in (folder, finished[0])]
        assert [without_clocks(row) for row in logs[0]] == [without_clocks(row) for row in logs[1]], name


def test_losses_stand_beside_one_another_and_share_all_but_the_policy(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    results = read_json(folder / "results.json")
    assert list(results["arms"]) == ["constrained", "dpo"]
    accuracies = [results["estimates"][arm]["reward_accuracy"] for arm in results["arms"]]
    assert accuracies[0]["value"] != accuracies[1]["value"]
    rows = [row["objective"] for row in read_json(folder / "report.json")["comparison"]]
    assert rows == ["start", "constrained", "dpo"]
    assert not [stage for stage in ("judge", "scores", "model") if list(folder.glob(f"*-seed-0/{stage}"))]
    assert updates(folder, "constrained")[0]["loss"] != updates(folder, "dpo")[0]["loss"]


def test_the_page_says_what_the_judge_and_the_signal_are_worth(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "dpo.md").read_text("utf-8")
    worth = read_json(finished[0] / "seed-0" / "judge" / "stage.json")
    worth = worth.get("result", worth)["accuracy"]["cost_sign_accuracy"]
    assert f"| judge: cost sign accuracy | {100 * worth['value']:.1f} %" in page
    assert "| signal: reward pair accuracy |" in page
    assert "than chance" in page


def every_step_saved(fit: Callable[..., None]) -> Callable[..., None]:
    def saving(*positional: Any, **named: Any) -> None:
        fit(*positional, **named | {"save_every": 1})

    return saving


def test_unpaired_learning_runs_too(tmp_path: Path) -> None:
    folder, _ = quick(tmp_path / "run", loss="kto", criterion="safe")
    rows = updates(folder, "kto")
    assert rows and all(row["baseline"] >= 0 for row in rows)
    assert not list(folder.glob("*/scores"))  # no score model is learned for a loss that asks none


def test_every_loss_can_be_named_and_made() -> None:
    assert set(typing.get_args(LossName)) == set(LOSSES)
    for name, choice in LOSSES.items():
        method = choice.method()
        assert (method.feedback is ResponseFeedback) == (name == "kto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "ppo"}, "no loss 'ppo': choose dpo, cdpo"),
        ({"loss": "dpo,dpo"}, "loss is dpo,dpo: give at least one, without duplicates"),
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
        quick(tmp_path / "run", **arguments)
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))  # before anything was trained


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
    assert len((folder / "seed-0" / "quarantine.jsonl").read_text().splitlines()) == 1
    (claim,) = summary["claims"]
    assert claim["outcome"] in ("holds", "not shown", "contradicted")


def test_a_file_named_train_is_held_out_from_too(tmp_path: Path) -> None:
    _, printed = quick(tmp_path / "run", data=written(tmp_path, pairs(), "train.jsonl"), criterion="helpful")
    assert json.loads(printed.splitlines()[-1])["reward_accuracy"]["n"] > 1


def test_unpaired_verdicts_are_learned_by_kto_and_refused_by_losses_of_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": f"Bread {i}?", "completion": "Bake." if i % 2 else "No.", "label": i % 2 > 0} for i in range(40)]
    data = written(tmp_path, rows)
    folder, printed = quick(tmp_path / "run", data=data, loss="kto")
    assert json.loads(printed.splitlines()[-1])["reward_accuracy"]["n"] > 1
    (*_, last) = updates(folder, "kto")
    assert last["chosen_drift"] > last["rejected_drift"]
    with pytest.raises(DataError, match="judged one by one, which only --loss kto can learn from"):
        quick(tmp_path / "pairs", data=data)


def test_columns_of_other_names_and_losses_with_a_reward_model_need_no_feedback_on_harm(tmp_path: Path) -> None:
    data = written(tmp_path, pairs("better", "worse", score=3))
    columns = "chosen=better,rejected=worse,ignore=score"
    _, printed = quick(tmp_path / "run", data=data, columns=columns, loss="mmpo", criterion="helpful")
    assert json.loads(printed.splitlines()[-1])["reward_accuracy"]["n"] > 1
    with pytest.raises(DataError, match="needs comparisons under safe or safety labels"):
        quick(tmp_path / "other", data=data, columns=columns, loss="constrained")


def test_too_few_rows_to_hold_any_out_are_not_measured_and_the_claim_says_so(tmp_path: Path) -> None:
    data = written(tmp_path, pairs()[1:2])  # which falls on the side that is learned from
    folder, printed = quick(tmp_path / "run", data=data, criterion="helpful")
    assert json.loads(printed.splitlines()[-1])["claims"] == []
    page = (folder / "dpo.md").read_text("utf-8")
    untested = "dpo ranks held-out pairs better than chance"
    assert f"Not tested, because what it needs was not measured, or not on the same prompts: {untested}" in page
    assert "No feedback was held out" in (folder / "report.html").read_text("utf-8")


def planned(**given: Any) -> list[str]:
    costs = Compute(model=MODEL_SIZES["7b"], machine=named_machine("h100x8"))
    return [stage.name for stage in plan_stages(poise.dpo, {"most_prompts": 24, **given}, costs, Tokens())]


def test_a_plan_has_a_judge_where_the_run_has_one_and_score_models_where_a_loss_asks_one(tmp_path: Path) -> None:
    with_judge = planned(loss=("dpo", "mmpo"))
    assert {"seed-0/judge", "seed-0/evaluate", "seed-0/scores", "mmpo-seed-0/policy"} <= set(with_judge)
    assert {"dpo-seed-0/policy", "dpo-seed-0/held-out-pairs", "dpo-seed-0/evaluate"} <= set(with_judge)
    plain = planned(data=written(tmp_path, pairs()), criterion="helpful")
    assert set(plain) == {"seed-0/model", "dpo-seed-0/policy", "dpo-seed-0/held-out-pairs"}
