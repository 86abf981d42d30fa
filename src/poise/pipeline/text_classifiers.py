"""Classifiers of whole texts for tasks of continuing them: the signal that is trained on, and a judge held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from poise.data.continuations import ContinuationTask, LabelledText
from poise.feedback.words import TextScorer, WordClassifier
from poise.functional.statistics import area_under_curve, share
from poise.models.features import FeatureCache
from poise.models.heads import Channel, ScoreModel
from poise.models.load import Backbone
from poise.pipeline.model import feature_cache
from poise.pipeline.scores import ScoreModelSpec, fit_scores
from poise.plan.work import current_planner
from poise.run import Run
from poise.types import Dataset, Estimate, Prompt, SafetyLabel

BAD = Channel(name="cost", higher_is_worse=True)  # a head's logit of the bad label
HEAD = ScoreModelSpec(
    channels=(BAD,),
    calibrated=0.0,
    weight_decay=5.0,
    regularisation=0.01,
    reading={"pooling": "mean", "hidden": 0, "max_response_tokens": 64},
)
SIGNALS = ("words", "features")
SIGNAL_DEPTH, JUDGE_DEPTH = 0.4, 0.6  # shares of the layers below a head
_BEFORE_TEXT = Prompt.of("\n")  # what a head reads a text after: one prompt, so that every step sees all rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TextClassifiers:
    """Signal and judge of a task, and what they are worth on rows that neither has seen.

    Their values are logits of the good label.

    validation_metrics  "signal_auc", "judge_accuracy", "judge_auc_on_texts_to_continue" ...
    validation_hits     behind each accuracy: whether the label of each text was told
    """

    signal: TextScorer
    judge: TextScorer
    validation_metrics: Mapping[str, Estimate]
    validation_hits: Mapping[str, Sequence[bool]]


def fit_text_classifiers(
    run: Run,
    backbone: Backbone,
    task: ContinuationTask,
    *,
    signal: Literal["words", "features"] = "features",
    steps: int = 150,
) -> TextClassifiers:
    """Fit the signal and the judge of a task to their own rows, and measure both on others.

    signal  reads words and word pairs, or features of the frozen backbone at a smaller depth than the judge's
    steps   updates of a head, each on all rows

    A policy that a signal on words has moved is mostly a policy of those words: on continuations of the same
    beginning it hardly agrees with the judge. A signal that reads features reads more of what the judge reads.
    """
    run.record_data(task.name, task.provenance)
    cache, depths = feature_cache(run), {"signal": SIGNAL_DEPTH, "judge": JUDGE_DEPTH}
    logits = {
        side: _words(task.labelled[side])
        if side == "signal" and signal == "words"
        else _head(run, backbone, task.labelled[side], replace(HEAD, depth=depth, steps=steps), name=side, cache=cache)
        for side, depth in depths.items()
    }
    scorers = {side: TextScorer(value=value, name=side) for side, value in logits.items()}
    hits, aucs = _validated(run, task, scorers)
    accuracies = {name: share(right) for name, right in hits.items()}
    return TextClassifiers(**scorers, validation_metrics=aucs | accuracies, validation_hits=hits)


def _words(texts: Sequence[LabelledText]) -> Callable[[Sequence[str]], Sequence[float]]:
    return WordClassifier.fit([text.whole for text in texts], [text.good for text in texts]).logits


def _head(
    run: Run,
    backbone: Backbone,
    texts: Sequence[LabelledText],
    spec: ScoreModelSpec,
    *,
    name: str,
    cache: FeatureCache,
) -> Callable[[Sequence[str]], Sequence[float]]:
    """Logits by a linear head on the backbone's features."""
    labels = tuple(SafetyLabel(prompt=_BEFORE_TEXT, response=text.whole, safe=text.good) for text in texts)
    data = Dataset(name=name, prompts=(_BEFORE_TEXT,), labels=labels)
    model = fit_scores(run, backbone, data, spec, name=name, cache=cache).model
    return lambda texts: _good_logits(model, texts)


@torch.no_grad()
def _good_logits(model: ScoreModel, texts: Sequence[str]) -> list[float]:
    rows, starts = model.encode([_BEFORE_TEXT] * len(texts), list(texts))
    return [-float(z) for z in model(model.features(rows, starts))[:, 0]]


def _validated(
    run: Run, task: ContinuationTask, scorers: Mapping[str, TextScorer]
) -> tuple[dict[str, list[bool]], dict[str, Estimate]]:
    """Hits and AUC on labelled rows like those that were learned from, and on the texts that are continued."""
    if current_planner() is not None:
        return {}, {}
    stage = run.stage("classifiers")
    if not stage.finished:
        hits: dict[str, list[bool]] = {}
        aucs: dict[str, Estimate] = {}
        for place, texts in {"": task.labelled["test"], "_on_texts_to_continue": task.continued["test"]}.items():
            truth = [text.good for text in texts]
            for name, scorer in scorers.items():
                logits = scorer.value([text.whole for text in texts])
                hits[f"{name}_accuracy{place}"] = [bool(z > 0) == good for z, good in zip(logits, truth, strict=True)]
                aucs[f"{name}_auc{place}"] = area_under_curve(logits, truth)
        stage.finish({"hits": hits, "aucs": aucs})
    return stage.result["hits"], {name: Estimate(**value) for name, value in stage.result["aucs"].items()}
