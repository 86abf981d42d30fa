"""Recipes on continued text and on rated pairs: copies run elsewhere, figures of before, stops, plans, bad settings."""

import json
from pathlib import Path

import pytest
import torch

from poise.cli import main
from poise.cli.planning import plan_lines
from poise.errors import ConfigError
from poise.files import read_json, read_jsonl_tolerant
from poise.recipes.f_dpo import f_dpo
from poise.recipes.mmpo import mmpo
from poise.recipes.ra_rlhf import ra_rlhf
from poise.train import on_policy

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "text.json").read_text("utf-8"))
SAME_ARITHMETIC = (GOLDENS["torch"], GOLDENS["cpu"]) == (torch.__version__, torch.backends.cpu.get_cpu_capability())
PRECISION = {"rel": 1e-6, "abs": 1e-7} if SAME_ARITHMETIC else {"rel": 2e-2, "abs": 2e-2}


@pytest.fixture(scope="module", params=sorted(GOLDENS["recipes"]))
def quick(request, tmp_path_factory):
    """The name of a recipe, and the folder of a quick run of a copy of it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for words in (
        ("copy", request.param, str(folder / "mine.py")),
        ("run", str(folder / "mine.py"), "--quick", "--folder", str(folder / "run")),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code
    return request.param, folder / "run"


def test_a_quick_run_of_a_copy_gives_the_figures_of_before(quick):
    name, run = quick
    for arm, rows in GOLDENS["recipes"][name].items():
        for seed, row in enumerate(rows):
            found = read_json(run / f"{arm}-seed-{seed}" / "stage.json")["trial"]["metrics"]
            assert {metric: found[metric] for metric in row} == pytest.approx(row, **PRECISION), (arm, seed)


def test_its_page_has_every_arm_and_a_verdict_on_every_claim(quick):
    name, run = quick
    page, found = (run / f"{name}.md").read_text("utf-8"), read_json(run / "results.json")
    assert "A smoke test" in page
    assert all(f"| {label} |" in page for label in found["arms"].values())
    assert all(claim["text"] in page for claim in found["claims"])
    assert all(f"![{plot['title']}](" in page for plot in found["plots"])


def test_an_area_under_a_curve_has_an_interval_over_the_rows_that_it_was_measured_on(quick):
    name, run = quick
    estimates = read_json(run / "results.json")["estimates"].values()
    areas = [each for arm in estimates for metric, each in arm.items() if "_auc" in metric]
    assert bool(areas) == (name == "ra-rlhf")
    assert all(each["low"] < each["value"] < each["high"] and each["method"].startswith("AUC") for each in areas)


def test_a_stopped_run_goes_on_with_the_next_update(tmp_path, monkeypatch):
    step_at, steps = on_policy.OnPolicyTrainer.step_at, []

    def stopped(self, index):
        steps.append(index)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step_at(self, index)

    monkeypatch.setattr(on_policy.OnPolicyTrainer, "step_at", stopped)
    folder, page = tmp_path / "run", tmp_path / "docs" / "tails.md"
    with pytest.raises(KeyboardInterrupt):
        ra_rlhf(quick=True, folder=str(folder), output=str(page))
    before = read_json(folder / "starter-gen-sft-seed-0" / "stage.json")
    ra_rlhf(quick=True, folder=str(folder), output=str(page))

    assert read_json(folder / "starter-gen-sft-seed-0" / "stage.json") == before
    assert "](tails.svg)" in page.read_text()
    for seed in (0, 1):
        part = folder / f"starter-gen-ra-rlhf-seed-{seed}"
        rows = [row for row in read_jsonl_tolerant(part / "metrics.jsonl") if row["stage"] == "policy"]
        assert [row["step"] for row in rows] == [1, 2, 3]
        # all at first, then the prompts of the worst ceil(0.4 * 16) = 7 of 16 samples: two of four
        assert (rows[0]["kept"], rows[2]["kept"]) == (1.0, 2 / 4)
        rollouts = read_jsonl_tolerant(part / "answers" / "rollouts.jsonl")
        assert len(rollouts) == 12 and {"reward", "signal"} == rollouts[0]["scores"]["values"].keys()
    trained = GOLDENS["recipes"]["ra-rlhf"]["starter-gen-ra-rlhf"]
    for seed, row in enumerate(trained):
        found = read_json(folder / f"starter-gen-ra-rlhf-seed-{seed}" / "stage.json")["trial"]
        assert found["metrics"]["reward"] == pytest.approx(row["reward"], **PRECISION)
        hard, other, every = (found["by_prompt"][f"reward_of_{x}prompts"] for x in ("hardest_", "other_", ""))
        assert hard.keys().isdisjoint(other) and {**hard, **other} == every
        assert sum(hard.values()) / len(hard) == pytest.approx(found["metrics"]["hard_reward"])


def test_what_is_the_same_for_all_arms_and_seeds_is_made_once(quick):
    name, run = quick
    folders = {path.name for path in run.iterdir() if path.is_dir()}
    shared = {"ra-rlhf": {"starter-gen"}, "f-dpo": {"pairs", "seed-0", "seed-1"}}
    shared["mmpo"] = {"starter", "starter-seed-0", "starter-seed-1"}
    trials = {f"{arm}-seed-{seed}" for arm in GOLDENS["recipes"][name] for seed in (0, 1)}
    assert folders == shared[name] | trials


def test_what_judges_are_worth_stands_on_the_page_once_for_each_set(quick):
    name, run = quick
    found = read_json(run / "results.json")["estimates"]
    telling = {arm: each["judge_accuracy"] for arm, each in found.items() if "judge_accuracy" in each}
    assert list(telling) == {"ra-rlhf": ["starter-gen-sft"], "f-dpo": ["reverse-kl-0.1"], "mmpo": ["starter-bt"]}[name]
    (accuracy,) = telling.values()
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    if name == "mmpo":
        assert found["starter-bt"]["gamma"]["value"] > 0
        assert found["starter-mmpo-rm"]["train_ece"]["value"] != found["starter-bt"]["train_ece"]["value"]


@pytest.mark.parametrize(
    ("recipe", "changed", "message"),
    [
        (ra_rlhf, {"algorithm": "dpo"}, "algorithm is 'dpo': choose ppo"),
        (ra_rlhf, {"signal": "judge"}, "signal is 'judge'"),
        (ra_rlhf, {"reward": "loss"}, "reward is 'loss'"),
        (ra_rlhf, {"rank_by": "token"}, "rank_by is 'token'"),
        (ra_rlhf, {"steps": 0}, "steps is 0"),
        (ra_rlhf, {"seeds": (1, 1)}, "different seeds"),
        (ra_rlhf, {"tasks": ()}, "tasks are"),
        (ra_rlhf, {"tasks": ("imdb",)}, "no 'imdb'; choose imdb-gen"),
        (ra_rlhf, {"evaluated": 5}, "evaluated is 5: it must be at least 10"),
        (f_dpo, {"betas": (0.1, 0.1)}, "without duplicates"),
        (f_dpo, {"betas": (0.1, 0.0)}, "betas is 0.0: it must be above 0"),
        (mmpo, {"beta": 0.0}, "beta is 0.0"),
        (mmpo, {"median_win_probability": 0.5}, "probability is 0.5"),
        (mmpo, {"sets": ()}, "sets are"),
        (mmpo, {"lr": 0.0}, "lr is 0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_made(recipe, changed, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        recipe(**changed, folder=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words", "stages"),
    [
        ("ra-rlhf", ["--tasks", "starter-gen"], ("starter-gen/judge", "starter-gen-ra-rlhf-seed-0/policy")),
        ("f-dpo", ["--data", "starter", "--betas", "0.1"], ("pairs/judge", "alpha-0.1-seed-0/answers", "seed-0/start")),
        ("mmpo", ["--sets", "starter"], ("starter-bt-seed-0/scores", "starter-mmpo-seed-0/policy")),
    ],
)
def test_what_every_stage_will_take_is_planned_without_training(name, words, stages):
    layout = {"processes": 0, "shard": True, "is_full": False, "recompute": False, "base_bits": 16}
    lines = list(plan_lines(name, words, machine="h100x1", **layout))
    planned = [line.split()[0] for line in lines]
    assert all(planned.count(stage) == 1 for stage in stages), lines
