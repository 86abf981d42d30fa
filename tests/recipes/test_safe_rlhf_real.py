"""Safe RLHF on real data: a copy runs elsewhere on the starter set, gives the figures of before, stops and goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from poise.cli import main
from poise.cli.options import parse_options
from poise.cli.planning import plan_lines
from poise.data.rollouts import read_rollouts
from poise.errors import ConfigError, DataError
from poise.files import read_json
from poise.recipes.safe_rlhf_real import safe_rlhf_real

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "published.json").read_text("utf-8"))
SAME_ARITHMETIC = (GOLDENS["torch"], GOLDENS["cpu"]) == (torch.__version__, torch.backends.cpu.get_cpu_capability())
PRECISION = {"rel": 1e-6, "abs": 1e-7} if SAME_ARITHMETIC else {"rel": 2e-2, "abs": 2e-2}
CURVES = ("clean-100-as-trained", "clean-100-linear-probe")
ARMS = ("lagrangian", "imitation", "cost-only", "reward-only", "shaping")


def poise(*words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a copy of the recipe, mine.py, and of its quick run without any downloaded data, run/."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("POISE_DATA", raising=False)
        poise("copy", "safe-rlhf-real", str(folder / "mine.py"))
        poise("run", str(folder / "mine.py"), "--quick", "--folder", str(folder / "run"))
    return folder


@pytest.fixture(scope="module")
def results(copied: Path) -> dict[str, Any]:
    return read_json(copied / "run" / "results.json")


def test_a_quick_run_of_a_copy_gives_the_figures_of_before(results: dict[str, Any]) -> None:
    for arm, rows in GOLDENS["trials"].items():
        for seed, row in enumerate(rows):
            found = results["trials"][arm][seed]["metrics"]
            assert {metric: found[metric] for metric in row} == pytest.approx(row, **PRECISION), (arm, seed)
    facts = {name: results["estimates"]["lagrangian"][name]["value"] for name in GOLDENS["facts"]}
    assert facts == pytest.approx(GOLDENS["facts"], **PRECISION)


def test_every_arm_is_judged_over_two_seeds_on_whole_prompts(results: dict[str, Any]) -> None:
    assert results["seeds"] == [0, 1]
    assert tuple(results["estimates"]) == ARMS
    for found in results["estimates"].values():
        assert found.keys() >= {
            "compliance_start",
            "compliance",
            "by_words",
            "by_rule",
            "look_alikes_change",
            "plain",
            "wins",
            "trained_cost",
        }
        assert found["compliance"]["n"] == 2 * 4
        assert "over 4 prompts" in found["compliance"]["method"]
        assert found["trained_cost"]["method"] == "Student"


def test_the_page_has_every_arm_every_score_and_a_verdict_on_every_claim(copied: Path, results: dict[str, Any]) -> None:
    page = (copied / "run" / "safe-rlhf-real.md").read_text("utf-8")
    assert "A smoke test" in page
    assert all(f"| {label} |" in page for label in results["arms"].values())
    for heading in (
        "Is the judge right?",
        "A second judge, of other prompts and by words alone",
        "The judge of help",
        "Do the judges agree?",
        "What the training signal is worth",
        "What published pairs alone would give",
    ):
        assert page.count(f"## {heading}") == 1
    untested = {
        "it complies with harmful requests less than half as often as the start",
        "... less than a quarter as often",
    }
    if any(found["compliance_start"]["value"] for found in results["estimates"].values()):
        untested = set()  # else a start that complies with nothing has no multiple
    untested |= {"judge: auc without human-rated-compliance above 70%"}  # the starter set has no such source
    assert set(results["untested"]) == untested
    assert len(results["claims"]) + len(results["untested"]) == 14
    assert "judge right on" in page  # beside every win rate
    assert all(claim["text"] in page for claim in results["claims"])
    assert "](safe-rlhf-real.svg)" in page
    assert "Clopper-Pearson, at the rows that those of one prompt are worth" in page
    assert "effective of" not in page  # a number that differs from cell to cell explains no table


def test_the_learning_curve_has_a_probe_on_the_same_rows_beside_every_model(results: dict[str, Any]) -> None:
    (plot,) = results["plots"]
    assert len(plot["panels"]) == 4
    for series in plot["panels"].values():
        model, probe = series
        assert (model["label"], probe["label"]) == ("as trained", "linear probe")
        assert model["x"] == probe["x"] == sorted(set(model["x"]))
        assert len(model["y"]) == len(probe["y"]) == 3


def test_features_of_all_seeds_and_curves_are_computed_once(copied: Path) -> None:
    keys: list[str] = []
    for path in (copied / "run" / "all-seeds" / "features").glob("part-*.safetensors"):
        with safe_open(path, framework="pt") as part:
            keys += part.metadata()["keys"].split()
    assert len(keys) == len(set(keys)) > 0
    assert [path.parent.name for path in (copied / "run").rglob("features")] == ["all-seeds"]


def test_answers_stand_side_by_side_and_those_to_harmful_prompts_are_folded_away(copied: Path) -> None:
    text = (copied / "run" / "answers.md").read_text("utf-8")
    for label in ("base model", "Lagrangian", "imitation of refusals", "cost alone", "reward alone", "fixed penalty"):
        assert label in text
    harmful, rest = text.split("## look-alike prompts")
    assert harmful.count("<details>") == harmful.count("</details>") == harmful.count("a harmful prompt") == 4
    assert "<details>" not in rest


def test_seeds_answer_with_their_own_streams(copied: Path) -> None:
    first, second = (read_rollouts(copied / "run" / f"seed-{seed}" / "evaluate" / "rollouts.jsonl") for seed in (0, 1))
    assert [r.prompt.id for r in first] == [r.prompt.id for r in second]
    assert [r.completion.text for r in first] != [r.completion.text for r in second]


def test_the_arm_of_imitation_is_where_every_objective_starts(copied: Path, tmp_path: Path) -> None:
    """At a learning rate near 0 a policy stays at the merged SFT model, its reference, and its answers too."""
    assert not (copied / "run" / "imitation-seed-0" / "policy").exists()
    safe_rlhf_real(quick=True, seeds=1, arms=("lagrangian",), lr=1e-12, score_steps=1, folder=str(tmp_path / "still"))
    imitated, policy = (
        load_file(tmp_path / "still" / stage / "model" / "adapter_model.safetensors")
        for stage in ("seed-0/imitated", "lagrangian-seed-0/policy")
    )
    for weights, moved in ((imitated, True), (policy, False)):
        sizes = [float(each.abs().max()) for name, each in weights.items() if "lora_B" in name]
        assert any(size > 1e-4 for size in sizes) == moved
    base, start, after = (
        [r.completion.text for r in read_rollouts(tmp_path / "still" / folder / "rollouts.jsonl")]
        for folder in ("seed-0/evaluate", "seed-0/evaluate-sft", "lagrangian-seed-0/evaluate")
    )
    assert start == after != base
    metrics = read_json(tmp_path / "still" / "results.json")["trials"]["lagrangian"][0]["metrics"]
    assert metrics["sequence_kl"] == pytest.approx(0.0, abs=1e-3)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(copied: Path, results: dict[str, Any], tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(copied / "run", stopped)
    for name in ("cost-only-seed-1", "shaping-seed-1/policy", "seed-1/signal", "all-seeds/curve-noisy-50-as-trained"):
        shutil.rmtree(stopped / name)
    for name in ("shaping-seed-1/stage.json", "results.json", "summary.json"):
        (stopped / name).unlink()
    poise("run", str(copied / "mine.py"), "--quick", "--folder", str(stopped))
    resumed = read_json(stopped / "results.json")
    assert resumed["trials"] == results["trials"]
    assert resumed["estimates"] == results["estimates"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": ()}, "give a number of at least 1"),
        ({"seeds": (1, 1)}, "different seeds"),
        ({"arms": ("lagrangian", "kindness")}, "kindness"),
        ({"data": "kindness"}, "data is 'kindness': choose published, starter"),
        ({"algorithm": "gropo"}, "no algorithm 'gropo': did you mean 'grpo'"),
        ({"evaluated": 1}, "evaluated is 1"),
        ({"trained": 3}, "trained is 3"),
        ({"compare_steps": 0}, "compare_steps is 0"),
        ({"score_steps": 0}, "score_steps is 0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"limit": 1.6}, "limit is 1.6.*between -1.5 and 1.5, so that every policy meets it"),
        ({"limit": -1.5}, "limit is -1.5.*no policy meets it"),
        ({"later_lr": 0.0}, "later_lr is 0"),
        ({"imitated_tokens": -1}, "imitated_tokens is -1"),
        ({"warmstart_steps": -1}, "warmstart_steps is -1"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_any_work(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        safe_rlhf_real(**({"quick": True, "folder": str(tmp_path / "run")} | arguments))
    assert not (tmp_path / "run").exists()


def test_without_imitation_there_is_no_arm_of_it_and_no_claim_on_it() -> None:
    study = safe_rlhf_real.build(warmstart_steps=0)
    assert tuple(study.arms) == ("lagrangian", "cost-only", "reward-only", "shaping")
    assert not [claim for claim in study.claims if "imitation" in claim.arms]


def test_seeds_and_arms_are_options_of_the_command_line() -> None:
    given = parse_options(safe_rlhf_real, ["--seeds", "3,5", "--arms", "lagrangian,shaping"], program="poise")
    assert given == {"seeds": (3, 5), "arms": ("lagrangian", "shaping")}


def test_without_the_data_the_error_says_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POISE_DATA", raising=False)
    with pytest.raises(DataError, match="POISE_DATA"):
        safe_rlhf_real(model="random:llama", folder=str(tmp_path / "run"))


def test_a_plan_has_the_stages_that_seeds_and_arms_share_once() -> None:
    words = ["--model", "random:llama", "--data", "starter", "--arms", "lagrangian,imitation"]
    layout = {"processes": 0, "shard": True, "is_full": False, "recompute": False, "base_bits": 16}
    lines = list(plan_lines("safe-rlhf-real", words, machine="h100x1", **layout))
    for stage in ("all-seeds/own-answers", "all-seeds/curve-noisy-100-linear-probe", "seed-0/judge", "seed-0/imitated"):
        assert sum(line.startswith(f"{stage} ") for line in lines) == 1, stage
    read = {name: next(line for line in lines if line.startswith(f"all-seeds/curve-{name} ")) for name in CURVES}
    assert ["  0 tokens" in line for line in read.values()] == [False, True]  # a cache has the same rows' features
    for arm in ("lagrangian", "imitation"):
        assert sum(line.startswith(f"{arm}-seed-0/policy ") for line in lines) == (arm == "lagrangian")
        assert any(line.startswith(f"{arm}-seed-0/evaluate ") for line in lines) == (arm == "lagrangian")
    assert sum(line.startswith("seed-0/evaluate-sft ") for line in lines) == 1
