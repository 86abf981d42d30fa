"""The experiment on real data: its rows, and a quick run of all its stages on the starter set."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

import poise
from poise.data.lint_checks import leaks_between
from poise.data.rollouts import read_rollouts
from poise.errors import ConfigError, DataError
from poise.evaluate.seeds import OverSeeds
from poise.files import read_json
from poise.recipes._real_data import FURTHER, Material, real_material, starter_material
from poise.recipes._real_report import MARK, Target, figure_text
from poise.types import Estimate

ARMS = ("start", "lagrangian", "cost-only", "reward-only", "shaping")
CLOCKS = {"minutes", "peak_rss_gib"}
JUDGED_SOURCES = ("xstest:completions", "safety-tuned-llamas")


def quick(folder: Path, **arguments: Any) -> dict[str, Any]:
    """The summary of a quick run: the last line that it prints."""
    printed = StringIO()
    with redirect_stdout(printed):
        poise.safe_rlhf_real(quick=True, folder=str(folder), **arguments)
    summary: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
    return summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One quick run without any downloaded data, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("POISE_DATA", raising=False)
        summary = quick(folder)
    assert summary == read_json(folder / "summary.json")
    return folder


def test_every_objective_starts_from_what_the_seed_imitated(finished: Path, tmp_path: Path) -> None:
    """At a learning rate near 0 a policy ends where it began."""
    from safetensors.torch import load_file

    quick(tmp_path / "still", seeds=(0,), objectives=("lagrangian",), lr=1e-12)
    imitated, policy = (
        load_file(tmp_path / "still" / stage / "model" / "adapter_model.safetensors")
        for stage in ("seed-0-imitated", "seed-0-policy-lagrangian")
    )
    assert imitated.keys() == policy.keys()
    assert not (tmp_path / "still" / "seed-0-policy-lagrangian-0").exists()  # there is no round before the first
    for name, weights in imitated.items():
        assert policy[name].allclose(weights, rtol=0, atol=1e-6), name
    assert any(weights.abs().max() > 1e-4 for name, weights in imitated.items() if "lora_B" in name)


def test_every_objective_is_judged_over_two_seeds(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    assert summary["seeds"] == [0, 1]
    for name in ARMS:
        figure = summary["tables"][name]["compliance/harmful"]
        assert len(figure["by_seed"]) == 2
        assert figure["pooled"]["n"] == sum(each["n"] for each in figure["by_seed"])
        assert figure["pooled"]["low"] <= figure["pooled"]["value"] <= figure["pooled"]["high"]
        assert figure["sd"] >= 0
    assert summary["tables"]["lagrangian"].keys() >= {"compliance_ratio", "compliance_difference", "helpful_win_rate"}


def test_the_scores_are_measured_on_prompts_they_never_saw(finished: Path) -> None:
    tables = read_json(finished / "summary.json")["tables"]
    assert tables["judge"].keys() >= {"f1", "f1_of_the_others", "f1_of_the_rule", "reward_pair_accuracy"}
    assert tables["signal"].keys() >= {"reward_pair_accuracy", "cost_sign_accuracy", "look_alike_pair_accuracy"}
    assert tables["noisy"].keys() >= {"cost_pair_accuracy", "cost_sign_accuracy"}


def test_the_learning_curve_has_a_probe_on_the_same_rows_beside_every_model(finished: Path) -> None:
    rows = read_json(finished / "summary.json")["learning_curves"]
    for feedback in ("clean", "noisy"):
        of_kind = [row for row in rows if row["feedback"] == feedback]
        assert [row["share"] for row in of_kind] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
        models, probes = of_kind[::2], of_kind[1::2]
        assert [row["rows"] for row in models] == [row["rows"] for row in probes]
        assert models[0]["rows"] < models[1]["rows"] < models[2]["rows"]
        assert {row["head"] for row in probes} == {"linear probe"}


def test_features_of_all_seeds_and_curves_are_computed_once(finished: Path) -> None:
    from safetensors import safe_open

    keys: list[str] = []
    for path in (finished / "features").glob("part-*.safetensors"):
        with safe_open(path, framework="pt") as part:
            keys += part.metadata()["keys"].split()
    assert len(keys) == len(set(keys)) > 0


def test_the_report_names_every_policy_and_folds_harmful_answers_away(finished: Path) -> None:
    report, samples = ((finished / name).read_text("utf-8") for name in ("report.md", "samples.md"))
    for label in ("start model", "Lagrangian", "cost alone", "reward alone", "fixed penalty"):
        assert label in report
        assert label in samples
    assert "smoke test" in report
    harmful, rest = samples.split("## look-alike prompts")
    assert harmful.count("<details>") == harmful.count("</details>") == harmful.count("a harmful prompt") > 0
    assert "<details>" not in rest


def test_a_page_gets_the_table_between_its_marks_and_keeps_the_rest(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"above\n{MARK}\nwhat stood here\n{MARK}\nbelow\n")
    for _ in range(2):
        quick(finished, page=str(page))
        before, section, after = page.read_text("utf-8").split(MARK)
        assert (before, after) == ("above\n", "\nbelow\n")
        assert "what stood here" not in section
        for label in ("start model", "Lagrangian", "cost alone", "reward alone", "fixed penalty"):
            assert f"| {label}" in section
        assert section.count("<details>") == 4  # as many as were asked, up to six


def test_a_page_without_marks_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"README\.md: it should hold <!-- real-data --> twice"):
        poise.safe_rlhf_real(quick=True, folder=str(tmp_path / "run"), page=str(tmp_path / "README.md"))
    assert not (tmp_path / "run").exists()


def test_seeds_answer_with_their_own_streams(finished: Path) -> None:
    first, second = (read_rollouts(finished / f"seed-{seed}-evaluate-start" / "rollouts.jsonl") for seed in (0, 1))
    assert [r.prompt.id for r in first] == [r.prompt.id for r in second]
    assert [r.completion.text for r in first] != [r.completion.text for r in second]


def test_a_run_that_was_stopped_ends_as_one_that_was_not(finished: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished, tmp_path / "stopped")
    (tmp_path / "stopped" / "summary.json").unlink()
    for stage in ("seed-1-signal", "seed-1-policy-shaping", "seed-1-evaluate-cost-only", "learning-curves"):
        shutil.rmtree(tmp_path / "stopped" / stage)
    resumed, unbroken = quick(tmp_path / "stopped"), read_json(finished / "summary.json")
    assert {k: v for k, v in resumed.items() if k not in CLOCKS} == {
        k: v for k, v in unbroken.items() if k not in CLOCKS
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": ()}, "seeds are"),
        ({"seeds": (1, 1)}, r"seeds are \(1, 1\)"),
        ({"objectives": ("lagrangian", "kindness")}, "kindness"),
        ({"evaluated": 1}, "evaluated is 1"),
        ({"compare_steps": 0}, "compare_steps is 0"),
        ({"lr": 0.0}, "lr is 0"),
        ({"limit": 1.6}, "limit is 1.6.*between -1.5 and 1.5, so that every policy meets it"),
        ({"limit": -1.5}, "limit is -1.5.*no policy meets it"),
        ({"later_lr": 0.0}, "later_lr is 0"),
        ({"imitated_tokens": -1}, "imitated_tokens is -1"),
        ({"warmstart_steps": -1}, "warmstart_steps is -1"),
    ],
)
def test_a_setting_that_cannot_work_is_named(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        poise.safe_rlhf_real(**({"quick": True, "folder": str(tmp_path / "run")} | arguments))
    assert not (tmp_path / "run").exists()


def test_seeds_and_objectives_are_options_of_the_command_line() -> None:
    from poise.cli.options import parse_options

    given = parse_options(
        poise.safe_rlhf_real, ["--seeds", "3,5", "--objectives", "lagrangian,shaping"], program="poise"
    )
    assert given == {"seeds": (3, 5), "objectives": ("lagrangian", "shaping")}


def test_without_the_data_the_error_says_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POISE_DATA", raising=False)
    with pytest.raises(DataError, match="POISE_DATA"):
        poise.safe_rlhf_real(model="random:llama", folder=str(tmp_path / "run"))


def leaks(material: Material) -> int:
    return sum(finding.count for finding in leaks_between(material.prompts_by_side()))


def test_the_starter_rows_stand_on_one_side_each() -> None:
    material = starter_material(evaluated=4, trained=24)
    assert leaks(material) == 0
    assert {prompt.tags["kind"] for prompt in material.evaluation} == {"harmful", "benign", "look_alike"}


@pytest.fixture(scope="module")
def material() -> Material:
    return real_material(evaluated=80, trained=192)


@pytest.mark.real_data
class TestRealRows:
    @pytest.fixture(autouse=True)
    def _with_data(self, poise_data: Path) -> None:
        """Skip without POISE_DATA."""

    def test_no_prompt_stands_on_two_sides(self, request: pytest.FixtureRequest) -> None:
        assert leaks(request.getfixturevalue("material")) == 0

    def test_nothing_of_advbench_is_learned_from(self, request: pytest.FixtureRequest) -> None:
        material: Material = request.getfixturevalue("material")
        asked = {prompt.id for prompt in material.evaluation if prompt.tags["source"] == "advbench"}
        assert len(asked) == 80
        sides = material.prompts_by_side()
        assert not asked & {prompt.id for side in ("train", "judge") for prompt in sides[side]}

    def test_the_policy_is_asked_and_evaluated_on_every_kind(self, request: pytest.FixtureRequest) -> None:
        material: Material = request.getfixturevalue("material")
        for prompts, counts in ((material.policy_prompts, (96, 48, 48)), (material.evaluation, (80, 80, 80))):
            kinds = [prompt.tags["kind"] for prompt in prompts]
            assert tuple(kinds.count(kind) for kind in ("harmful", "look_alike", "benign")) == counts

    def test_what_the_policy_shall_refuse_is_harmful_by_its_authors_or_by_its_published_answer(
        self, request: pytest.FixtureRequest
    ) -> None:
        material: Material = request.getfixturevalue("material")
        asked = [prompt for prompt in material.policy_prompts if prompt.tags["kind"] == "harmful"]
        assert {prompt.tags["source"] for prompt in asked} == {"safety-tuned-llamas", "xstest:completions"}

    def test_plain_refusals_and_answers_to_harmless_prompts_are_imitated(self, request: pytest.FixtureRequest) -> None:
        material: Material = request.getfixturevalue("material")
        assert {row.prompt.tags["kind"] for row in material.demonstrations} == {"harmful"}
        assert len(material.demonstrations) > 200
        assert not [row for row in material.demonstrations if "however" in row.response[:160].lower()]
        kinds = [prompt.tags["kind"] for prompt in material.further_prompts]
        assert kinds.count("look_alike") > 100 and kinds.count("benign") == FURTHER and "harmful" not in kinds
        asked = {prompt.id for prompt in (*material.policy_prompts, *material.evaluation)}
        assert not asked & {prompt.id for prompt in material.further_prompts}

    def test_the_judge_knows_refusals_of_questions_and_of_requests(self, request: pytest.FixtureRequest) -> None:
        material: Material = request.getfixturevalue("material")
        declined = [label for label in material.verdicts["judge"].labels if label.safe]
        asked_for = {name: [d for d in declined if d.prompt.tags.get("source") == name] for name in JUDGED_SOURCES}
        assert sum(map(len, asked_for.values())) == len(declined)
        assert all(len(rows) > 100 for rows in asked_for.values())

    def test_the_judge_is_validated_on_verdicts_of_people_alone(self, request: pytest.FixtureRequest) -> None:
        material: Material = request.getfixturevalue("material")
        labels = material.verdicts["test"].labels
        assert len(labels) > 600
        assert {label.prompt.tags["source"] for label in labels} == {"xstest:completions"}
        for label in labels[:50]:
            assert label.safe == (label.prompt.tags["final_label"] == "2_full_refusal")


def test_a_target_looks_at_the_end_of_the_interval_that_it_names() -> None:
    estimate = Estimate(value=0.2, n=50, low=0.1, high=0.6)
    figures = {"ratio": OverSeeds(pooled=estimate, by_seed=(estimate,))}
    on_value = Target(table="arm", figure="ratio", most=0.25).check(figures)
    on_edge = Target(table="arm", figure="ratio", most=0.5, edge="high").check(figures)
    assert on_value is not None and on_value["met"]
    assert on_edge is not None and not on_edge["met"] and on_edge["value"] == 0.6
    assert Target(table="arm", figure="another").check(figures) is None


def test_a_figure_is_written_with_its_interval_its_spread_and_n() -> None:
    one = Estimate(value=0.5, n=100, unit="share", low=0.4, high=0.6)
    assert figure_text(OverSeeds(pooled=one, by_seed=(one,))) == "50.0 % [40.0, 60.0] (n=100)"
    two = Estimate(value=0.7, n=100, unit="share")
    both = OverSeeds(pooled=one, by_seed=(one, two))
    assert re.fullmatch(r"50\.0 % ± 14\.1 \[40\.0, 60\.0\] \(n=100\)", figure_text(both))
    assert figure_text(None) == "–"
