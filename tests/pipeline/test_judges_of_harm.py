"""Judges from people's ratings: what they learn from, what their figures rest on, and that they are made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from poise.data.human_rated import part_of
from poise.evaluate.suite import score_completions
from poise.models.heads import ScoreModel
from poise.models.load import Backbone, load_backbone
from poise.pipeline import judges
from poise.pipeline.judges import harm_judge, harm_judge_if_rated, judging
from poise.pipeline.scores import TrainedScoreModel
from poise.run import Run
from poise.types import Completion, Dataset, Prompt, Rating


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", recipe="judges", arguments={}) as opened:
        yield opened


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("random:llama?layers=3")


def rated(*, flip: str = "") -> Dataset:
    """Answers in z harm and answers in a do not, whatever is asked; `flip` turns the ratings of a part around."""
    ratings = []
    for number in range(60):
        text = f"request {number}"
        part = part_of(text)
        prompt = Prompt.of(text, split=part, categories=("first" if number % 2 else "second",))
        for response, value in (("zz " * (2 + number % 3), 0.75), ("aa " * (2 + number % 5), 0.0)):
            wanted = 0.75 - value if part == flip else value
            ratings.append(Rating(prompt=prompt, response=response, value=wanted, criterion="harm"))
    return Dataset(name="rated", ratings=tuple(ratings), provenance={"read_from": "here"})


def scores(judge: TrainedScoreModel) -> torch.Tensor:
    return judge.model.values([Prompt.of("What now?")] * 2, ["zz zz", "aa aa aa"])[:, 0]


def test_a_judge_tells_harm_on_prompts_and_categories_that_it_never_saw(run: Run, backbone: Backbone) -> None:
    judge = harm_judge(run, backbone, ratings=rated())
    harmful, harmless = scores(judge).tolist()
    assert harmful > 0 > harmless
    assert judge.accuracy["harm_auc"].value > 0.95
    assert judge.accuracy["harm_sign_accuracy"].value > 0.9
    assert {"harm_auc_without_first", "harm_auc_without_second", "harm_auc_of_length"} < judge.accuracy.keys()
    assert run.stage("harm-judge").result["validated"] == "on unseen prompts"
    assert judge.accuracy["harm_auc"].n == sum(r.prompt.tags["split"] == "test" for r in rated().ratings)


def test_no_rating_of_the_test_part_moves_the_judge(run: Run, backbone: Backbone) -> None:
    judge, other = (harm_judge(run, backbone, ratings=rated(flip=part), name=part or "as-is") for part in ("", "test"))
    assert torch.equal(scores(judge), scores(other))
    assert other.accuracy["harm_auc"].value < 0.05


def test_without_a_test_part_the_figures_are_cross_validated(run: Run, backbone: Backbone) -> None:
    shared = replace(rated(), ratings=tuple(r for r in rated().ratings if r.prompt.tags["split"] == "train"))
    judge = harm_judge(run, backbone, ratings=shared)
    assert run.stage("harm-judge").result["validated"] == "cross-validated by prompt"
    assert judge.accuracy["harm_auc"].n == judge.rows == len(shared.ratings)


def test_a_finished_judge_is_read_back_and_not_fitted_again(
    run: Run, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = harm_judge(run, backbone, ratings=rated())
    monkeypatch.setattr(judges, "_fit_harm", None)
    again = harm_judge(run, backbone, ratings=rated())
    assert torch.equal(scores(judge), scores(again))
    assert again.accuracy == judge.accuracy


def test_a_judge_reads_all_that_may_be_said(run: Run, backbone: Backbone) -> None:
    assert harm_judge(run, backbone, ratings=rated(), name="short").model.max_response_tokens == judges.RATED_TOKENS
    assert harm_judge(run, backbone, ratings=rated(), name="long", longest_answer=500).model.max_response_tokens == 500


def test_where_nobody_rated_anything_there_is_no_judge_and_that_is_said(
    run: Run, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judges, "are_there", lambda criterion: False)
    assert harm_judge_if_rated(run, backbone) is None
    assert "nobody has compared it with people. pip install --no-deps pyrit" in " ".join(
        capsys.readouterr().err.split()
    )
    monkeypatch.setattr(judges, "are_there", lambda criterion: True)
    assert harm_judge_if_rated(run, backbone, ratings=rated()) is not None


def test_one_judge_speaks_of_harm_and_another_of_help(run: Run, backbone: Backbone) -> None:
    helpful = TrainedScoreModel(model=ScoreModel(backbone), accuracy={}, rows=0)
    scorers = judging(helpful, harm := harm_judge(run, backbone, ratings=rated()))
    prompt = Prompt.of("What now?")
    (rollout,) = score_completions([prompt], [Completion(prompt_id=prompt.id, text="zz zz")], scorers)
    reward, cost = helpful.model.values([prompt], ["zz zz"])[0].tolist()
    expected = {"reward": reward, "cost_by_labels": cost, "cost": float(scores(harm)[0])}
    assert rollout.scores.values == pytest.approx(expected, abs=1e-3)
