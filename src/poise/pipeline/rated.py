"""What recipes on rated pairs share: pairs by use, the start model, and a judge that learned from other prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from poise.data.rated import rated_pairs, split_rated_pairs, without_margins
from poise.models.features import FeatureCache
from poise.models.heads import REWARD
from poise.models.load import Backbone
from poise.pipeline.model import feature_cache, start_model
from poise.pipeline.scores import ScoreModelSpec, TrainedScoreModel, fit_scores
from poise.run import Run
from poise.train.score_model import evaluate_scores
from poise.types import Dataset

HEAD = ScoreModelSpec(channels=(REWARD,), calibrated=0.0, reading={"hidden": 0})
JUDGE = replace(HEAD, depth=0.7, seed=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedMaterial:
    """What all policies and reward models of a set share.

    splits      pairs to learn from (train), of the judge (judge) and to test on (test); no prompt is on two sides
    judge       a Bradley-Terry reward model of other prompts than those that policies learn from or are tested on
    references  the folder with the start's log-probabilities of the pairs, which are computed once
    """

    splits: Mapping[str, Dataset]
    backbone: Backbone
    cache: FeatureCache
    judge: TrainedScoreModel
    references: Path

    def reference(self, side: str) -> Path:
        """The file that keeps the start's log-probabilities of the pairs of a side."""
        return self.references / f"{side}.json"


def prepare_rated(
    run: Run,
    *,
    model: str,
    data: str,
    pairs_per_prompt: int,
    chat_template: str | None = None,
    columns: str = "",
    most_prompts: int = 0,
    score_steps: int | None = None,
) -> RatedMaterial:
    """Load rated pairs and the start model, and train the judge.

    data              a set with ratings; beginnings of texts are continued, requests are answered
    pairs_per_prompt  pairs that are taken of each prompt
    most_prompts      of all sides together; 0: all
    score_steps       updates of the judge; None: as many as its epochs need
    """
    dataset = rated_pairs(data, pairs_per_prompt=pairs_per_prompt, columns=columns)
    run.record_data(data, dataset.provenance)
    splits = split_rated_pairs(dataset, most_prompts=most_prompts)
    backbone = start_model(run, model, continues_text=data.startswith("odpo"), chat_template=chat_template)
    cache, measure = feature_cache(run), partial(evaluate_scores, comparisons=splits["test"].comparisons)
    spec, rows = replace(JUDGE, steps=score_steps), without_margins(splits["judge"])
    judge = fit_scores(run, backbone, rows, spec, measure=measure, name="judge", cache=cache)
    references = run.stage("reference").path
    return RatedMaterial(splits=splits, backbone=backbone, cache=cache, judge=judge, references=references)
