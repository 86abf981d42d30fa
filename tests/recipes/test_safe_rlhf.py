"""Safe RLHF from feedback to report with a tiny random model: every stage runs, and a killed run ends the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import poise
from poise.data.rollouts import read_comparison
from poise.errors import ConfigError, DataError, RunError
from poise.files import plain, read_json, read_jsonl_tolerant
from poise.recipes import _stages as stages
from poise.train.objectives import Lagrangian
from poise.types import Comparison, Origin, Prompt

KEYS = {
    *("harm_rate_before", "harm_rate_after", "helpful_win_rate", "over_refusal_before", "over_refusal_after"),
    *("mean_cost", "limit", "kl", "minutes", "peak_rss_gib"),
}
CLOCKS = {"minutes", "peak_rss_gib", "time", "seconds", "tokens_per_s"}
OBJECTIVES = ("lagrangian", "shaping", "reward-only", "cost-only")


@dataclass(frozen=True)
class Finished:
    """A run that ended, and what it printed."""

    folder: Path
    printed: str

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.folder / "summary.json")


def quick(folder: Path, **arguments: Any) -> Finished:
    printed = StringIO()
    with redirect_stdout(printed):
        poise.safe_rlhf(quick=True, folder=str(folder), **arguments)
    return Finished(folder, printed.getvalue())


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCKS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One unbroken quick run, shared by the tests that only look at it."""
    return quick(tmp_path_factory.mktemp("runs") / "unbroken")


@pytest.fixture
def without_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the other objectives, which the shared run has trained."""
    monkeypatch.setitem(vars(poise.safe_rlhf)["brief"], "compare_steps", 0)


def test_the_summary_has_every_figure(finished: Finished) -> None:
    summary = finished.summary
    assert summary.keys() >= KEYS
    for name in KEYS - {"limit", "minutes", "peak_rss_gib"}:
        estimate = summary[name]
        assert estimate["n"] > 0
        assert estimate["low"] <= estimate["value"] <= estimate["high"], name
    assert summary["minutes"] > 0
    assert summary["peak_rss_gib"] > 0


def test_the_last_printed_line_is_the_summary(finished: Finished) -> None:
    assert json.loads(finished.printed.splitlines()[-1]) == finished.summary


def test_the_report_is_one_page_that_needs_nothing_else(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text("utf-8")
    assert "Safe RLHF" in page
    assert "smoke test" in page  # figures of a random model are marked as such
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]+)\)|@import\s+(\S+)""", page)
    assert [name for names in loaded for name in names if name and not name.startswith(("#", "data:"))] == []


def test_the_report_compares_all_objectives(finished: Finished) -> None:
    rows = read_json(finished.folder / "report.json")["comparison"]
    assert {row["objective"] for row in rows} == {"start", *OBJECTIVES}


def test_the_policy_loads_for_use(finished: Finished) -> None:
    from poise.models.policy import load_policy

    policy = load_policy(str(finished.folder / "policy-lagrangian" / "model"))
    assert policy.lora is not None
    assert any(bool(parameter.any()) for name, parameter in policy.parameters().items() if "lora_B" in name)


def test_resuming_a_finished_run_redoes_nothing(finished: Finished) -> None:
    kept = ("metrics.jsonl", "samples.jsonl", "evaluate-final/rollouts.jsonl", "policy-lagrangian/stage.json")
    before = {
        name: ((finished.folder / name).read_bytes(), (finished.folder / name).stat().st_mtime_ns) for name in kept
    }
    summary = finished.summary
    again = quick(finished.folder)
    after = {
        name: ((finished.folder / name).read_bytes(), (finished.folder / name).stat().st_mtime_ns) for name in kept
    }
    assert after == before
    assert without_clocks(again.summary) == without_clocks(summary)


DAMAGED = {
    "evaluate-final/rollouts.jsonl": 0.5,
    "policy-lagrangian/model/adapter_model.safetensors": 0.9,
    "judge/model/score_head.safetensors": 0.9,
    "features/part-00001.safetensors": 0.9,
    "metrics.jsonl": 0.2,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_bit_that_changed_in_a_finished_run_is_an_error(finished: Finished, tmp_path: Path, name: str) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    data = bytearray((tmp_path / "run" / name).read_bytes())
    data[int(len(data) * DAMAGED[name])] ^= 4
    (tmp_path / "run" / name).write_bytes(data)
    with pytest.raises(RunError, match=f"{name.rpartition('/')[2]}.* (damaged|not JSON).*(copy|[Dd]elete)"):
        quick(tmp_path / "run")


def test_a_second_round_learns_from_new_annotations(tmp_path: Path, without_comparison: None) -> None:
    run = quick(tmp_path / "run", rounds=2)
    trained = {row["stage"] for row in read_jsonl_tolerant(run.folder / "metrics.jsonl")}
    assert {"scores", "scores-2", "policy-lagrangian", "policy-lagrangian-2"} <= trained
    assert read_json(run.folder / "annotations" / "stage.json")["rows"]
    rows = {name: read_json(run.folder / name / "stage.json")["rows"] for name in ("scores", "scores-2")}
    assert rows["scores-2"] > rows["scores"]
    assert run.summary.keys() >= KEYS


def write_own_data(path: Path, num_prompts: int, **columns: Any) -> Path:
    """Comparisons for help and for harm without splits: an answer that helps and a refusal that is safe."""
    rows = []
    for number in range(num_prompts):
        answer, refusal = f"Do this, then that {number}.", f"I can't help with that {number}."
        own = {name: values[number % len(values)] for name, values in columns.items()}
        prompt = {"prompt": f"Question number {number}?", **own}
        rows.append(prompt | {"chosen": answer, "rejected": refusal, "criterion": "helpful"})
        rows.append(
            prompt
            | {"chosen": refusal, "rejected": answer, "criterion": "safe"}
            | {"chosen_safe": True, "rejected_safe": number % 2 == 0}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_data_without_splits_of_its_own_is_split(tmp_path: Path, without_comparison: None) -> None:
    kinds = ("harmful", "benign", "look_alike")
    run = quick(tmp_path / "run", data=str(write_own_data(tmp_path / "own.jsonl", 90, kind=kinds)))
    assert all(run.summary[name] is not None for name in KEYS)


def test_prompts_of_unknown_kind_are_trained_on_but_not_evaluated(tmp_path: Path, without_comparison: None) -> None:
    own = write_own_data(tmp_path / "own.jsonl", 90)
    with pytest.raises(DataError, match=r"says its kind.*--data starter"):
        quick(tmp_path / "alone", data=str(own))
    run = quick(tmp_path / "joined", data=f"starter+{own}")
    kinds = {row["prompt"]["tags"]["kind"] for row in read_jsonl_tolerant(run.folder / "evaluate-final/rollouts.jsonl")}
    assert kinds == {"harmful", "benign", "look_alike"}
    assert "do not say their kind" in (run.folder / "report.html").read_text("utf-8")


class CountingAnnotator:
    """Prefers the first response, and counts how often it is asked."""

    asked = 0

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> Comparison:
        self.asked += 1
        origin = Origin(kind="human", name="Ada", order=(1, 0))
        return Comparison(prompt=prompt, responses=tuple(responses), winner=0, origin=origin)


def test_a_resumed_run_asks_its_annotators_nothing_again(tmp_path: Path, without_comparison: None) -> None:
    ada = CountingAnnotator()
    first = quick(tmp_path / "run", rounds=2, annotators=[ada])
    (first.folder / "policy-lagrangian-2" / "stage.json").unlink()  # as if it had been stopped there
    (first.folder / "evaluate-final" / "stage.json").unlink()
    asked, summary = ada.asked, first.summary
    assert 0 < asked == len(read_json(first.folder / "annotations" / "stage.json")["rows"])
    resumed = quick(tmp_path / "run", rounds=2, annotators=[ada])
    assert ada.asked == asked
    assert without_clocks(resumed.summary) == without_clocks(summary)


def test_a_comparison_is_read_back_as_it_was() -> None:
    prompt = Prompt.of("Why?", kind="harmful", categories=["theft"])
    origin = Origin(kind="human", name="Ada", order=(1, 0))
    flags = {"safe": (True, False), "categories": ((), ("theft",))}
    comparison = Comparison(prompt=prompt, responses=("a", "b"), criterion="safe", winner=0, origin=origin, **flags)
    others = {"ranking": (0, 1)}, {"winner": None, "probability": 0.25, "safe": None, "categories": ()}
    for each in (comparison, *(replace(comparison, **other) for other in others)):
        assert read_comparison(json.loads(json.dumps(plain(each)))) == each


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_every_objective_can_be_the_main_one(objective: str, tmp_path: Path, without_comparison: None) -> None:
    run = quick(tmp_path / "run", objective=objective)
    assert run.summary["objective"] == objective
    assert [row["objective"] for row in read_json(run.folder / "report.json")["comparison"]] == ["start", objective]
    assert not any("multiplier" in row for row in read_jsonl_tolerant(run.folder / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "kindness"}, "kindness.*lagrangian, shaping"),
        ({"steps": -1, "quick": False}, "steps is -1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"lr": -1e-3}, "lr is -0.001"),
        ({"supervised_steps": -2}, "supervised_steps is -2"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1"),
        ({"ptx_coef": -0.1}, "ptx_coef is -0.1"),
        ({"ptx_start": -0.1}, "ptx_start is -0.1"),
        ({"limit": -1.0}, "limit is -1.0.*no policy meets it"),
        ({"limit": 5.0}, r"limit is 5.0.*between -1 and 1, so that every policy meets it.*at most 1"),
        ({"limit": 1.01}, "every policy meets it"),
        ({"limit": float("nan")}, "at_most is nan"),
        ({"limit": float("inf")}, "at_most is inf"),
        ({"limit": -0.95, "margin": 0.12}, "less a margin of 0.12: .*choose one above -0.88"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"data": "no-such-set"}, "no-such-set"),
    ],
)
def test_a_setting_that_cannot_work_is_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        poise.safe_rlhf(**({"quick": True, "folder": str(tmp_path / "run"), "model": "random:llama"} | arguments))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # before anything was trained


def test_training_holds_the_cost_a_margin_below_the_limit(finished: Finished) -> None:
    arguments = read_json(finished.folder / "run.json")["arguments"] | {"limit": -0.3, "margin": 0.2}
    objective = stages.objective_named("lagrangian", stages.Settings.of(arguments))
    assert isinstance(objective, Lagrangian)
    assert [limit.at_most for limit in objective.limits] == pytest.approx([-0.5])
    curve = read_json(finished.folder / "report.json")["curves"]
    rows = [row for row in read_jsonl_tolerant(finished.folder / "metrics.jsonl") if "excess" in row]
    assert curve[0]["cost"] == pytest.approx(rows[0]["excess"] - 0.5 - 0.12)


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "poise.cli", "run", "safe-rlhf", "--quick", "--folder", str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "POISE_DEBUG": "1"}
    )


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, stage: str) -> None:
    """Return as soon as a stage has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        if any(row["stage"] == stage for row in read_jsonl_tolerant(folder / "metrics.jsonl")):
            return
        time.sleep(0.02)
    raise AssertionError(f"{stage} logged no step within two minutes")


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that was killed twice: while it learned the scores, and while it trained the policy."""
    folder = tmp_path / "killed"
    for stage in ("scores", "policy-lagrangian"):
        process = start(folder)
        try:
            wait_for_step(process, folder, stage)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        assert not (folder / "summary.json").exists()
    yield folder


def test_a_killed_run_ends_as_one_that_was_not(killed: Path, finished: Finished) -> None:
    resumed = quick(killed)
    assert without_clocks(resumed.summary) == without_clocks(finished.summary)
    for name in ("metrics.jsonl", "samples.jsonl", "evaluate-final/rollouts.jsonl"):
        rows = [[without_clocks(row) for row in read_jsonl_tolerant(run / name)] for run in (killed, finished.folder)]
        assert rows[0] == rows[1], name


def test_an_adapter_names_its_base_by_a_path_that_holds_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_comparison: None
) -> None:
    monkeypatch.chdir(tmp_path)
    quick(Path("run"), supervised_steps=1)
    base = read_json(tmp_path / "run" / "policy-lagrangian" / "model" / "adapter_config.json")
    assert Path(base["base_model_name_or_path"]) == tmp_path.resolve() / "run" / "supervised" / "model"
