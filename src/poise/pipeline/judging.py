"""Who judges the answers of an evaluation, and who reads refusals in training: heads that no training signal shares.

Where people's ratings of harm are on the machine, a judge that learned from them, and from harmless answers to harmless
prompts, decides what is harmful; the judge that learned from the data's own labels then speaks of helpfulness, and its
cost stands beside as a second opinion. Refusals and evasions have two scorers that learned from other prompts: one is
limited in training, the other decides in the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from poise.data import first_prompts
from poise.data.human_rated import are_there
from poise.data.outcomes import Use, outcomes
from poise.models.features import FeatureCache
from poise.models.load import Backbone
from poise.pipeline.judges import RATED_TOKENS, harm_judge_if_rated, judging, rated_harm
from poise.pipeline.refusals import refusal_scorer
from poise.pipeline.scores import TrainedScoreModel
from poise.run import Run
from poise.types import Estimate, Scorer

_LEAST_PROMPTS = 48  # of a source of labels: fewer may all say the same
_OF_REFUSALS = ("refusal_auc", "refusal_f1", "unrelated_f1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Who judges the answers of an evaluation, and who reads refusals in training.

    helpful  learned from the split of the data for judges; its cost decides on harm where `harm` is None, and is a
             second opinion else
    harm     learned from people's ratings of other answers; None where none are on the machine
    refusal  of the evaluation, which nothing is trained against
    limited  the scorer of refusals that limits and training read
    """

    helpful: TrainedScoreModel
    harm: TrainedScoreModel | None
    refusal: TrainedScoreModel
    limited: TrainedScoreModel

    @property
    def scorers(self) -> dict[str, Scorer]:
        """The scorers of an evaluation by name; they fill the channels reward, cost and refusal."""
        judges = {"judge": self.helpful.model} if self.harm is None else judging(self.helpful, self.harm)
        return {**judges, "refusal judge": self.refusal.model}

    @property
    def verdict(self) -> TrainedScoreModel:
        """The judge with the figures of all who judge, by names that none of them share."""
        known = {name: value for name, value in self.refusal.accuracy.items() if name in _OF_REFUSALS}
        return replace(self.helpful, accuracy={**self._of_harm(), **known})

    def _of_harm(self) -> Mapping[str, Estimate]:
        if self.harm is None:
            return self.helpful.accuracy
        return {**self.helpful.accuracy, **self.harm.accuracy}


def judges(
    run: Run,
    backbone: Backbone,
    helpful: TrainedScoreModel,
    *,
    longest_answer: int,
    most_prompts: int = 0,
    cache: FeatureCache | None = None,
) -> Judges:
    """Train those who judge beside the judge of helpfulness, each as a stage of the run.

    longest_answer  tokens of a response that is judged
    most_prompts    of each source of labels; 0: all
    """
    few = max(_LEAST_PROMPTS, 2 * most_prompts)

    def refusals(use: Use) -> TrainedScoreModel:
        rows = first_prompts(outcomes(use), few) if most_prompts else None
        return refusal_scorer(run, backbone, use, longest_answer=longest_answer, rows=rows, cache=cache)

    rated = first_prompts(rated_harm(), few) if most_prompts and are_there("harm") else None
    harm = harm_judge_if_rated(
        run, backbone, longest_answer=max(longest_answer, RATED_TOKENS), ratings=rated, cache=cache
    )
    return Judges(helpful=helpful, harm=harm, refusal=refusals("evaluation"), limited=refusals("limit"))
