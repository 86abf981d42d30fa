"""Score models: heads that learn any channels from comparisons and labels, calibrated and measured on other prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.data import split_by_prompt, without_splits
from poise.data.batching import num_steps
from poise.errors import DataError
from poise.models.features import FeatureCache
from poise.models.heads import COST, REWARD, Channel, ScoreModel, load_score_model
from poise.models.load import Backbone
from poise.plan.work import Planner, current_planner
from poise.run import Run
from poise.train.channel_losses import ChannelLoss
from poise.train.loop import fit
from poise.train.score_model import FeedbackTable, ScoreTrainer, calibrate
from poise.types import Dataset, Estimate, Rating, SafetyLabel

CALIBRATED = 1 / 6  # share of the prompts that a score model is calibrated on
PROMPTS_PER_STEP = 32
_HEAD_STEP_S = 0.006  # seconds of a step of the heads on known features
_ROW_S = 0.003  # seconds to render a row and to turn it into tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreModelSpec:
    """The configuration of a score model: its channels, what it reads and how it is trained.

    A channel learns from the judgements on its `criteria`, with the Bradley-Terry loss unless `losses` has another for
    its name: `PLACKETT_LUCE`, `REGRESSION`, `required_margin(0.5)`, or your own `ChannelLoss`.

    >>> ScoreModelSpec(depth=0.5).channels[1].higher_is_worse
    True
    """

    depth: float = 0.5  # share of the backbone's layers that the heads read
    channels: tuple[Channel, ...] = (REWARD, COST)
    epochs: float = 40
    max_steps: int | None = None
    steps: int | None = None  # exactly so many; None: as many as the epochs need, and at most max_steps
    calibrated: float = CALIBRATED  # share of the prompts that is held out to calibrate on; 0: raw scores, of all rows
    weight_decay: float = 1.0
    regularisation: float = 1e-3
    seed: int = 0
    losses: Mapping[str, ChannelLoss] = field(default_factory=dict)  # of channels that do not learn as the paper's do
    reading: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `ScoreModel`: pooling, hidden ...

    def model(self, backbone: Backbone, *, adapter: str = "score", cache: FeatureCache | None = None) -> ScoreModel:
        """A new, untrained score model on the backbone. Raises ConfigError as `ScoreModel` does."""
        depth = max(1, round(backbone.decoder.depth * self.depth))
        return ScoreModel(
            backbone, self.channels, depth=depth, adapter=adapter, seed=self.seed, cache=cache, **self.reading
        )

    def trainer(self, model: ScoreModel, data: Dataset) -> ScoreTrainer:
        """The trainer of `model` on the comparisons, labels and ratings of `data`.

        Raises DataError for judgements that no channel learns from, or a channel without judgements.
        """
        table = FeedbackTable(model, data.comparisons, data.labels, data.ratings, losses=self.losses)
        steps = num_steps(len(table.groups), PROMPTS_PER_STEP, self.epochs)
        torch.manual_seed(self.seed)
        steps = steps if self.max_steps is None else min(steps, self.max_steps)
        return ScoreTrainer(
            model=model,
            table=table,
            steps=self.steps or steps,
            seed=self.seed,
            weight_decay=self.weight_decay,
            regularisation=self.regularisation,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedScoreModel:
    """A trained and calibrated score model, its accuracy on unseen prompts, and the number of rows it learned from."""

    model: ScoreModel
    accuracy: Mapping[str, Estimate]
    rows: int


def fit_scores(
    run: Run,
    backbone: Backbone,
    data: Dataset,
    spec: ScoreModelSpec = ScoreModelSpec(),
    *,
    measure: Callable[[ScoreModel], Mapping[str, Estimate]] = lambda model: {},
    name: str = "scores",
    cache: FeatureCache | None = None,
) -> TrainedScoreModel:
    """Train heads on five sixths of the prompts of `data`, or as the spec says, calibrate on the others, and measure.

    measure  accuracy on prompts that are not in `data`
    cache    features of the frozen backbone, shared by all score models of a run

    The stage's folder holds the score model, which `load_score_model` and `poise serve-scorer` read.
    """
    stage = run.stage(name)
    if (planner := current_planner()) is not None:
        _plan(planner, planner.named(run, name), data, spec, is_cached=cache is not None)
        return TrainedScoreModel(model=spec.model(backbone, adapter=name), accuracy={}, rows=0)
    model = None
    if not stage.finished:
        model = spec.model(backbone, adapter=stage.name, cache=cache)
        parts = _parts(data, spec)
        _require_judgements(data, parts, spec.channels)
        trainer = spec.trainer(model, parts["fit"])
        fit(trainer, run=run, stage=stage.name, steps=trainer.steps, save_every=50)
        if spec.calibrated:
            held = parts["calibrate"]
            calibrate(model, held.comparisons, held.labels, held.ratings, losses=spec.losses)
        accuracy = measure(model)
        model.save_pretrained(stage.path / "model")
        table = trainer.table
        facts = {"rows": len(table.rows), "beyond_window": table.beyond_window, "depth": model.depth}
        stage.finish({"accuracy": accuracy} | facts)
    expect = {channel.name: channel.higher_is_worse for channel in spec.channels}
    if model is None or model.lora is None:  # an adapter that was trained a moment ago is on the backbone already
        known: dict[str, Any] = {"backbone": backbone, "expect": expect, "cache": cache}
        model = load_score_model(stage.path / "model", adapter=stage.name, **known)
    accuracy = {key: Estimate(**value) for key, value in stage.result["accuracy"].items()}
    return TrainedScoreModel(model=model, accuracy=accuracy, rows=stage.result["rows"])


def _require_judgements(data: Dataset, parts: Mapping[str, Dataset], channels: Sequence[Channel]) -> None:
    """Raise DataError for a channel that nothing is said of, in all of the data or on the side that is held back."""
    for side in (data, *parts.values()):
        criteria = {row.criterion for row in side.comparisons} | {row.criterion for row in side.ratings}
        if missing := [
            f"{channel.name} (criterion {' or '.join(channel.criteria)})"
            for channel in channels
            if not criteria & set(channel.criteria) and not (channel.higher_is_worse and side.labels)
        ]:
            where = "" if side is data else f", of which {len(side.prompts)} are held back,"
            raise DataError(
                f"{data.name}: nothing in its {len(data.prompts)} prompts{where} is a judgement for "
                f"{' and '.join(missing)}: a score model needs judgements for each of its channels, on enough "
                "prompts to hold a sixth of them back (docs/data.md)"
            )


def _parts(data: Dataset, spec: ScoreModelSpec) -> dict[str, Dataset]:
    """What is learned from, and what is calibrated on."""
    if not spec.calibrated:
        return {"fit": data}
    # another seed than the split itself was drawn with: by the same one all its prompts would fall on one side
    shares = {"fit": 1 - spec.calibrated, "calibrate": spec.calibrated}
    return split_by_prompt(without_splits(data), shares, seed=spec.seed + 500)


def _plan(planner: Planner, name: str, data: Dataset, spec: ScoreModelSpec, *, is_cached: bool) -> None:
    """One pass of every response whose features no cache has through the lower layers, and steps of small heads."""
    compute, texts = planner.compute, {(spec.depth, row.prompt.id, text) for row, text in _responses(data)}
    prompts = {row.prompt.id: row.prompt.text for row, _ in _responses(data)}
    unread = sorted(texts - planner.cached if is_cached else texts)
    planner.cached |= texts if is_cached else set()
    asked = [prompts[prompt] for prompt in sorted({prompt for _, prompt, _ in unread})]
    tokens = len(asked) * (planner.tokens.template + planner.tokens.mean(asked))
    tokens += len(unread) * planner.tokens.mean([text for *_, text in unread])
    steps = spec.steps or num_steps(round(len(prompts) * (1 - spec.calibrated)), PROMPTS_PER_STEP, spec.epochs)
    seconds = compute.forward(tokens, layers=compute.model.layers * spec.depth) if unread else 0.0
    planner.add(
        name,
        seconds=seconds + _HEAD_STEP_S * steps + _ROW_S * len(texts),
        memory=compute.scoring(),
        work=f"{tokens:,.0f} tokens through {spec.depth:.0%} of the layers, {steps} steps of the heads",
    )


def _responses(data: Dataset) -> Iterable[tuple[Any, str]]:
    for comparison in data.comparisons:
        yield from ((comparison, text) for text in comparison.responses)
    rows: tuple[SafetyLabel | Rating, ...] = (*data.labels, *data.ratings)
    yield from ((row, row.response) for row in rows)
