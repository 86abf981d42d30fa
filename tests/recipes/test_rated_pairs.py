"""Recipes on rated pairs: what a pair says of its margin, figures against definitions, and both recipes end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from poise.errors import ConfigError
from poise.files import read_json
from poise.recipes._margins import softened
from poise.recipes._rated import calibration_figures, rated_pairs
from poise.recipes.f_dpo import f_dpo
from poise.recipes.mmpo import mmpo
from poise.train.responses import ranked_pairs
from poise.types import Comparison, Prompt


def test_pairs_of_rated_responses_have_margins_and_winners_that_agree() -> None:
    dataset = rated_pairs("starter", pairs_per_prompt=2)
    assert all(each.margin > 0 for each in dataset.comparisons)
    per_prompt: dict[str, int] = {}
    for each in dataset.comparisons:
        per_prompt[each.prompt.id] = per_prompt.get(each.prompt.id, 0) + 1
    assert max(per_prompt.values()) == 2
    assert {each.winner for each in dataset.comparisons} == {0, 1}


@pytest.mark.parametrize("winner", [0, 1])
def test_the_soft_target_favours_the_winner_by_its_margin(winner: int) -> None:
    pair = Comparison(prompt=Prompt.of("p"), responses=("a", "b"), winner=winner, margin=2.0)
    ((best, other, probability),) = ranked_pairs(softened(pair, gamma=0.5))
    assert (best, other) == (winner, 1 - winner)
    assert probability == pytest.approx(1 / (1 + math.exp(-1.0)))


def test_calibration_is_that_of_the_confidence_in_the_higher_reward() -> None:
    sure_and_right = calibration_figures([9.0, 9.0, 9.0])
    assert sure_and_right["accuracy"] == 1.0 and sure_and_right["ece"] < 1e-3
    sure_and_half_wrong = calibration_figures([9.0, -9.0])
    assert sure_and_half_wrong["ece"] == pytest.approx(0.5, abs=1e-3)
    assert calibration_figures([0.0, 0.1])["confidence"] == pytest.approx(0.5, abs=0.02)


def test_divergences_run_from_pairs_to_the_page(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "two-strengths.md"
    f_dpo(quick=True, folder=str(tmp_path / "run"), page=str(page))
    text = page.read_text()
    assert "| Jensen-Shannon, beta 0.1 |" in text and "| forward KL, beta 0.1 |" in text
    assert "](two-strengths-2.svg)" in text and (tmp_path / "docs" / "two-strengths-2.svg").exists()
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary["seeds"] == 2
    figures = summary["figures"]["reverse-kl-0.1"]
    assert 0 <= figures["accuracy"]["value"] <= 1 and figures["entropy"]["value"] > 4


def test_margins_run_from_pairs_to_the_page(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "mmpo.md"
    mmpo(quick=True, folder=str(tmp_path / "run"), page=str(page))
    text = page.read_text()
    assert "| starter, MMPO reward model |" in text and "gamma " in text
    summary = read_json(tmp_path / "run" / "summary.json")
    matched, plain = (summary["figures"][f"starter-{arm}"]["train_ece"]["value"] for arm in ("mmpo-rm", "bt"))
    assert matched != plain
    before = (tmp_path / "run" / "starter-dpo-seed-0" / "stage.json").stat().st_mtime_ns
    mmpo(quick=True, folder=str(tmp_path / "run"))
    assert (tmp_path / "run" / "starter-dpo-seed-0" / "stage.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"sure": 0.5}, "probability is 0.5"),
        ({"sets": ()}, "sets are"),
        ({"lr": 0.0}, "lr is 0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mmpo(**changed, folder="unused")
