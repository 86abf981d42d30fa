"""What a channel of a score model minimises: a loss of its judgements, and the form of judgement that it reads.

A loss is a function of a `JudgementBatch`; any other goes in beside ours:

    ScoreModelSpec(channels=(Channel(name="humour"),), losses={"humour": ChannelLoss(loss=my_loss)})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from poise.errors import ConfigError, DataError
from poise.functional.graded_losses import plackett_luce_loss, regression_loss, segment_class_loss
from poise.functional.score_losses import bradley_terry_loss, cost_sign_loss
from poise.models.channels import Channel

Form = Literal["pairs", "rankings", "ratings", "classes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One row of feedback on numbered responses: a ranking of two or more, a rating, the safety of one, or classes.

    Of classes the responses are one response up to the ends of its segments, and `channel` is the first class.
    """

    channel: str
    first: int  # preferred for a reward, safer for a cost; the only one for a label or a rating
    second: int = -1
    probability: float = 1.0  # that `first` is preferred
    margin: float = 0.0
    first_safe: bool | None = None
    second_safe: bool | None = None
    rating: float | None = None
    behind: tuple[int, ...] = ()  # of a ranking: the responses after the second, the best first; of classes: the rest
    class_names: tuple[str, ...] = ()  # the channels of the K classes, for classes alone
    classes: tuple[int, ...] = ()  # an index into them for each of `numbers`

    @property
    def form(self) -> Form | None:
        """What is judged; None for the safety of one response, which is a matter of signs alone."""
        if self.classes:
            return "classes"
        if self.rating is not None:
            return "ratings"
        return "rankings" if self.behind else "pairs" if self.second >= 0 else None

    @property
    def numbers(self) -> tuple[int, ...]:
        """The responses it speaks of, the best first."""
        return tuple(number for number in (self.first, self.second, *self.behind) if number >= 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgementBatch:
    """J judgements with the raw scores of their responses, as losses read them.

    What a judgement does not have is 0 there: the second response of a rating, the rating of a pair.
    """

    first: Tensor  # [J] raw scores
    second: Tensor  # [J]
    sign: Tensor  # [J] -1 where higher is worse, else +1
    probability: Tensor  # [J] that `first` is preferred
    margin: Tensor  # [J] by how much, in the unit of whoever judged
    rating: Tensor  # [J]
    ranked: Tensor  # [J, R] raw scores from the best response to the worst
    ranked_mask: Tensor  # [J, R] bool: which responses there are
    logits: Tensor  # [J, R, K] raw scores of the same responses under the K classes; K is 0 for other judgements
    classes: Tensor  # [J, R] int64 in 0..K-1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLoss:
    """How a channel learns from judgements of one form; its safety labels add the sign terms of a cost in any case.

    `sets_units` says that the loss itself fixes zero and unit of the scores, so that calibration leaves them alone.
    """

    loss: Callable[[JudgementBatch], Tensor]  # [J] per judgement
    reads: Form = "pairs"
    sets_units: bool = False


def _bradley_terry(batch: JudgementBatch) -> Tensor:
    return bradley_terry_loss(
        batch.sign * batch.first, batch.sign * batch.second, margin=batch.margin, probability=batch.probability
    )


def _plackett_luce(batch: JudgementBatch) -> Tensor:
    return plackett_luce_loss(batch.sign[:, None] * batch.ranked, batch.ranked_mask)


def _regression(batch: JudgementBatch) -> Tensor:
    return regression_loss(batch.first, batch.rating)


def _segment_class(batch: JudgementBatch) -> Tensor:
    return segment_class_loss(batch.logits, batch.classes, batch.ranked_mask)


BRADLEY_TERRY = ChannelLoss(loss=_bradley_terry)
PLACKETT_LUCE = ChannelLoss(loss=_plackett_luce, reads="rankings")
REGRESSION = ChannelLoss(loss=_regression, reads="ratings", sets_units=True)
SEGMENT_CLASS = ChannelLoss(loss=_segment_class, reads="classes", sets_units=True)


def required_margin(margin: float) -> ChannelLoss:
    """Bradley-Terry where the better response must win by `margin` more than the judgement itself says.

    >>> required_margin(0.5).reads
    'pairs'
    """

    def loss(batch: JudgementBatch) -> Tensor:
        required = batch.margin + margin
        return bradley_terry_loss(
            batch.sign * batch.first, batch.sign * batch.second, margin=required, probability=batch.probability
        )

    return ChannelLoss(loss=loss)


def require_readable(judgements: Sequence[Judgement], losses: Mapping[str, ChannelLoss]) -> None:
    """Raise DataError where a judgement has a form that the loss of its channel does not read."""
    for judgement in judgements:
        wanted = losses.get(judgement.channel, BRADLEY_TERRY).reads
        is_ranking_of_two = judgement.form == "pairs" and wanted == "rankings" and judgement.probability == 1.0
        if judgement.form not in (None, wanted) and not is_ranking_of_two:
            raise DataError(
                f"channel {judgement.channel!r} learns from {wanted}, but there are {judgement.form} on its criteria: "
                "give the channel another loss (`ScoreModelSpec.losses`), or remove these judgements"
            )


def require_known(losses: Mapping[str, ChannelLoss], channels: Sequence[Channel]) -> None:
    """Raise ConfigError for the loss of a channel that there is not."""
    names = [channel.name for channel in channels]
    if strangers := sorted(losses.keys() - set(names)):
        raise ConfigError(f"losses of {', '.join(strangers)}, but the channels are {', '.join(names)}")


def judgement_losses(
    scores: Tensor,  # [N, C] raw scores of the responses `numbers`
    numbers: Sequence[int],
    channels: Sequence[Channel],
    judgements: Sequence[Judgement],
    regularisation: float,
    losses: Mapping[str, ChannelLoss] | None = None,
) -> Tensor:
    """The loss [J] of each judgement: its channel's loss, sign terms and the regulariser of its own scores."""
    given = losses or {}
    by_loss: dict[tuple[ChannelLoss, tuple[str, ...]], list[int]] = {}
    for place, judgement in enumerate(judgements):
        loss = given.get(judgement.channel, BRADLEY_TERRY)
        by_loss.setdefault((loss, judgement.class_names), []).append(place)
    found = [
        _losses(scores, numbers, channels, [judgements[i] for i in places], regularisation, loss)
        for (loss, _), places in by_loss.items()
    ]
    order = torch.tensor([i for places in by_loss.values() for i in places], device=scores.device)
    return found[0] if len(found) == 1 else torch.cat(found)[order.argsort()]


def _losses(
    scores: Tensor,
    numbers: Sequence[int],
    channels: Sequence[Channel],
    judgements: Sequence[Judgement],
    regularisation: float,
    loss: ChannelLoss,
) -> Tensor:
    columns = {channel.name: i for i, channel in enumerate(channels)}
    signs = {channel.name: float(channel.sign) for channel in channels}
    position = {number: i for i, number in enumerate(numbers)}

    def tensor(values: Sequence[float] | Sequence[bool] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, device=scores.device)

    width = max(len(j.numbers) for j in judgements)
    column = tensor([columns[j.channel] for j in judgements])
    rows = tensor([[position[n] for n in j.numbers] + [0] * (width - len(j.numbers)) for j in judgements])
    there = tensor([[k < len(j.numbers) for k in range(width)] for j in judgements])
    first = scores[rows[:, 0], column]
    second = scores[rows[:, 1], column] if width > 1 else torch.zeros_like(first)
    batch = JudgementBatch(
        first=first,
        second=second,
        sign=tensor([signs[j.channel] for j in judgements]),
        probability=tensor([j.probability for j in judgements]),
        margin=tensor([j.margin for j in judgements]),
        rating=tensor([0.0 if j.rating is None else j.rating for j in judgements]),
        ranked=scores[rows, column[:, None]],
        ranked_mask=there,
        logits=_logits(scores, [columns[name] for name in judgements[0].class_names], rows),
        classes=tensor([[*j.classes, *[0] * (width - len(j.classes))] for j in judgements]),
    )
    is_judged = tensor([j.form is not None for j in judgements])
    is_pair = tensor([j.second >= 0 for j in judgements])
    judged = loss.loss(batch)
    squares = torch.where(is_pair, (first.square() + second.square()) / 2, first.square())
    if width > 2:
        squares = batch.ranked.square().masked_fill(~there, 0).sum(-1) / there.sum(-1)
    if batch.logits.shape[-1]:
        squares = batch.logits.square().mean(-1).masked_fill(~there, 0).sum(-1) / there.sum(-1)
    found = torch.where(is_judged, judged, 0.0) + regularisation * squares
    for values, flags in ((first, [j.first_safe for j in judgements]), (second, [j.second_safe for j in judgements])):
        safe, known = tensor([bool(flag) for flag in flags]), tensor([flag is not None for flag in flags])
        found = found + torch.where(known, cost_sign_loss(values, safe), 0.0)
    return found


def _logits(scores: Tensor, columns: Sequence[int], rows: Tensor) -> Tensor:
    """The raw scores [J, R, K] of the chosen columns; none of none, which leaves the gradient its order of sums."""
    return scores[:, list(columns)][rows] if columns else scores.new_zeros(*rows.shape, 0)


def response_numbers(judgements: Sequence[Judgement]) -> list[int]:
    """The distinct responses that judgements speak of."""
    return sorted({number for j in judgements for number in j.numbers})


def response_flags(judgements: Sequence[Judgement]) -> dict[int, bool]:
    """Safety flag of every flagged response number."""
    found: dict[int, bool] = {}
    for j in judgements:
        for number, safe in ((j.first, j.first_safe), (j.second, j.second_safe)):
            if number >= 0 and safe is not None:
                found[number] = safe
    return found
