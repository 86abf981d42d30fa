"""Score models with channels by name: what `--channels` says, what they learn from, and the classifier they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from poise.data import judges_harm, select
from poise.errors import ConfigError, ModelError
from poise.models.channels import COST, REWARD, Channel
from poise.models.classifier import save_classifier, why_no_classifier
from poise.models.heads import ScoreModel
from poise.plan.work import current_planner
from poise.ranks import current
from poise.run import Run
from poise.text import say
from poise.train.channel_losses import BRADLEY_TERRY, PLACKETT_LUCE, REGRESSION, ChannelLoss
from poise.train.score_model import evaluate_scores
from poise.types import Dataset, Estimate

SIGNS = "signs"  # Bradley-Terry and the sign terms of a cost: the channel is one, higher is worse
LOSSES: Mapping[str, ChannelLoss] = {
    "bradley-terry": BRADLEY_TERRY,
    SIGNS: BRADLEY_TERRY,
    "regression": REGRESSION,
    "plackett-luce": PLACKETT_LUCE,
}


def channels_named(
    texts: Sequence[str], data: Dataset | None = None
) -> tuple[tuple[Channel, ...], dict[str, ChannelLoss]]:
    """The channels that NAME[:LOSS[:CRITERION]] name, and their losses; without any, those that `data` judge.

    Raises ConfigError for a loss that there is not, or two channels of one name.

    >>> found, losses = channels_named(["reward:regression:helpfulness", "cost"])
    >>> found[0].criteria, found[1].higher_is_worse, sorted(losses)
    (('helpfulness',), True, ['reward'])
    """
    if not texts:
        return (REWARD, COST) if data is None or judges_harm(data) else (REWARD,), {}
    channels, losses = [], {}
    for text in texts:
        name, loss, criterion = (*(part.strip() for part in text.split(":", 2)), "", "")[:3]
        if not name.replace("-", "_").isidentifier() or (loss and loss not in LOSSES):
            raise ConfigError(f"channel {text!r}: write NAME[:LOSS[:CRITERION]], with a loss of {', '.join(LOSSES)}")
        if name == COST.name and loss and loss != SIGNS:
            raise ConfigError(f"channel {text!r}: a cost learns by {SIGNS}, so that above 0 is harm; call another so")
        is_cost = loss == SIGNS or name == COST.name
        channels.append(Channel(name=name, higher_is_worse=is_cost, criteria=(criterion,) if criterion else ()))
        if loss and LOSSES[loss] is not BRADLEY_TERRY:
            losses[name] = LOSSES[loss]
    if twice := [name for name, count in Counter(each.name for each in channels).items() if count > 1]:
        raise ConfigError(f"channels: {', '.join(twice)} stands there twice")
    return tuple(channels), losses


def judged_for(channels: Sequence[Channel], data: Dataset) -> Dataset:
    """The judgements that the channels learn from; how many of others are left out is said."""
    criteria = {name for channel in channels for name in channel.criteria}
    judged = [row.criterion for row in data.comparisons] + [row.criterion for row in data.ratings]
    others = Counter(name for name in judged if name not in criteria)
    kept = select(data, criterion=criteria)
    if data.labels and not any(channel.higher_is_worse for channel in channels):
        others["safety labels"], kept = len(data.labels), replace(kept, labels=())
    if others and current().is_main and current_planner() is None:
        left = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
        say(f"{data.name}: no channel learns from {left}: these judgements are left out", error=True)
    return kept


def accuracy_on(data: Dataset, model: ScoreModel) -> dict[str, Estimate]:
    """Accuracy of each channel on held-out judgements; nothing where none are held out."""
    if not (data.comparisons or data.labels or data.ratings):
        return {}
    return evaluate_scores(model, data.comparisons, data.labels, data.ratings)


def kept_classifier(
    run: Run, model: ScoreModel, accuracy: Mapping[str, Estimate], *, name: str = "classifier"
) -> str | None:
    """Write the score model as a sequence classifier into a stage; its place in the run, or None where none can be it.

    accuracy  for its model card
    """
    if current_planner() is not None:
        return None
    stage = run.stage(name)
    if not stage.finished:
        reason, figures = why_no_classifier(model), "\n".join(f"- {key}: {value}" for key, value in accuracy.items())
        try:
            if not reason:
                save_classifier(model, stage.path / "model", about=f"\n## On held-out prompts\n\n{figures}\n")
        except ModelError as error:
            reason = str(error)
        if reason and current().is_main:
            say(f"no sequence classifier for transformers was written: {reason}", error=True)
        stage.finish({"reason": reason})
    return None if stage.result["reason"] else f"{name}/model"
