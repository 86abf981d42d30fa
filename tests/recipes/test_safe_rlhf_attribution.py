"""The comparison of methods: one start and one signal, each way of learning, and what is read off."""

from pathlib import Path

import pytest
import torch

from poise.checksums import read_sealed
from poise.cli import main
from poise.data.rollouts import read_rollouts
from poise.files import read_json
from poise.pipeline import rivals
from poise.recipes.safe_rlhf_attribution import COEFFICIENTS, METHODS

ARMS = ("sft", "best-of-n", "joint", "repo", "safe-dpo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick run, by a copy in another folder, of one arm of each way of learning."""
    folder = tmp_path_factory.mktemp("runs") / "attribution"
    mine = str(folder.with_name("mine.py"))
    quick = ["run", mine, "--quick", "--arms", ",".join(ARMS), "--folder", str(folder)]
    for command in (["copy", "safe-rlhf-attribution", mine], quick):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert not stop.value.code
    return folder


def test_every_method_has_harm_over_refusal_and_wins_and_the_front_names_those_that_none_beats(folder: Path) -> None:
    found = read_json(folder / "results.json")
    assert list(found["estimates"]) == list(ARMS)
    for each in found["estimates"].values():
        assert {"harm", "over_refusal", "wins_base", "harm_less_start"} <= each.keys()
    assert set(read_json(folder / "summary.json")["front"]) <= set(ARMS)
    assert [len(plot["panels"][""]) for plot in found["plots"]] == [2, 2]  # limits, and the others


def test_all_methods_start_where_the_sft_start_ends_and_learn_from_one_signal(folder: Path) -> None:
    assert [each.name for each in folder.glob("seed-0/start-model")] == ["start-model"]
    assert not list(folder.glob("*-seed-0/scores"))  # no method has a signal of decoupled feedback of its own
    base = read_json(folder / "repo-seed-0" / "policy-1" / "model" / "adapter_config.json")
    assert base["base_model_name_or_path"] == str((folder / "seed-0" / "start-model" / "model").resolve())


def test_one_joint_preference_gives_one_score_and_the_best_of_n_needs_no_training(folder: Path) -> None:
    card = read_json(folder / "joint-seed-0" / "joint" / "model" / "poise_score_model.json")
    assert [(each["name"], each["criteria"]) for each in card["channels"]] == [("reward", ["joint"])]
    assert [each.name for each in (folder / "best-of-n-seed-0").glob("*/stage.json")] == ["stage.json"]
    answers = read_rollouts(folder / "best-of-n-seed-0" / "evaluate" / "rollouts.jsonl")
    start = read_rollouts(folder / "seed-0" / "evaluate-start" / "rollouts.jsonl")
    assert [(r.prompt.id, r.completion.sample) for r in answers] == [(r.prompt.id, r.completion.sample) for r in start]
    assert read_sealed(folder / "safe-dpo-seed-0" / "policy" / "stage.json", remedy="")[0]["steps"] == 1


def test_the_arms_are_those_of_the_papers_and_the_rivals() -> None:
    shaped = {f"shaping-{each:g}" for each in (0.01, 0.5, 1, 2, 5, 10, 100)}
    assert {f"shaping-{each:g}" for each in COEFFICIENTS} == shaped
    others = {"base", "sft", "best-of-n", "lagrangian", "lagrangian-rate", "lagrangian-mean", "ppo-lag", "grpo-lag"}
    assert set(METHODS) == shaped | others | {"repo", "reward", "cost", "joint", "safe-dpo"}


def test_a_fixed_price_never_moves_and_speaks_of_prompts_that_may_do_harm_alone() -> None:
    objective = rivals.priced(2.0)
    scores = {"reward": torch.zeros(4), "cost": torch.tensor([9.0, 9.0, 9.0, 9.0])}
    groups = {"may_harm": torch.tensor([True, True, False, False])}
    for _ in range(3):
        objective.update(scores, groups)
    assert objective.multipliers == {"cost_may_harm": 2.0}
    advantages = {"reward": torch.ones(4), "cost_may_harm": torch.ones(4)}
    assert objective.mix(advantages, groups).tolist() == pytest.approx([-1 / 3, -1 / 3, 1.0, 1.0])
