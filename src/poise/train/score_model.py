"""Train a score model: every channel on the judgements of its criteria, by a loss of its own (`channel_losses`).

With a frozen backbone the pooled features are computed once, so that a step costs microseconds: a linear probe. With an
adapter every step runs the backbone. The loss is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from poise.data.batching import epoch_order
from poise.errors import ConfigError, DataError
from poise.functional.intervals import mean, share
from poise.functional.statistics import expected_calibration_error, fit_platt
from poise.models.heads import Channel, ScoreModel, length_buckets
from poise.models.shared_rows import SharedRows
from poise.ranks import current
from poise.train.channel_losses import (
    BRADLEY_TERRY,
    ChannelLoss,
    Judgement,
    judgement_losses,
    require_known,
    require_readable,
    response_flags,
    response_numbers,
)
from poise.train.checkpoint import load_optimizer_state, optimizer_state, restore_parameters
from poise.train.loop import Schedule, apply_gradients, cosine, require_finite, set_learning_rate
from poise.train.responses import Responses, ranked_pairs
from poise.train.segment_classes import SegmentClasses, segment_judgements
from poise.types import Comparison, Estimate, Rating, SafetyLabel


class FeedbackTable:
    """Judgements over a table of distinct responses, each rendered once.

    A judgement teaches the channels that learn from its criterion (`Channel.criteria`); one on another criterion is an
    error. Safety labels teach the sign of the channels that read them: by default the first where higher is worse.

    Judgements of responses that only differ beyond the model's window teach nothing: they are left out, and
    `beyond_window` is their share, `segments_beyond_window` that of segments that the model cannot read whole.

    Raises:
        DataError: nothing teaches a channel of the model, or something would teach none of them.
        ConfigError: a loss belongs to a channel that the model does not have, or reads another form than it is given.
    """

    def __init__(
        self,
        model: ScoreModel,
        comparisons: Sequence[Comparison] = (),
        labels: Sequence[SafetyLabel] = (),
        ratings: Sequence[Rating] = (),
        *,
        segments: Sequence[SegmentClasses] = (),
        losses: Mapping[str, ChannelLoss] | None = None,
    ):
        self._responses = Responses()
        self.judgements: list[Judgement] = []
        self.losses = dict(losses or {})
        require_known(self.losses, model.channels)
        _require_learned(model, (*comparisons, *ratings, *segments), labels)
        labelled = _labelled(model.channels)
        for comparison in comparisons:
            for channel in _learning(model.channels, comparison.criterion):
                self._add_comparison(comparison, channel, has_flags=channel.name in labelled)
        for rating in ratings:
            number = self._responses.number(rating.prompt, rating.response)
            for channel in _learning(model.channels, rating.criterion):
                self.judgements.append(Judgement(channel=channel.name, first=number, rating=rating.value))
        of_segments = segment_judgements(model, segments, self.losses, self._responses.number)
        self.judgements += of_segments[0]
        self.segments_beyond_window = of_segments[1]
        for name in labelled:
            flagged = response_flags([j for j in self.judgements if j.channel == name])
            for label in labels:
                number = self._responses.number(label.prompt, label.response)
                if number not in flagged:
                    self.judgements.append(Judgement(channel=name, first=number, first_safe=label.safe))
        if not self.judgements:
            raise DataError(f"no feedback for channels {_described(model.channels)}: give judgements on their criteria")
        self.prompt_ids = [prompt.id for prompt in self._responses.prompts]  # of each response
        self.rows, self.starts = model.encode(self._responses.prompts, self._responses.texts)
        self.judgements, self.beyond_window = self._told_apart(model.max_response_tokens)
        # the judgements of one prompt share their responses' forward pass
        self.groups = self._responses.by_prompt(self.judgements, lambda judgement: judgement.first)

    def _told_apart(self, window: int) -> tuple[list[Judgement], float]:
        """The judgements whose responses differ in what the model reads of them, and the share of the others."""
        kept = [each for judgement in self.judgements if (each := self._distinct(judgement)) is not None]
        if not kept:
            raise DataError(
                f"the responses of all {len(self.judgements)} comparisons are the same in the first {window} tokens, "
                "and the score model reads no more: give it a larger max_response_tokens"
            )
        return kept, 1 - len(kept) / len(self.judgements)

    def _distinct(self, judgement: Judgement) -> Judgement | None:
        """The judgement over responses that the model can tell apart; None if fewer than two of several are left."""
        if judgement.second < 0:
            return judgement
        seen: dict[tuple[int, ...], int] = {}
        for number in judgement.numbers:
            seen.setdefault(tuple(self.rows[number]), number)
        left = tuple(seen.values())
        if len(left) < 2:
            return None
        return judgement if left == judgement.numbers else replace(judgement, second=left[1], behind=left[2:])

    def _add_comparison(self, comparison: Comparison, channel: Channel, *, has_flags: bool) -> None:
        numbers = [self._responses.number(comparison.prompt, response) for response in comparison.responses]
        flags: Sequence[bool | None] = comparison.safe if comparison.safe and has_flags else [None] * len(numbers)
        if comparison.ranking and self.losses.get(channel.name, BRADLEY_TERRY).reads == "rankings":
            self._add_ranking(channel, [(numbers[i], flags[i]) for i in comparison.ranking])
            return
        for best, other, probability in ranked_pairs(comparison):
            self.judgements.append(
                Judgement(
                    channel=channel.name,
                    first=numbers[best],
                    second=numbers[other],
                    probability=probability,
                    margin=comparison.margin,
                    first_safe=flags[best],
                    second_safe=flags[other],
                )
            )

    def _add_ranking(self, channel: Channel, ranked: Sequence[tuple[int, bool | None]]) -> None:
        """One judgement of the whole ranking, and the flags of its responses on their own."""
        first, second, *behind = [number for number, _ in ranked]
        self.judgements.append(Judgement(channel=channel.name, first=first, second=second, behind=tuple(behind)))
        for number, safe in ranked:
            if safe is not None:
                self.judgements.append(Judgement(channel=channel.name, first=number, first_safe=safe))


def _learning(channels: Sequence[Channel], criterion: str) -> list[Channel]:
    return [channel for channel in channels if criterion in channel.criteria]


def _labelled(channels: Sequence[Channel]) -> list[str]:
    """The channels whose sign safety labels set."""
    chosen = [channel.name for channel in channels if channel.reads_labels]
    open_to_them = [channel.name for channel in channels if channel.higher_is_worse and channel.reads_labels is None]
    return chosen or open_to_them[:1]


def _require_learned(
    model: ScoreModel, judgements: Sequence[Comparison | Rating | SegmentClasses], labels: Sequence[SafetyLabel]
) -> None:
    """Raise DataError for feedback that would teach no channel."""
    known = {criterion for channel in model.channels for criterion in channel.criteria}
    unknown = Counter(each.criterion for each in judgements if each.criterion not in known)
    if unknown:
        raise DataError(
            f"{unknown.total()} of {len(judgements)} judgements have a criterion that no channel learns from: "
            f"{', '.join(f'{name} ({count})' for name, count in sorted(unknown.items()))}. The channels learn "
            f"from {_described(model.channels)}: add a channel, such as Channel(name={min(unknown)!r}), give the "
            "criterion to one (`criteria`), or remove these rows (`data.select(..., criterion=...)`)"
        )
    if labels and not _labelled(model.channels):
        raise DataError(
            f"{len(labels)} safety labels, but none of the channels {', '.join(model.names)} reads them: add one "
            "with higher_is_worse=True or reads_labels=True, or remove the labels"
        )


def _described(channels: Sequence[Channel]) -> str:
    return ", ".join(f"{channel.name} ({' and '.join(channel.criteria)})" for channel in channels)


class ScoreTrainer:
    """Fit a score model's channels to feedback.

        reward   -log sigmoid(R_better - R_worse)
        cost     -log sigmoid(C_unsafer - C_safer) - sum over flagged responses of log sigmoid(s C)
        both     + regularisation * mean square of the scores,   s = -1 if safe else +1

    These are the losses of channels that are given none; `channel_losses` has others.

    The loss is the mean over the judgements of a step; micro-batches add exactly.
    Source: Safe RLHF (arXiv:2310.12773), reward- and cost-model losses.
    """

    def __init__(
        self,
        *,
        model: ScoreModel,
        table: FeedbackTable,
        prompts_per_step: int = 32,
        steps: int = 300,
        lr: float = 3e-3,
        adapter_lr: float = 3e-4,
        weight_decay: float = 1.0,
        regularisation: float = 1e-3,
        schedule: Schedule = cosine,
        tokens_per_micro_batch: int = 4096,
        seed: int = 0,
    ):
        require_readable(table.judgements, table.losses)
        self.model, self.table, self.steps, self.schedule, self.seed = model, table, steps, schedule, seed
        self.per_step, self.tokens = min(prompts_per_step, len(table.groups)), tokens_per_micro_batch
        self.regularisation = regularisation
        self.features = model.features(table.rows, table.starts)
        self.lower = _lower(model, table) if model.lora is not None else None
        if not model.is_classifier:  # whose head has no bias to undo it with
            model.feature_mean.copy_(self.features.mean(0))
        model.feature_std.copy_(self.features.std(0, correction=0).clamp(min=1e-4))
        self.parameters = model.trained_parameters()
        head = [p for name, p in self.parameters.items() if name.startswith("head.")]
        adapter = [p for name, p in self.parameters.items() if not name.startswith("head.")]
        groups = [{"params": head, "lr": lr, "weight_decay": weight_decay}]
        groups += [{"params": adapter, "lr": adapter_lr, "weight_decay": 0.0}] if adapter else []
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))

    def step_at(self, index: int) -> dict[str, float]:
        """One optimizer step on the judgements that follow from the index and the seed."""
        set_learning_rate(self.optimizer, self.schedule(index, self.steps))
        self.model.train()
        order = epoch_order(len(self.table.groups), self.per_step, index, seed=self.seed)
        chosen = [self.table.groups[i] for i in order]
        count, loss_sum = sum(map(len, chosen)), 0.0
        own, weight = self._my_part(chosen)
        parts = self._micro_batches(own)
        for judgements, counts in current().pad_to_equal_steps(parts, parts[0], weight):
            numbers = response_numbers(judgements)
            losses = judgement_losses(
                self._scores(numbers), numbers, self.model.channels, judgements, self.regularisation, self.table.losses
            )
            loss = counts * losses.sum() / count
            require_finite({"score loss": loss})
            loss.backward()
            loss_sum += loss.item()
        norm = apply_gradients(self.optimizer, self.parameters, max_norm=1.0)
        self.model.eval()
        loss_sum = current().sum(torch.tensor(loss_sum, dtype=torch.float64)).item()
        return {"loss": loss_sum, "gradient_norm": norm}

    def _scores(self, numbers: list[int]) -> Tensor:
        index = torch.tensor(numbers, device=self.features.device)
        pooled = self.features[index] if self.lower is None else self.model.pooled(self.lower.select(index))
        scores: Tensor = self.model(pooled)
        return scores

    def _my_part(self, chosen: list[list[Judgement]]) -> tuple[list[list[Judgement]], float]:
        """This process's prompts and their weight; a head on known features is one process's work."""
        if self.model.lora is None:
            return chosen, float(current().is_main)
        return current().partition(chosen, [float(len(response_numbers(group))) for group in chosen])

    def _micro_batches(self, chosen: list[list[Judgement]]) -> list[list[Judgement]]:
        """Whole prompts together, padded size within the token budget; one batch where the backbone is frozen."""
        if self.model.lora is None:
            return [[judgement for group in chosen for judgement in group]]
        sizes = [max(len(self.table.rows[n]) for n in response_numbers(group)) for group in chosen]
        most = max(len(response_numbers(group)) for group in chosen)
        buckets = length_buckets([size * most for size in sizes], self.tokens)
        return [[judgement for i in bucket for judgement in chosen[i]] for bucket in buckets]

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves; the features' scale is computed from the data before the first step."""
        return {
            "parameters": dict(self.parameters),
            "optimizer": optimizer_state(self.optimizer),
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, bit for bit."""
        restore_parameters(self.parameters, state["parameters"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        torch.set_rng_state(state["random"])


def _lower(model: ScoreModel, table: FeedbackTable) -> SharedRows:
    """All rows with their states below the adapter; of several processes each runs its rows from the tokens on."""
    rows = SharedRows.of_lists(table.rows, table.starts, device=model.backbone[0].device)
    return model.frozen_states(rows) if current().size == 1 else rows


@torch.no_grad()
def evaluate_scores(
    model: ScoreModel,
    comparisons: Sequence[Comparison],
    labels: Sequence[SafetyLabel] = (),
    ratings: Sequence[Rating] = (),
) -> dict[str, Estimate]:
    """Accuracy of each channel on held-out feedback, with intervals over prompts, and the cost's calibration error.

    `<channel>_pair_accuracy`      share of pairs ordered as judged (ties are wrong)
    `<channel>_sign_accuracy`      share of flagged responses with the right sign (0 is wrong)
    `<channel>_calibration_error`  of the probability of harm, where the channel is calibrated
    `<channel>_rating_error`       mean distance to the ratings, in the unit of the channel
    """
    table = FeedbackTable(model, comparisons, labels, ratings)
    raw = model(model.features(table.rows, table.starts)).cpu()
    result: dict[str, Estimate] = {}
    for column, channel in enumerate(model.channels):
        values = channel.value(raw[:, column])
        rows = [j for j in table.judgements if j.channel == channel.name]
        result |= _pair_accuracy(channel, values, rows, table.prompt_ids)
        result |= _sign_accuracy(channel, values, response_flags(rows), table.prompt_ids)
        result |= _rating_error(channel, values, rows, table.prompt_ids)
    return result


def _pair_accuracy(
    channel: Channel, values: Tensor, rows: Sequence[Judgement], prompts: Sequence[str]
) -> dict[str, Estimate]:
    pairs = [j for j in rows if j.second >= 0 and j.probability != 0.5]
    if not pairs:
        return {}
    sign = -1 if channel.higher_is_worse else 1
    ahead = [sign * float(values[j.first] - values[j.second]) * (j.probability - 0.5) for j in pairs]
    return {f"{channel.name}_pair_accuracy": share([margin > 0 for margin in ahead], [prompts[j.first] for j in pairs])}


def _rating_error(
    channel: Channel, values: Tensor, rows: Sequence[Judgement], prompts: Sequence[str]
) -> dict[str, Estimate]:
    rated = [(j.first, j.rating) for j in rows if j.rating is not None]
    if not rated:
        return {}
    distances = [abs(float(values[number]) - rating) for number, rating in rated]
    return {f"{channel.name}_rating_error": mean(distances, [prompts[number] for number, _ in rated])}


def _sign_accuracy(
    channel: Channel, values: Tensor, safety: Mapping[int, bool], prompts: Sequence[str]
) -> dict[str, Estimate]:
    if not safety:
        return {}
    costs, flags = values[list(safety)], list(safety.values())
    hits = [cost < 0 if safe else cost > 0 for cost, safe in zip(costs.tolist(), flags, strict=True)]
    result = {f"{channel.name}_sign_accuracy": share(hits, [prompts[number] for number in safety])}
    if channel.calibration is not None:
        probabilities = channel.calibration.probability(costs.numpy())
        error = expected_calibration_error(probabilities, [float(not safe) for safe in flags])
        result[f"{channel.name}_calibration_error"] = Estimate(
            value=error, n=len(flags), unit="share", method="10 bins; no interval: biased upwards"
        )
    return result


@torch.no_grad()
def calibrate(
    model: ScoreModel,
    comparisons: Sequence[Comparison],
    labels: Sequence[SafetyLabel] = (),
    ratings: Sequence[Rating] = (),
    *,
    losses: Mapping[str, ChannelLoss] | None = None,
) -> None:
    """Set units and calibration from held-out feedback: sd 1 per channel, and P(harm) = sigmoid(a cost + b).

    A reward is also centred, but not that of a sequence classifier, which has no bias; a cost is only scaled, its zero
    stays. A channel whose loss sets the units keeps them.

    Raises ConfigError if a channel has too few held-out responses.
    """
    table = FeedbackTable(model, comparisons, labels, ratings, losses=losses)
    raw = model(model.features(table.rows, table.starts)).cpu()
    for column, channel in enumerate(model.channels):
        loss = table.losses.get(channel.name, BRADLEY_TERRY)
        if loss.reads == "classes":  # of the classes of segments only the differences mean something
            continue
        rows = [j for j in table.judgements if j.channel == channel.name]
        used = response_numbers(rows)
        if len(used) < 2:
            raise ConfigError(f"channel {channel.name!r}: {len(used)} held-out responses are too few to calibrate it")
        sd = raw[used, column].std().clamp(min=1e-6).item()
        keeps_zero = channel.higher_is_worse or model.is_classifier
        shift = 0.0 if keeps_zero else raw[used, column].mean().item()
        scaled = channel if loss.sets_units else replace(channel, shift=shift, scale=sd)
        safety = response_flags(rows)
        if safety and len(set(safety.values())) == 2:
            costs = scaled.value(raw[list(safety), column])
            scaled = replace(
                scaled, calibration=fit_platt(costs.numpy(), [float(not safe) for safe in safety.values()])
            )
        model.with_channel(scaled)
