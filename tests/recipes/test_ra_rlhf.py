"""Risk-averse RLHF from embedded texts to the page with a tiny random model; rows on their sides; a stopped run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poise.errors import ConfigError
from poise.feedback.words import TextScorer
from poise.files import read_json, read_jsonl_tolerant
from poise.recipes import _risk as risk
from poise.recipes import _risk_report as report
from poise.recipes._arms import Outcome, Results
from poise.recipes._continuations import SIDES, side_of, task_named
from poise.recipes.ra_rlhf import ra_rlhf
from poise.train import on_policy

QUICK: dict[str, Any] = {"quick": True}


def settings(**changed: Any) -> risk.RiskSettings:
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(ra_rlhf).parameters.items()}
    return risk.RiskSettings.of(defaults | changed)


def test_no_text_is_on_two_sides_and_prompts_begin_their_texts() -> None:
    task = task_named("starter-gen")
    sides = {side: {text.whole for text in texts} for side, texts in task.read.items()}
    assert all(sides[a].isdisjoint(sides[b]) for a in SIDES for b in SIDES if a != b)
    continued = {text.whole for side in ("train", "test") for text in task.cut[side]}
    assert continued.isdisjoint(sides["signal"] | sides["judge"])
    text = task.cut["test"][0]
    demonstration = text.demonstration
    assert demonstration.prompt.text + demonstration.response == text.whole
    assert demonstration.response[0] == " "
    assert {side_of(str(number)) for number in range(200)} == set(SIDES)


def test_without_a_risk_level_both_arms_are_the_same_record() -> None:
    plain, averse = (settings(alpha=1.0).algorithm_of(arm) for arm in ("rlhf", "ra-rlhf"))
    assert plain.selection is None and averse.selection is not None
    assert {name: getattr(plain, name) for name in ("advantage", "epochs", "kl_coef", "policy_loss")} == {
        name: getattr(averse, name) for name in ("advantage", "epochs", "kl_coef", "policy_loss")
    }


def test_a_log_probability_pays_little_for_a_text_that_is_good_already() -> None:
    signal = TextScorer(value=lambda texts: [float(text) for text in texts])
    assert risk.rewarding(signal, "logit") is signal
    bounded = risk.rewarding(signal, "log-probability").value(["-800", "0", "800"])
    assert bounded == pytest.approx([-800.0, -math.log(2), 0.0])


def test_differences_are_paired_by_prompt_and_seed_and_split_by_hardness() -> None:
    def arm(*rewards: list[float]) -> list[Outcome]:
        return [Outcome({}, {"rewards": each, "hard": [1.0, 0.0, 0.0]}) for each in rewards]

    outcomes = {"t-rlhf": arm([-2.0, 1.0, 3.0], [-1.0, 1.0, 2.0]), "t-ra-rlhf": arm([-1.0, 1.5, 3.0], [0.5, 1.0, 2.0])}
    table = report.by_prompt(["t"], Results(outcomes=outcomes))
    rows = [[cell.strip() for cell in line.split("|")[2:5]] for line in table.splitlines() if line.startswith("| t ")]
    assert [(row[0], row[1].split()[0], row[2]) for row in rows] == [
        ("hardest prompts", "1.25", "2"),  # (1 + 1.5) / 2
        ("the other prompts", "0.12", "4"),  # 0.5 / 4
        ("all prompts", "0.50", "6"),
    ]


def test_a_quick_run_writes_page_picture_and_summary_and_a_stopped_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step_at: Callable[..., Any] = on_policy.OnPolicyTrainer.step_at
    steps: list[int] = []

    def stopped(self: Any, index: int) -> Any:
        steps.append(index)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step_at(self, index)

    monkeypatch.setattr(on_policy.OnPolicyTrainer, "step_at", stopped)
    folder, page = tmp_path / "run", tmp_path / "docs" / "ra-rlhf.md"
    with pytest.raises(KeyboardInterrupt):
        ra_rlhf(**QUICK, folder=str(folder), page=str(page))
    before = read_json(folder / "starter-gen-sft-seed-0" / "stage.json")
    ra_rlhf(**QUICK, folder=str(folder), page=str(page))

    assert read_json(folder / "starter-gen-sft-seed-0" / "stage.json") == before
    text = page.read_text()
    assert "smoke test" in text and "| starter-gen, RA-RLHF |" in text
    assert (tmp_path / "docs" / "ra-rlhf.svg").read_text().startswith("<?xml")
    summary = read_json(folder / "summary.json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    rewards = summary["figures"]["starter-gen-ra-rlhf"]["reward"]
    assert rewards["n"] == 2 and rewards["low"] <= rewards["value"] <= rewards["high"]
    rows = [r for r in read_jsonl_tolerant(folder / "metrics.jsonl") if r["stage"].startswith("starter-gen-ra-rlhf")]
    assert [row["step"] for row in rows] == [1, 2, 3] * 2
    # all at first, then the prompts of the worst ceil(0.4 * 16) = 7 of 16 samples: two of four
    assert (rows[0]["kept"], rows[2]["kept"]) == (1.0, 2 / 4)
    rollouts = read_jsonl_tolerant(folder / "starter-gen-sft-seed-0" / "rollouts.jsonl")
    assert len(rollouts) == 12 and {"reward", "signal"} <= rollouts[0]["scores"]["values"].keys()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"algorithm": "dpo"}, "no algorithm 'dpo'"),
        ({"signal": "judge"}, "signal is 'judge'"),
        ({"reward": "loss"}, "reward is 'loss'"),
        ({"steps": 0}, "steps is 0"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"tasks": ()}, "tasks are"),
        ({"evaluated": 5}, "at least 10 prompts"),
    ],
)
def test_a_setting_that_cannot_work_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changed)
