"""Scorers of refusals: a probability in [0, 1], figures from prompts that were not learned from, made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from poise.data.human_rated import part_of
from poise.models.heads import COST, ScoreModel
from poise.models.load import Backbone, load_backbone
from poise.models.one_pass import OnePass
from poise.pipeline import refusals
from poise.pipeline.refusals import DEPTHS, refusal_scorer
from poise.run import Run
from poise.types import Completion, Dataset, Prompt, Rating, Scorer


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", recipe="refusals", arguments={}) as opened:
        yield opened


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("random:llama?layers=3")


def said(*, flip: str = "") -> Dataset:
    """Two sources in which z refuses and a answers, three answers to one refusal; `flip` turns a part around."""
    ratings = []
    for number in range(60):
        text = f"request {number}"
        tags = {"split": part_of(text), "source": "first" if number % 2 else "second"}
        for response in ("zz " * (2 + number % 3), "aa " * (2 + number % 5), "aaa", "aaaa aaa"):
            value = float(response.startswith("z"))
            wanted = 1.0 - value if tags["split"] == flip else value
            prompt = Prompt.of(text, **tags)
            ratings.append(Rating(prompt=prompt, response=response, value=wanted, criterion="refusal"))
        ratings.append(replace(ratings[-1], response="az az", value=0.5))
    return Dataset(name="said", ratings=tuple(ratings), provenance={"read_from": "here"})


def probabilities(scorer: Scorer) -> list[float]:
    prompt = Prompt.of("What now?")
    answers = [Completion(prompt_id=prompt.id, text=text) for text in ("zz zz", "aa aa aa")]
    return [scores.values["refusal"] for scores in scorer.score([prompt] * 2, answers)]


def test_refusals_are_told_by_a_probability(run: Run, backbone: Backbone) -> None:
    scorer = refusal_scorer(run, backbone, "limit", rows=said())
    refused, answered = probabilities(scorer.model)
    assert 0.5 < refused <= 1.0
    assert 0.0 <= answered < 0.5
    assert scorer.model.bounds == {"refusal": (0.0, 1.0)}
    for name in ("refusal_f1", "refusal_f1_on_first", "refusal_f1_without_first", "refusal_f1_without_second"):
        assert scorer.accuracy[name].value > 0.9, name


def test_no_row_of_the_test_part_moves_a_scorer(run: Run, backbone: Backbone) -> None:
    one, other = (
        refusal_scorer(run, backbone, "limit", rows=said(flip=part), name=f"a{part}") for part in ("", "test")
    )
    assert probabilities(one.model) == probabilities(other.model)
    assert other.accuracy["refusal_f1"].value < 0.1


def test_the_two_uses_read_other_layers(run: Run, backbone: Backbone) -> None:
    depths = {use: refusal_scorer(run, backbone, use, rows=said()).model.depth for use in DEPTHS}
    assert depths == {"limit": 2, "evaluation": 2}  # of three layers; of thirty they are 20 and 22
    assert round(30 * DEPTHS["limit"]) < round(30 * DEPTHS["evaluation"])


def test_a_finished_scorer_is_read_back_and_not_fitted_again(
    run: Run, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = refusal_scorer(run, backbone, "limit", rows=said())
    monkeypatch.setattr(refusals, "_fit", None)
    again = refusal_scorer(run, backbone, "limit", rows=said())
    assert probabilities(again.model) == probabilities(scorer.model)
    assert again.accuracy == scorer.accuracy


def test_a_scorer_shares_the_pass_of_a_cost_model(run: Run, backbone: Backbone) -> None:
    scorer = refusal_scorer(run, backbone, "limit", rows=said()).model
    cost = ScoreModel(backbone, (COST,), depth=1, pooling="mean+last+prompt")
    assert probabilities(OnePass([cost, scorer])) == pytest.approx(probabilities(scorer), abs=1e-5)
