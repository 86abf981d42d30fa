"""How scores become a gradient: records of an advantage, a surrogate and an aggregation.

An algorithm says nothing of what is wanted (see `objectives`): any record works with any objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Protocol

from torch import Tensor

from poise.errors import ConfigError
from poise.functional.advantages import group_centred, leave_one_out
from poise.functional.divergences import kl_k1, kl_k2, kl_k3
from poise.functional.group_invariance import group_inference_loss
from poise.functional.groups import in_varied_group
from poise.functional.masked import standardise
from poise.functional.policy_losses import clipped_surrogate, reinforce, sequence_surrogate
from poise.functional.risk import soft_risk_count
from poise.functional.value_losses import clipped_value_loss
from poise.train.controllers import KLControl
from poise.train.estimators import (
    Advantage,
    compared_returns,
    gae_advantage,
    group_invariant,
    group_normalised_advantage,
    plain_returns,
    returns_above_greedy,
    returns_above_group,
    shaped_where_equal,
)
from poise.train.selection import Count, Ranking, Selection, by_return, soft_risk


class PolicyLoss(Protocol):
    """Losses [B, T] of log-probabilities against those of the sampler; `mask` is True on response tokens."""

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Losses [B, T]; the gradient flows into `logprobs`."""
        ...


def token_weights(mask: Tensor) -> Tensor:
    """Weights [B, T] that sum to 1: every token counts the same."""
    return mask / mask.sum().clamp(min=1)


def sequence_weights(mask: Tensor) -> Tensor:
    """Weights [B, T] that sum to 1: every sequence counts the same (Safe RLHF's two-level mean)."""
    lengths = mask.sum(-1, keepdim=True)
    return mask / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


def fixed_length_weights(length: int) -> Callable[[Tensor], Tensor]:
    """Weights [B, T] of 1 / (sequences * length) for every token, however long its response is (Dr. GRPO).

    Dividing by the length of each response favours short right answers and long wrong ones; a constant does not.
    `length` is best the largest number of tokens a response may have. It only scales the learning rate.
    """

    def weights(mask: Tensor) -> Tensor:
        return mask / length / mask.any(-1).sum().clamp(min=1)

    return weights


def unscaled(advantages: Tensor, mask: Tensor) -> Tensor:
    """Leave mixed advantages unscaled, as Safe RLHF does."""
    return advantages * mask


@dataclass(frozen=True, slots=True, kw_only=True)
class KLPenalty:
    """Where the divergence from the reference is charged, by which estimator; its weight is `Algorithm.kl_coef`.

    In the reward it is part of what the advantage is made of. In the loss each token has a gradient of its own, which
    for samples of the current policy is on average zero for `kl_k1` (useless there), that of KL(policy || reference)
    for `kl_k2`, and that of KL(reference || policy) for `kl_k3`, GRPO's.
    """

    in_reward: Callable[[Tensor, Tensor], Tensor] | None = kl_k1  # log-probabilities of policy and reference
    in_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    score_clip: float | None = 50.0  # bound on the score plus penalty of a token; None: no bound
    control: KLControl | None = None  # how the weight moves after each step; None: it stays


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What a step collects beside samples and their scores.

    `keep` tells from the scores [B] of a channel and the groups [B] which samples are learned from; one that is kept
    for any channel is. The others stay in the batch for the limits and the metrics, which would be wrong without them.
    """

    greedy: bool = False  # the scores of the greedy answer to each prompt
    entropies: bool = False  # of the policy at each sampled token; one more pass
    keep: Callable[[Tensor, Tensor], Tensor] | None = None
    draws: int = 1  # times that prompts are drawn to fill a batch with samples that are kept
    infer_groups: Callable[[Tensor, Tensor], Tensor] | None = None  # loss [] of a group head's logits [B], returns [B]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """How scores become a policy gradient.

    `weights` turns the response mask [B, T] of the whole batch into the weight of every token in the loss, so that
    micro-batches add up to exactly the full batch.
    """

    advantage: Advantage
    policy_loss: PolicyLoss
    weights: Callable[[Tensor], Tensor] = token_weights
    scale: Callable[[Tensor, Tensor], Tensor] = standardise  # mixed advantages, mask
    value_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # values, old values, returns; None: no critic
    samples_per_prompt: int = 1
    epochs: int = 1
    kl_coef: float = 0.02
    kl: KLPenalty = KLPenalty()
    collection: Collection = Collection()
    selection: Selection | None = None  # which episodes of the batch are learned from; None: all
    importance_cap: float | None = None  # largest weight of a token, of the trainer against the engine; None: none


PPO = Algorithm(
    advantage=gae_advantage(), policy_loss=clipped_surrogate, value_loss=clipped_value_loss, weights=sequence_weights
)
RLOO = Algorithm(
    advantage=compared_returns(leave_one_out), policy_loss=reinforce, weights=sequence_weights, samples_per_prompt=4
)
# Shao et al. (arXiv:2402.03300): in units of the group's standard deviation, KL in the loss.
GRPO = Algorithm(
    advantage=group_normalised_advantage(),
    policy_loss=clipped_surrogate,
    weights=sequence_weights,
    scale=unscaled,
    samples_per_prompt=4,
    epochs=2,
    kl=KLPenalty(in_reward=None, in_loss=kl_k3),
)
# Liu et al. (arXiv:2503.20783): neither the standard deviation nor the length of a response changes its weight.
DR_GRPO = replace(GRPO, advantage=compared_returns(group_centred), weights=fixed_length_weights(64))
# Yu et al. (arXiv:2503.14476): clip-higher, every token the same, prompts of equal scores replaced, no KL penalty.
DAPO = replace(
    GRPO,
    policy_loss=partial(clipped_surrogate, clip=0.2, clip_high=0.28),
    weights=token_weights,
    kl_coef=0.0,
    collection=Collection(keep=in_varied_group, draws=3),
)
# Zheng et al. (arXiv:2507.18071): whole responses are clipped; their ratio is near 1, hence the narrow range.
GSPO = replace(GRPO, policy_loss=partial(sequence_surrogate, clip=3e-4, clip_high=4e-4))


def kl_in_loss(base: Algorithm, estimator: Callable[[Tensor, Tensor], Tensor] = kl_k2) -> Algorithm:
    """An algorithm that charges the KL in the loss, where it weighs as `base.weights` say: no reward for being short.

    In the reward the KL of a response is the sum over its tokens, so that a shorter response is charged less. In the
    loss under `sequence_weights` it is

        kl_coef * mean_b (1 / T_b) sum_t KL_bt

    the mean over the tokens of each response; for samples of the current policy `kl_k2` has the gradient of that of
    KL(policy || reference). It is not divided by the sd of the advantages as a penalty in the reward is, and under
    multipliers it keeps its weight beside advantages that are divided by 1 plus their sum, in either place.
    """
    return replace(base, kl=replace(base.kl, in_reward=None, in_loss=estimator))


def zvp(alpha: float = 0.1, *, base: Algorithm = GRPO) -> Algorithm:
    """An algorithm that also learns from prompts whose samples all have the same score.

    `alpha` 0 is the base, bit for bit. The paper's runs clip at 0.2 and 0.28, count every token the same and have no KL
    penalty: `base=replace(DAPO, collection=Collection())`.
    Source: RL-ZVP (arXiv:2509.21880).
    """
    collection = replace(base.collection, entropies=True)
    return replace(base, advantage=shaped_where_equal(base.advantage, alpha=alpha), collection=collection)


ZVP = zvp()
# Li et al. (arXiv:2310.10505): one sample and one greedy answer for each prompt.
REMAX = Algorithm(
    advantage=returns_above_greedy,
    policy_loss=reinforce,
    weights=sequence_weights,
    scale=unscaled,
    collection=Collection(greedy=True),
)
# Hu et al. (arXiv:2501.03262), as OpenRLHF standardises it: over all tokens of the batch, the variance held at 1e-8.
REINFORCE_PP = Algorithm(
    advantage=plain_returns,
    policy_loss=clipped_surrogate,
    scale=partial(standardise, epsilon=0.0, floor=1e-8),
    epochs=2,
)
REINFORCE_PP_BASELINE = replace(REINFORCE_PP, advantage=returns_above_group, samples_per_prompt=4)


def group_invariance(penalty: float = 3.0, *, base: Algorithm = PPO, balance: float = 1.0) -> Algorithm:
    """An algorithm whose return shall be the same in every group of responses, where the groups are inferred.

    `penalty` weighs the variance between groups: 3 is what helped where a shortcut pays in one of two domains, and 0.1
    and 0.3 earned less there than PPO; where groups differ by what can be earned at all, it costs reward. `balance`
    keeps either group from being empty.
    Source: group invariant learning (arXiv:2310.11971); see `poise.functional.group_invariance` for what is ours in it.
    """
    collection = replace(base.collection, infer_groups=partial(group_inference_loss, balance=balance))
    return replace(base, advantage=group_invariant(base.advantage, penalty=penalty), collection=collection)


GROUP_INVARIANT = group_invariance()


def risk_averse(
    alpha: float = 0.4,
    *,
    base: Algorithm = PPO,
    warm_up: int = 30,
    end: float = 0.95,
    ranking: Ranking = by_return,
    count: Count = soft_risk_count,
    rest: float = 0.0,
) -> Algorithm:
    """An algorithm that learns from all episodes at first and from the worst share `alpha` of each batch at the end.

    `alpha` 1 is `base`, bit for bit. `warm_up` steps see all episodes; from the share `end` of the steps on, only the
    worst are left, and the share `rest` of the others, evenly over their ranks: the paper's is 0, a limit needs some
    (`RISK_AVERSE_UNDER_LIMITS`), since the worst alone cannot follow a multiplier. The authors' code is
    `ranking=by_first_target, count=reference_soft_risk_count`, with a base of `scale=partial(standardise,
    correction=1)`, `weights=token_weights` and a `kl` whose `control` is `reference_adaptive_kl()`.
    Source: RA-RLHF (arXiv:2501.06911), Algorithm 1; alpha 0.4, warm_up 30 and end 0.95 are those of its IMDB task.
    """
    selection = soft_risk(alpha, warm_up=warm_up, end=end, ranking=ranking, count=count, rest=rest)
    return replace(base, selection=selection)


RISK_AVERSE = risk_averse()
RISK_AVERSE_UNDER_LIMITS = risk_averse(rest=0.5)

ALGORITHMS: Mapping[str, Algorithm] = {
    "ppo": PPO,
    "rloo": RLOO,
    "grpo": GRPO,
    "dr-grpo": DR_GRPO,
    "dapo": DAPO,
    "gspo": GSPO,
    "zvp": ZVP,
    "remax": REMAX,
    "reinforce++": REINFORCE_PP,
    "reinforce++-baseline": REINFORCE_PP_BASELINE,
    "group-invariant": GROUP_INVARIANT,
    "risk-averse": RISK_AVERSE,
    "risk-averse-under-limits": RISK_AVERSE_UNDER_LIMITS,
}


def algorithm_named(name: str, among: Mapping[str, Algorithm] = ALGORITHMS) -> Algorithm:
    """The record of that name; raises ConfigError with the names that there are.

    >>> algorithm_named("dapo").samples_per_prompt
    4
    """
    if name in among:
        return among[name]
    close = get_close_matches(name.lower().replace("_", "-"), among, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"there is no algorithm {name!r}: {hint}Choose from {', '.join(among)}")
