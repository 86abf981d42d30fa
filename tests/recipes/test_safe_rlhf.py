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
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import poise
from poise.checksums import read_sealed
from poise.cli import main
from poise.data.rollouts import read_comparison
from poise.errors import ConfigError, DataError, RunError
from poise.files import read_json, read_jsonl_tolerant, to_jsonable
from poise.functional.statistics import PlattScale
from poise.pipeline.limits import LIMITS, cost_bound, fitted_to, read_limits, under_limits
from poise.types import Comparison, Origin, Prompt

KEYS = {
    *("harm_rate_base", "harm_rate_before", "harm_rate_after", "helpful_win_rate"),
    *("over_refusal_base", "over_refusal_before", "over_refusal_after"),
    *("mean_cost", "limit", "kl", "minutes", "peak_rss_gib"),
}
CLOCKS = {"results", "minutes", "peak_rss_gib", "time", "seconds", "tokens_per_s"}
ARMS = ("base", "sft", "lagrangian")
MAIN, COMMON = "lagrangian-seed-0", "seed-0"  # the part of the main arm, and what all arms share


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


def run_copy(folder: Path, *words: str) -> str:
    """A quick run of a copy of the recipe in another folder; what it printed."""
    mine, printed = str(folder.with_name("mine.py")), StringIO()
    with redirect_stdout(printed):
        for command in (["copy", "safe-rlhf", mine], ["run", mine, "--quick", *words, "--folder", str(folder)]):
            with pytest.raises(SystemExit) as stop:
                main(command)
            assert not stop.value.code
    return printed.getvalue()


def without_clocks(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLOCKS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One unbroken quick run of a copy, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    return Finished(folder, run_copy(folder))


SEVERAL = ("cost <= -0.2", "rate(cost) <= 0.02", "cvar0.5(cost) <= 0.5", "refusal@benign <= 0.05")


@pytest.fixture(scope="module")
def from_the_base(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Reinforcement alone, without demonstrations before it, under several limits."""
    folder = tmp_path_factory.mktemp("runs") / "from-the-base"
    return quick(folder, limit=SEVERAL, algorithm="dr-grpo", warmstart_steps=0, average=0.0, validate_every=0)


ALONE = {"arms": ("lagrangian",)}


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


def test_every_table_has_a_row_for_the_base_the_start_and_the_policy(finished: Finished) -> None:
    page = read_json(finished.folder / "report.json")
    assert [row["objective"] for row in page["comparison"]] == list(ARMS)
    assert all(row["harm_rate"] for row in page["comparison"])
    harm = next(row for row in page["headline"] if row["metric"] == "harm_rate")
    assert [stage["name"] for stage in page["stages"]] == list(harm["values"]) == ["base", "start", "final"]
    assert all(value["n"] for value in harm["values"].values())
    assert [row["label"] for row in page["table"]["rows"]] == ["base model", "SFT start", "final policy"]
    assert all(row["values"].keys() == {"base", "start", "final"} for row in page["categories"])
    assert page["scatter"].keys() == {"base", "start", "final"}
    assert all(sample["answers"].keys() == {"base", "start", "final"} for sample in page["samples"])
    found = read_json(finished.folder / "results.json")["estimates"]
    assert list(found) == list(ARMS)
    assert all("harm" in found[arm] for arm in ARMS)


def test_a_difference_is_paired_with_the_start_of_the_same_stage_and_with_the_base(finished: Finished) -> None:
    found = read_json(finished.folder / "results.json")["estimates"]
    pages = {arm: read_json(finished.folder / f"{arm}-seed-0" / "report.json") for arm in ARMS}
    harm = {arm: next(row for row in pages[arm]["headline"] if row["metric"] == "harm_rate") for arm in ARMS}
    values = {arm: row["values"] for arm, row in harm.items()}
    assert values["sft"]["start"] == values["base"]["final"] == values["lagrangian"]["base"]
    assert values["lagrangian"]["start"] == values["sft"]["final"]
    assert harm["lagrangian"]["differences"].keys() == {"start", "base"}
    assert {"harm_less_start", "harm_less_base", "plain_less_start"} <= found["lagrangian"].keys()
    assert not any("less" in name for name in found["base"])
    change, side = found["lagrangian"]["harm_less_start"], found["lagrangian"]["harm"]["value"]
    assert change["value"] == pytest.approx(100 * (side - found["sft"]["harm"]["value"]))
    assert change["method"].startswith("gained less lost")
    assert found["lagrangian"]["wins"] != found["lagrangian"]["wins_base"]


def test_the_same_sentence_stands_first_in_report_summary_results_and_on_the_screen(finished: Finished) -> None:
    text = finished.summary["verdict"]
    page = read_json(finished.folder / "report.json")
    assert page["verdict"]["text"] == read_json(finished.folder / "results.json")["verdict"] == text
    assert text in (finished.folder / "safe-rlhf.md").read_text("utf-8")
    lines = finished.printed.splitlines()
    closing = " ".join(lines[len(lines) - 40 : -1])
    assert text in closing
    assert closing.rindex("final policy") > closing.rindex(text)  # the table of stages, then the line of JSON
    assert re.match(r"(The limit|Whether the limit|\d of \d|All \d|None of \d)", text)
    assert "against the SFT start" in text
    assert "gainst the base model" in finished.summary["verdict_against_first"]


def test_limits_are_measured_on_prompts_that_training_never_saw(finished: Finished) -> None:
    limits = finished.summary["limits_on_unseen_prompts"]
    assert limits
    for each in limits:
        assert each["found"]["low"] <= each["found"]["value"] <= each["found"]["high"]
        is_met, is_broken = each["found"]["high"] <= each["at_most"], each["found"]["low"] > each["at_most"]
        assert each["outcome"] == ("met" if is_met else "not met" if is_broken else "not told")
        assert each["target"] <= each["at_most"]


def test_the_page_says_what_it_takes_to_do_the_run_again(finished: Finished) -> None:
    again = read_json(finished.folder / "report.json")["again"]
    assert {"command", "commit", "versions", "machine", "threads", "seconds", "peak memory"} <= again.keys()
    assert any(name.startswith("model ") and "sha256 " in value for name, value in again.items())
    assert again["or"].startswith("poise run --from ")


def test_collapse_is_a_metric_of_the_trial(finished: Finished) -> None:
    trial = read_json(finished.folder / "results.json")["trials"]["lagrangian"][0]["metrics"]
    names = ("commonest", "duplicates", "distinct_2", "response_length")
    assert {f"{name}{side}" for name in names for side in ("", "_start", "/harmful", "/benign_start")} <= trial.keys()


def test_a_policy_starts_at_the_model_that_its_kl_is_charged_to(finished: Finished) -> None:
    """At the first step nothing has been learned, whatever the start had learned from demonstrations."""
    first = next(row for row in read_jsonl_tolerant(finished.folder / MAIN / "metrics.jsonl") if "sequence_kl" in row)
    assert abs(first["sequence_kl"]) < 1e-3
    sft = read_json(finished.folder / "sft-seed-0" / "report.json")["headline"]
    assert (
        next(row for row in sft if row["metric"] == "kl")["values"]["final"]["value"] > 0.001
    )  # it moved away from the base


def test_the_policy_loads_for_use(finished: Finished) -> None:
    from poise.models.policy import load_policy

    policy = load_policy(str(finished.folder / MAIN / "policy-1" / "model"))
    assert policy.lora is not None
    assert any(bool(parameter.any()) for name, parameter in policy.parameters().items() if "lora_B" in name)


def test_the_kept_policy_is_chosen_on_prompts_that_nothing_but_the_judge_learns_from(
    finished: Finished, of_mean_cost: Finished, from_the_base: Finished
) -> None:
    kept = stage_result(finished.folder / MAIN / "policy-1")
    assert kept["kept"] == "best on validation"
    assert [each["limit"] for each in kept["validation"]["limits"]] == ["cost_rate_may_harm", "refusal_harmless"]
    of_mean = stage_result(of_mean_cost.folder / MAIN / "policy-1")["validation"]["limits"]
    assert [each["at_most"] for each in of_mean] == [-0.5]  # the limit, not what training holds
    assert stage_result(from_the_base.folder / MAIN / "policy-1")["kept"] in ("last", "best feasible")


def test_resuming_a_finished_run_redoes_nothing(finished: Finished) -> None:
    kept = [f"{MAIN}/{name}" for name in ("metrics.jsonl", "samples.jsonl", "evaluate/rollouts.jsonl", "stage.json")]
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
    f"{MAIN}/evaluate/rollouts.jsonl": 0.5,
    f"{MAIN}/policy-1/model/adapter_model.safetensors": 0.9,
    f"{MAIN}/metrics.jsonl": 0.2,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_bit_that_changed_in_a_finished_run_is_an_error(finished: Finished, tmp_path: Path, name: str) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    data = bytearray((tmp_path / "run" / name).read_bytes())
    data[int(len(data) * DAMAGED[name])] ^= 4
    (tmp_path / "run" / name).write_bytes(data)
    with pytest.raises(RunError, match=f"{name.rpartition('/')[2]}.* (damaged|not JSON).*(copy|[Dd]elete)"):
        quick(tmp_path / "run")


def test_a_later_round_learns_from_answers_to_prompts_that_nothing_before_it_had_seen(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", rounds=2, annotator="person:0.2", **ALONE)
    part = run.folder / MAIN
    trained = {row["stage"] for row in read_jsonl_tolerant(part / "metrics.jsonl")}
    assert {"policy-1", "scores-2", "policy-2", "person"} <= trained
    asked = [{row["id"] for row in read_jsonl_tolerant(part / f"annotations-{n}" / "asked.jsonl")} for n in (1, 2)]
    assert asked[0] and asked[1] and not asked[0] & asked[1]
    sampled = read_jsonl_tolerant(part / "samples.jsonl")
    before = {row["prompt"]["id"] for row in sampled if row["stage"] == "policy-1"}
    assert before and not before & (asked[0] | asked[1])
    said = stage_result(part / "annotations-1")
    assert {row["criterion"] for row in said["rows"]} == {"helpful", "safe"}
    assert said["labels"] and all(row["safe"] is None for row in said["rows"])
    rows = [stage_result(folder)["rows"] for folder in (run.folder / COMMON / "scores", part / "scores-2")]
    assert rows[1] > rows[0]
    assert [row["label"] for row in run.summary["rounds"]["rows"]] == ["base model", "SFT start", "round 1", "round 2"]
    assert 'id="rounds"' in (run.folder / "report.html").read_text("utf-8")


def stage_result(folder: Path) -> dict[str, Any]:
    return read_sealed(folder / "stage.json", remedy="")[0]


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


@pytest.fixture(scope="module")
def of_mean_cost(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The paper's limit, a mean cost, on rows of one's own that say of no split."""
    folder = tmp_path_factory.mktemp("own")
    own = write_own_data(folder / "own.jsonl", 90, kind=("harmful", "benign", "look_alike"))
    return quick(folder / "run", data=str(own), limit=-0.5, kl_per_token=True, **ALONE)


def test_data_without_splits_of_its_own_is_split(of_mean_cost: Finished) -> None:
    assert all(of_mean_cost.summary[name] is not None for name in KEYS)


def test_prompts_of_unknown_kind_are_trained_on_but_not_evaluated(tmp_path: Path) -> None:
    own = write_own_data(tmp_path / "own.jsonl", 90)
    with pytest.raises(DataError, match=r"says its kind.*--data starter"):
        quick(tmp_path / "alone", data=str(own))
    run = quick(tmp_path / "joined", data=f"starter+{own}", **ALONE)
    kinds = {
        row["prompt"]["tags"]["kind"] for row in read_jsonl_tolerant(run.folder / MAIN / "evaluate/rollouts.jsonl")
    }
    assert kinds == {"harmful", "benign", "look_alike"}
    assert "do not say their kind" in (run.folder / "report.html").read_text("utf-8")


def test_a_comparison_is_read_back_as_it_was() -> None:
    prompt = Prompt.of("Why?", kind="harmful", categories=["theft"])
    origin = Origin(kind="human", name="Ada", order=(1, 0))
    flags = {"safe": (True, False), "categories": ((), ("theft",))}
    comparison = Comparison(prompt=prompt, responses=("a", "b"), criterion="safe", winner=0, origin=origin, **flags)
    others = {"ranking": (0, 1)}, {"winner": None, "probability": 0.25, "safe": None, "categories": ()}
    for each in (comparison, *(replace(comparison, **other) for other in others)):
        assert read_comparison(json.loads(json.dumps(to_jsonable(each)))) == each


def test_a_stage_can_be_run_alone_and_keeps_the_rows_before_it(tmp_path: Path) -> None:
    run = quick(tmp_path / "run", arms=("sft",))
    assert run.summary["objective"] == "sft"
    assert not list(run.folder.rglob("policy-*"))
    rows = quick(tmp_path / "both", arms=("sft", "lagrangian"), steps=1)
    compared = read_json(rows.folder / "report.json")["comparison"]
    assert [row["objective"] for row in compared] == list(ARMS)


def test_judge_and_signal_do_not_depend_on_where_policies_start(finished: Finished, from_the_base: Finished) -> None:
    for name in ("judge", "scores"):
        weights = [run.folder / COMMON / name / "model" / "score_head.safetensors" for run in (finished, from_the_base)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_reinforcement_from_the_base_has_no_row_of_a_start_besides(from_the_base: Finished) -> None:
    rows = read_json(from_the_base.folder / "report.json")["comparison"]
    assert [row["objective"] for row in rows] == ["base", "lagrangian"]
    assert not (from_the_base.folder / COMMON / "start-model").exists()
    found = read_json(from_the_base.folder / "results.json")["estimates"]["lagrangian"]
    assert found["harm_less_start"] == found["harm_less_base"]


def test_samples_are_answers_to_different_prompts(finished: Finished) -> None:
    prompts = [sample["prompt"] for sample in read_json(finished.folder / "report.json")["samples"]]
    assert len(set(prompts)) == len(prompts) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arms": ("kindness",)}, "kindness.*lagrangian"),
        ({"steps": -1, "quick": False}, "steps is -1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": 2, "annotator": "persn"}, "annotator is 'persn': give rule, person"),
        ({"rounds": 2, "annotator": "person:0.5"}, "person:0.5.*below 0.5"),
        ({"annotator": "person"}, "nobody is asked in one round"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"lr": -1e-3}, "lr is -0.001"),
        ({"supervised_steps": -2}, "supervised_steps is -2"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1"),
        ({"ptx_coef": -0.1}, "ptx_coef is -0.1"),
        ({"average": 1.0}, "average.*1.0|1.0.*average"),
        ({"engine": "http://localhost:1"}, "the server has the base model, .*--arms sft"),
        ({"limit": -1.0}, "limit is -1.0.*no policy meets it"),
        ({"limit": 5.0}, r"limit is 5.0.*between -1 and 1, so that every policy meets it.*at most 1"),
        ({"limit": 1.01}, "every policy meets it"),
        ({"limit": float("nan")}, "at_most is nan"),
        ({"limit": float("inf")}, "at_most is inf"),
        ({"limit": -0.95, "margin": 0.12}, "less a margin of 0.12: .*choose one above -0.88"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"limit": ("cost <= -2",)}, "at_most is -2.0, but what is measured of scores between -1 and 1"),
        ({"limit": ("rate(cost) <= 5",)}, "2 % is 0.02"),
        (
            {"limit": ("toxicity <= 0.1",)},
            "'toxicity <= 0.1': no scorer provides 'toxicity'. Choose from cost, refusal",
        ),
        ({"limit": ("costs <= 0.1",)}, "did you mean 'cost'"),
        ({"limit": ("reward <= 0.1",)}, "other than the reward"),
        ({"limit": ("cost <= 0.1", "cost <= 0.2")}, "they need distinct channels or measures"),
        ({"limit": ("cost <= 0", "5")}, "limit 5 is combined with others.*no comma"),
        ({"limit": ()}, "no limit was given"),
        ({"limit": ("cost@arson <= 0",)}, "no training prompt belongs to 'arson'. There are harmful"),
        ({"algorithm": "gropo"}, "no algorithm 'gropo': did you mean 'grpo'"),
        ({"data": "no-such-set"}, "no-such-set"),
    ],
)
def test_a_setting_that_cannot_work_is_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        poise.safe_rlhf(**({"quick": True, "folder": str(tmp_path / "run"), "model": "random:llama"} | arguments))
    assert not list((tmp_path / "run").rglob("metrics.jsonl"))  # before anything was trained


def test_several_limits_as_text_are_held_each_by_its_own_controller_and_stand_in_run_and_report(
    from_the_base: Finished,
) -> None:
    done = from_the_base
    rows = [row for row in read_jsonl_tolerant(done.folder / MAIN / "metrics.jsonl") if "feasible" in row]
    names = ("cost", "cost_rate", "cost_cvar50", "refusal_benign")
    assert all({f"multiplier_{name}", f"excess_{name}"} <= rows[-1].keys() for name in names)
    assert len({rows[-1][f"multiplier_{name}"] for name in names}) > 1
    for place in (done.folder, done.folder / MAIN):
        readings = read_json(place / "run.json")["readings"]["limits"]
        assert [each["text"] for each in readings] == list(SEVERAL)
        assert [each["unit"] for each in readings] == ["mean cost", "share", "mean cost", "mean refusal"]
        assert [each["group"] for each in readings] == ["", "", "", "benign"]
    page = read_json(done.folder / "report.json")
    assert any(note.startswith("Limit refusal@benign <= 0.05: the mean of refusal, over") for note in page["notes"])
    assert "limit" not in page or page["limit"] is None
    assert {"multiplier_cost_rate", "excess_refusal_benign"} <= page["curves"][0].keys()


def test_a_rate_that_no_probability_reaches_counts_answers_and_says_so() -> None:
    limits = read_limits(["rate(cost) <= 0.02", "rate(cost@harmful) <= 0.3"])
    weak = {"cost": PlattScale(slope=2.0, offset=0.0)}  # at a cost of -1 still 12 % probable
    first, second = fitted_to(limits, weak)
    assert (first.is_counted, second.is_counted) == (True, False)
    assert "answers with a cost above 0 are counted" in str(first)
    costs = torch.tensor([-1.0, 1.0])
    assert first.limit(weak).measure.costs(costs, costs).tolist() == [0.0, 1.0]
    assert fitted_to(limits, {"cost": PlattScale(slope=-2.0, offset=0.0)})[1].is_counted is False


def test_a_rate_is_that_of_the_calibrated_cost() -> None:
    (limit,) = under_limits(read_limits("rate(cost) <= 0.5"), {"cost": PlattScale(slope=1.0, offset=0.0)}).limits
    assert limit.measure.costs(torch.zeros(1), torch.zeros(1)).tolist() == [0.5]


def test_training_holds_the_cost_a_margin_below_the_limit(of_mean_cost: Finished) -> None:
    assert [each.limit().at_most for each in read_limits(-0.5, margin=0.12)] == [-0.62]
    curve = {row["step"]: row for row in read_json(of_mean_cost.folder / "report.json")["curves"]}
    logged = read_jsonl_tolerant(of_mean_cost.folder / MAIN / "metrics.jsonl")
    rows = [row for row in logged if "excess" in row]
    assert rows
    assert all(curve[row["step"]]["cost"] == pytest.approx(row["excess"] - 0.5 - 0.12) for row in rows)


def test_by_default_the_shares_of_harm_and_of_refusals_are_limited_each_by_its_own_multiplier(
    finished: Finished,
) -> None:
    read = read_json(finished.folder / "run.json")["readings"]["limits"]
    assert [(each["measure"], each["channel"], each["group"]) for each in read] == [
        ("rate", "cost", "may_harm"),
        ("mean", "refusal", "harmless"),
    ]
    row = next(row for row in read_jsonl_tolerant(finished.folder / MAIN / "metrics.jsonl") if "feasible" in row)
    assert {"multiplier_cost_rate_may_harm", "multiplier_refusal_harmless"} <= row.keys()


def test_a_rate_alone_is_read_from_probabilities_that_a_bound_does_not_hold_up() -> None:
    """Within the bound of a mean cost, the least probability of a weak signal lies above the limit."""
    weak = {"cost": PlattScale(slope=1.5, offset=0.0)}
    (rate, _), (mean,) = read_limits(LIMITS), read_limits(-0.5)
    assert cost_bound([mean]) == cost_bound([mean, rate]) == 1.0 < cost_bound([rate])
    assert fitted_to([rate], weak)[0].is_counted
    bound = cost_bound([rate])
    assert not fitted_to([rate], weak, {"cost": (-bound, bound)})[0].is_counted
    costs = torch.tensor([-2.0, -1.9], requires_grad=True)
    rate.limit(weak).measure.costs(costs, costs).sum().backward()
    assert costs.grad is not None and (costs.grad > 0).all()  # smooth: a little less cost is a little less of the rate


def test_shares_weigh_as_much_as_they_must_beside_a_reward() -> None:
    rate, refusal, mean = under_limits(read_limits([*LIMITS, "cost <= 0"])).limits
    assert rate.scale == refusal.scale > mean.scale == 1.0


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "poise.cli", "run", "safe-rlhf", "--quick", "--folder", str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "POISE_DEBUG": "1"}
    )


def wait_for_step(process: subprocess.Popen[bytes], folder: Path, place: str, stage: str) -> None:
    """Return as soon as a stage has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        logged = folder / place / "metrics.jsonl"
        if logged.exists() and any(row["stage"] == stage for row in read_jsonl_tolerant(logged)):
            return
        time.sleep(0.02)
    raise AssertionError(f"{stage} logged no step within two minutes")


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that was killed twice: while it learned the scores, and while it trained the policy."""
    folder = tmp_path / "killed"
    for place, stage in ((COMMON, "scores"), (MAIN, "policy-1")):
        process = start(folder)
        try:
            wait_for_step(process, folder, place, stage)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        assert not (folder / "summary.json").exists()
    yield folder


def test_a_killed_run_ends_as_one_that_was_not(killed: Path, finished: Finished) -> None:
    resumed = quick(killed)
    assert without_clocks(resumed.summary) == without_clocks(finished.summary)
    for name in (f"{MAIN}/{each}" for each in ("metrics.jsonl", "samples.jsonl", "evaluate/rollouts.jsonl")):
        rows = [[without_clocks(row) for row in read_jsonl_tolerant(run / name)] for run in (killed, finished.folder)]
        assert rows[0] == rows[1], name


def test_an_adapter_names_its_base_by_a_path_that_holds_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick(Path("run"), supervised_steps=1, ptx_coef=0.5, **ALONE)
    base = read_json(tmp_path / "run" / MAIN / "policy-1" / "model" / "adapter_config.json")
    assert Path(base["base_model_name_or_path"]) == tmp_path.resolve() / "run" / COMMON / "start-model" / "model"
