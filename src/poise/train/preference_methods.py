"""How preferences become a gradient, as records of a loss and the feedback it reads; and what the labels say.

A method says nothing of what is wanted: with `ConstrainedLabels` any method for pairs becomes its constrained form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from poise.errors import DataError
from poise.functional.implied_rewards import ImpliedReward, reverse_kl_reward
from poise.functional.preference_losses import (
    PreferenceLoss,
    ResponseLoss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    odds_ratio_loss,
    simpo_loss,
    supervised_loss,
)
from poise.functional.preference_targets import (
    conservative_target,
    constrained_target,
    margin_target,
    robust_target,
    signed_log1p,
)
from poise.train.objectives import Controller, Limit
from poise.train.preference_feedback import PairFeedback, ResponseFeedback
from poise.types import PairBatch, ResponseBatch

PairLoss = Callable[[PairBatch], PreferenceLoss]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceMethod:
    """A loss of a batch of feedback, and the form of feedback that it reads."""

    loss: Callable[[Any], PreferenceLoss | ResponseLoss]
    feedback: type[PairFeedback] | type[ResponseFeedback] = PairFeedback


def dpo(
    *,
    beta: float = 0.1,
    implied_reward: ImpliedReward = reverse_kl_reward,
    target: Callable[[PairBatch], Tensor] = lambda pairs: pairs.probability,
    margin: Callable[[PairBatch], Tensor | None] = lambda pairs: None,
) -> PreferenceMethod:
    """DPO and what differs from it in the divergence, in how sure a label is or in a margin (see `dpo_loss`)."""

    def loss(pairs: PairBatch) -> PreferenceLoss:
        sides = (pairs.chosen, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected)
        return dpo_loss(
            *sides, beta=beta, implied_reward=implied_reward, margin=margin(pairs), probability=target(pairs)
        )

    return PreferenceMethod(loss=loss)


def conservative_dpo(*, beta: float = 0.1, flip_rate: float = 0.1) -> PreferenceMethod:
    """DPO with smoothed labels (cDPO)."""
    return dpo(beta=beta, target=lambda pairs: conservative_target(pairs.probability, flip_rate=flip_rate))


def robust_dpo(*, beta: float = 0.1, flip_rate: float = 0.1) -> PreferenceMethod:
    """DPO whose loss is that of clean labels in expectation (rDPO)."""
    return dpo(beta=beta, target=lambda pairs: robust_target(pairs.probability, flip_rate=flip_rate))


def mmpo(*, beta: float = 0.1, gamma: float = 1.0) -> PreferenceMethod:
    """DPO that matches implied differences to the margins of the pairs (MMPO)."""
    return dpo(beta=beta, target=lambda pairs: margin_target(pairs.margin, gamma=gamma))


def offset_dpo(
    *, beta: float = 0.1, alpha: float = 1.0, scaling: Callable[[Tensor], Tensor] = signed_log1p
) -> PreferenceMethod:
    """DPO that asks for a difference of at least alpha * scaling(margin) (ODPO, arXiv:2402.10571).

    `scaling` is any increasing function; by default it is 0 for pairs without a margin, and a negative margin allows
    the chosen response to lose by so much. Give it `torch.log` for ODPO's own, which needs margins above 0.

    Raises DataError for a margin whose scaling is not finite.
    """

    def offset(pairs: PairBatch) -> Tensor:
        found = alpha * scaling(pairs.margin)
        if not bool(found.isfinite().all()):
            wrong = pairs.margin[~found.isfinite()]
            raise DataError(
                f"offset_dpo: its scaling has no finite value for {len(wrong)} of {len(found)} margins, such as "
                f"{float(wrong[0]):g}: use the default scaling, or drop pairs without a margin above 0"
            )
        return found

    return dpo(beta=beta, margin=offset)


def safe_dpo(*, beta: float = 0.1, offset: float = 2.0) -> PreferenceMethod:
    """DPO on pairs in which safety goes first, that asks for more where only the winner is safe (SafeDPO).

        -log sigmoid(h - offset * margin),   margin 1 where the winner is safe and the loser is not, else 0

    The pairs are those of `feedback.joint.safety_first`, without pairs of two unsafe responses.
    Source: SafeDPO (arXiv:2505.20065), without cost model and sampling; the offset is its one hyperparameter.
    """
    return dpo(beta=beta, margin=lambda pairs: offset * pairs.margin)


def ipo(*, beta: float = 0.1) -> PreferenceMethod:
    """A squared loss with a finite optimum (IPO)."""

    def loss(pairs: PairBatch) -> PreferenceLoss:
        sides = (pairs.chosen, pairs.rejected, pairs.ref_chosen, pairs.ref_rejected)
        return ipo_loss(*sides, beta=beta, probability=pairs.probability)

    return PreferenceMethod(loss=loss)


def simpo(*, beta: float = 2.0, margin: float = 1.0) -> PreferenceMethod:
    """Mean log-probabilities with a margin, without a reference (SimPO)."""
    return PreferenceMethod(loss=_of_lengths(partial(simpo_loss, beta=beta, margin=margin)))


def orpo(*, beta: float = 0.1) -> PreferenceMethod:
    """Supervised learning of the chosen response with an odds-ratio penalty, without a reference (ORPO)."""
    return with_supervised(PreferenceMethod(loss=_of_lengths(partial(odds_ratio_loss, beta=beta))), coefficient=1.0)


def kto(*, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> PreferenceMethod:
    """Responses judged one by one against what any text gains (KTO).

    Weight the rarer kind so that the two sums of weights are about equal.
    """

    def loss(responses: ResponseBatch) -> ResponseLoss:
        return kto_loss(
            responses.logprobs,
            responses.ref_logprobs,
            responses.desirable,
            responses.baseline,
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )

    return PreferenceMethod(loss=loss, feedback=ResponseFeedback)


def with_supervised(method: PreferenceMethod, *, coefficient: float) -> PreferenceMethod:
    """A method for pairs with the supervised loss of the response that is more likely the better one added."""

    def loss(pairs: PairBatch) -> PreferenceLoss:
        result: Any = method.loss(pairs)
        first = pairs.probability >= 0.5
        better = torch.where(first, pairs.chosen, pairs.rejected)
        tokens = torch.where(first, pairs.chosen_tokens, pairs.rejected_tokens)
        return result._replace(losses=result.losses + coefficient * supervised_loss(better, tokens))

    return replace(method, loss=loss)


def graded_by(method: PreferenceMethod, channel: str) -> PreferenceMethod:
    """A method for pairs whose margins are the differences of a scorer's channel; a pair it ranks otherwise turns."""

    def loss(pairs: PairBatch) -> PreferenceLoss | ResponseLoss:
        return method.loss(replace(pairs, margin=_difference(pairs, channel)))

    return replace(method, loss=loss)


class Labels(Protocol):
    """What the labels of pairs say, and what moves them."""

    def label(self, batch: Any) -> Any:
        """A batch with its labels as they are now."""
        ...

    def update(self, index: int) -> dict[str, float]:
        """Learn from the policy after step `index`; returns metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it, bit for bit."""
        ...


class AsJudged:
    """Labels stay as they were given."""

    def label(self, batch: Any) -> Any:
        """The batch itself."""
        return batch

    def update(self, index: int) -> dict[str, float]:
        """Nothing to learn."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class ConstrainedLabels:
    """Constrained DPO: pairs are judged by reward less the price of cost, and dual ascent moves the price.

        p = sigmoid(sharpness (dr - l dc)),   l <- controller(mean cost of fresh answers, limit)

    Reward and cost are a scorer's, learned from helpful and from safe comparisons. The labels the pairs came with are
    not looked at. `mean_cost(index)` samples answers of the policy after step `index` and returns their mean cost on
    the limit's channel; it is asked every `every` steps, and must follow from weights and index alone.
    Source: C-DPO, Liu et al. (arXiv:2403.02475). There the policy is trained to the end between two moves of l; here
    both move together.
    """

    def __init__(
        self,
        limit: Limit,
        controller: Controller,
        mean_cost: Callable[[int], float],
        *,
        every: int = 1,
        sharpness: float = 1.0,
    ):
        self.limit, self.controller, self.mean_cost = limit, controller, mean_cost
        self.every, self.sharpness = every, sharpness

    def label(self, batch: PairBatch) -> PairBatch:
        """The pairs with probabilities by reward less the price of cost."""
        reward, cost = _difference(batch, "reward"), _difference(batch, self.limit.channel)
        target = constrained_target(reward, cost, self.controller.multiplier, sharpness=self.sharpness)
        return replace(batch, probability=target)

    def update(self, index: int) -> dict[str, float]:
        """Move the multiplier by the mean cost, where it is due."""
        metrics = {}
        if (index + 1) % self.every == 0:
            mean = self.mean_cost(index)
            self.controller.update(mean, self.limit.at_most)
            metrics = {"mean_cost": mean, "excess": mean - self.limit.at_most}
        return metrics | {"multiplier": self.controller.multiplier}

    def state_dict(self) -> dict[str, Any]:
        """The controller's."""
        return self.controller.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.controller.load_state_dict(state)


def _of_lengths(loss: Callable[..., PreferenceLoss]) -> PairLoss:
    """A loss of log-probabilities and lengths as a loss of pairs."""

    def of_pairs(pairs: PairBatch) -> PreferenceLoss:
        sides = (pairs.chosen, pairs.rejected, pairs.chosen_tokens, pairs.rejected_tokens)
        return loss(*sides, probability=pairs.probability)

    return of_pairs


def _difference(pairs: PairBatch, channel: str) -> Tensor:
    if channel not in pairs.score_differences:
        raise DataError(
            f"pairs have no scores on channel {channel!r} (they have: {', '.join(pairs.score_differences) or 'none'}): "
            "give PairFeedback a scorer for it"
        )
    return pairs.score_differences[channel]
