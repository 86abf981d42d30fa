"""Which episodes of a batch are learned from: all, or the worst by a ranking and a schedule.

A selection sees the returns of a batch and says which episodes are kept; the others leave the response mask before
advantages are standardised, so that neither policy nor critics nor any statistic of the update knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from poise.functional.risk import evenly_of_rest, soft_risk_count, worst, worst_count
from poise.train.limits import channel_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """What a selection is made from."""

    returns: Mapping[str, Tensor]  # trained channel -> [B] sum of its rewards per token, KL penalty included
    first_targets: Mapping[str, Tensor]  # trained channel -> [B] critic target of the first token
    signs: Mapping[str, int]  # trained channel -> +1 maximised, -1 limited
    group: Tensor  # [B] number of the prompt
    mix: Callable[[Mapping[str, Tensor]], Tensor]  # the objective's: channels to one number, higher is better
    step: int  # from 0
    steps: int  # of the whole training


Selection = Callable[[Episodes], Tensor]  # -> [B] bool, True on episodes to learn from
Ranking = Callable[[Episodes], Tensor]  # -> [B], lower is worse


class Count(Protocol):
    """How many episodes are kept at a step: `soft_risk_count`, or the authors' `reference_soft_risk_count`."""

    def __call__(self, step: int, *, steps: int, episodes: int, alpha: float, warm_up: int, end: float) -> int:
        """1 to `episodes`."""
        ...


def by_return(episodes: Episodes) -> Tensor:
    """Rank by the Monte-Carlo return under the objective, KL penalty included: what RA-RLHF's paper says."""
    return episodes.mix(episodes.returns)


def by_first_target(episodes: Episodes) -> Tensor:
    """Rank by the critic's target of the first token, a lambda-return: what the authors' code does."""
    return episodes.mix(episodes.first_targets)


def by_channel(name: str) -> Ranking:
    """Rank by one channel alone: `by_channel("cost")` learns from the episodes with the highest cost."""

    def ranking(episodes: Episodes) -> Tensor:
        returns = channel_of(episodes.returns, name, "the ranking")
        return returns * episodes.signs[name]

    return ranking


def by_prompt(ranking: Ranking = by_return) -> Ranking:
    """Rank an episode by the mean of its prompt's, so that prompts are kept whole: the risk is that of a prompt.

    A baseline within the prompt needs all of its episodes: the worst of each alone are all below it.
    """

    def of_prompt(episodes: Episodes) -> Tensor:
        ranks = ranking(episodes)
        numbers = episodes.group.unique(return_inverse=True)[1]
        sums = torch.zeros_like(ranks).index_add_(0, numbers, ranks)
        counts = torch.zeros_like(ranks).index_add_(0, numbers, torch.ones_like(ranks))
        return (sums / counts.clamp(min=1))[numbers]

    return of_prompt


def worst_share(alpha: float, ranking: Ranking = by_return) -> Selection:
    """Keep the worst share `alpha` of every batch."""

    def selection(episodes: Episodes) -> Tensor:
        ranked = ranking(episodes)
        return worst(ranked, worst_count(alpha, len(ranked)))

    return selection


def soft_risk(
    alpha: float,
    *,
    warm_up: int,
    end: float,
    ranking: Ranking = by_return,
    count: Count = soft_risk_count,
    rest: float = 0.0,
) -> Selection:
    """Keep all episodes at first and the worst share `alpha` of them at the end (RA-RLHF).

    `rest` is the share of the other episodes that is kept as well, evenly over their ranks; 0, the paper's, keeps none.
    A limit needs some: the worst episodes alone cannot follow a multiplier.
    """

    def selection(episodes: Episodes) -> Tensor:
        ranked = ranking(episodes)
        size = len(ranked)
        kept = count(episodes.step, steps=episodes.steps, episodes=size, alpha=alpha, warm_up=warm_up, end=end)
        marked = worst(ranked, kept)
        return marked | evenly_of_rest(ranked, marked, rest)

    return selection
