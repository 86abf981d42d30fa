"""How the experience of one channel becomes advantages: what each algorithm compares a response with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from poise.errors import ConfigError
from poise.functional.advantages import (
    Advantages,
    gae,
    greedy_baseline,
    group_centred,
    return_to_go,
    zero_variance_shaping,
)
from poise.functional.group_invariance import better_group, group_invariant_weights
from poise.functional.groups import divided_by_sd, group_mean, sample_deviation
from poise.functional.masked import last_index, masked_sum
from poise.functional.rewards import on_last_token

GROUP_HEAD = "group membership"  # the critics' head that infers groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """One channel of a rollout batch: all that its advantages may be made of.

    What only some algorithms need is None unless their `algorithms.Collection` asks for it.
    """

    rewards: Tensor  # [B, T] score and KL penalty of each token
    scores: Tensor  # [B] of the response, without KL penalty
    values: Tensor  # [B, T] of the critic, 0 without one
    mask: Tensor  # [B, T] bool
    group: Tensor  # [B] index of the prompt
    sign: Literal[1, -1] = 1  # +1 for a channel that is maximised, -1 for one that is limited
    greedy_scores: Tensor | None = None  # [B] of the greedy answer to the same prompt
    entropies: Tensor | None = None  # [B, T] nats, of the policy that sampled
    membership: Tensor | None = None  # [B] probability of group 1 of the inferred groups
    mixed_returns: Tensor | None = None  # [B] the objective's mix of the returns of all channels; None: one channel
    is_right: Tensor | None = None  # [B] bool, by the channel's own zero; None: where sign times score is above 0
    is_clipped: Tensor | None = None  # [B] bool, whether the bound on rewards holds one of its tokens


class Advantage(Protocol):
    """How the experience of one channel becomes advantages and critic targets."""

    def __call__(self, experience: Experience) -> Advantages:
        """Advantages and returns [B, T], 0 outside the mask."""
        ...


def gae_advantage(*, discount: float = 1.0, gae_lambda: float = 0.95) -> Advantage:
    """GAE with a critic per channel; `gae_lambda` 1 is the return minus the value, 0 trusts the critic alone."""

    def advantage(experience: Experience) -> Advantages:
        return gae(experience.rewards, experience.values, experience.mask, discount=discount, trace=gae_lambda)

    return advantage


def compared_returns(compare: Callable[[Tensor, Tensor], Tensor]) -> Advantage:
    """The whole return against those of the prompt's other samples, the same on every token; no critic.

    `compare` takes returns [B] and groups [B]: `leave_one_out`, `group_centred`.
    """

    def advantage(experience: Experience) -> Advantages:
        returns = masked_sum(experience.rewards, experience.mask, dim=-1)
        advantages = compare(returns, experience.group)
        return Advantages(advantages[:, None] * experience.mask, returns[:, None] * experience.mask)

    return advantage


def group_normalised_advantage(
    *, deviation: Callable[[Tensor, Tensor], Tensor] = sample_deviation, epsilon: float = 1e-4
) -> Advantage:
    """The whole return against the mean of the prompt's samples, in units of their sd; no critic.

    With one channel this is `group_normalised`. With several, the sd is that of the mixed returns, the same for all
    channels: in units of its own sd each, a unit of cost would have another price in every group, and the limit
    would be met at too small a reward or not at all.
    """

    def advantage(experience: Experience) -> Advantages:
        returns = masked_sum(experience.rewards, experience.mask, dim=-1)
        mixed = returns if experience.mixed_returns is None else experience.mixed_returns
        sd = deviation(mixed, experience.group)
        advantages = divided_by_sd(group_centred(returns, experience.group), sd, epsilon=epsilon)
        return Advantages(advantages[:, None] * experience.mask, returns[:, None] * experience.mask)

    return advantage


def plain_returns(experience: Experience) -> Advantages:
    """The return from each token on, compared with nothing (REINFORCE++ standardises it over the batch)."""
    returns = return_to_go(experience.rewards, experience.mask)
    return Advantages(returns, returns)


def returns_above_group(experience: Experience) -> Advantages:
    """The return from each token on, minus the mean score of the prompt's samples (REINFORCE++ with its baseline)."""
    returns = return_to_go(experience.rewards, experience.mask)
    baseline = group_mean(experience.scores, experience.group)[:, None] * experience.mask
    return Advantages(returns - baseline, returns)


def returns_above_greedy(experience: Experience) -> Advantages:
    """The return from each token on, minus the score of the greedy answer (ReMax)."""
    greedy = _needed(experience.greedy_scores, "greedy")
    advantages = greedy_baseline(experience.rewards, greedy, experience.mask)
    return Advantages(advantages, return_to_go(experience.rewards, experience.mask))


def shaped_where_equal(base: Advantage, *, alpha: float = 0.1) -> Advantage:
    """Another advantage, and what RL-ZVP makes of the prompts whose samples all have the same score."""

    def advantage(experience: Experience) -> Advantages:
        entropies = _needed(experience.entropies, "entropies")
        found = base(experience)
        shaped = zero_variance_shaping(
            experience.sign * experience.scores,
            experience.group,
            entropies,
            experience.mask,
            alpha=alpha,
            is_right=experience.is_right,
        )
        return Advantages(found.advantages + experience.sign * shaped, found.returns)

    return advantage


def group_invariant(base: Advantage, *, penalty: float = 3.0) -> Advantage:
    """Another advantage, so weighted that the inferred groups come to have the same return.

    The KL penalty is relaxed to the share that belongs to the better group. `penalty` is the weight of the variance
    between the groups.
    """

    def advantage(experience: Experience) -> Advantages:
        membership = _needed(experience.membership, "infer_groups")
        returns = experience.sign * experience.scores
        scored = on_last_token(experience.scores, experience.mask)
        held = better_group(returns, membership)[:, None]
        found = base(replace(experience, rewards=scored + held * (experience.rewards - scored)))
        weights = group_invariant_weights(returns, membership, penalty=penalty)
        return Advantages(found.advantages * weights[:, None], found.returns)

    return advantage


def group_logits(values: Mapping[str, Tensor], mask: Tensor) -> Tensor | None:
    """The logits [B] of each response's group from the heads' values [B, T] by name; None without a head for them."""
    if GROUP_HEAD not in values:
        return None
    return values[GROUP_HEAD].gather(1, last_index(mask).clamp(min=0)[:, None])[:, 0]


def _needed(collected: Tensor | None, name: str) -> Tensor:
    if collected is None:
        raise ConfigError(
            f"the advantage needs Collection.{name}, which the algorithm does not request: give it "
            f"collection=Collection({name}=...), see the records in poise.train.algorithms"
        )
    return collected
