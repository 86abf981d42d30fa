"""The best policy of a bandit under a limit, exactly: a linear programme, or a tilted reference where KL counts.

A measure of risk is given as rows [I, K], one number for each cost that can occur: the risk of a policy is the smallest
of the rows' means under it. The mean is one row (the costs), the rate of harm one (1 where a cost is above 0), and CVaR
has a row for each threshold t:

    CVaR_alpha = min over t of  E[t + max(cost - t, 0) / alpha]

the mean of the worst share alpha of the costs. A policy meets a limit if it meets it on one row, so the best one is the
best of I linear programmes. Under CVaR what is allowed is thus a union of pieces, and need not be convex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, linprog

from poise.errors import ConfigError
from poise.worlds.bandit import Bandit, Floats
from poise.worlds.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """The best policy, what it earns, what it risks, and the price of risk there."""

    policy: Floats  # [X, A]
    reward: float
    risk: float  # 0 without a limit
    multiplier: float  # reward per unit of risk by which the limit could be relaxed


def mean_rows(costs: Floats) -> Floats:
    """The mean cost, as rows [1, K]."""
    return np.asarray(costs, dtype=np.float64)[None]


def rate_rows(
    costs: Floats, probability: Callable[[Floats], Floats] = lambda costs: (costs > 0).astype(float)
) -> Floats:
    """The rate of harm, as rows [1, K]; `probability` says how likely a cost [K] is harm."""
    return mean_rows(probability(np.asarray(costs)))


def cvar_rows(costs: Floats, alpha: float) -> Floats:
    """The mean of the worst share `alpha` of the costs, as rows [K, K]: one for each threshold.

    Raises ConfigError for an alpha outside (0, 1].

    >>> rows = cvar_rows(np.array([0.0, 1.0, 5.0]), alpha=0.5)
    >>> float((rows @ [0.6, 0.3, 0.1]).min())  # the worst half: 0.1 of 5, 0.3 of 1, 0.1 of 0
    1.6
    """
    if not 0 < alpha <= 1:
        raise ConfigError(
            f"alpha is {alpha}: give the share of the costs that counts as the tail, above 0 and at most 1"
        )
    costs = np.asarray(costs, dtype=np.float64)
    return costs[:, None] + np.maximum(costs[None] - costs[:, None], 0) / alpha


def risk_of(bandit: Bandit, policy: Floats, rows: Floats) -> float:
    """The risk of a policy [X, A], exactly."""
    return float((rows @ bandit.cost_distribution(policy)).min())


def best(bandit: Bandit) -> Optimum:
    """The best policy without a limit: in every context the arm of the highest reward."""
    policy = np.eye(bandit.rewards.shape[1])[bandit.rewards.argmax(-1)]
    return Optimum(policy=policy, reward=bandit.reward_of(policy), risk=0.0, multiplier=0.0)


def best_under_penalty(bandit: Bandit, coefficient: float) -> Optimum:
    """The best policy for reward - coefficient * cost; its risk is its mean cost."""
    mean_cost = bandit.chances @ bandit.costs
    policy = np.eye(bandit.rewards.shape[1])[(bandit.rewards - coefficient * mean_cost).argmax(-1)]
    risk = risk_of(bandit, policy, mean_rows(bandit.costs))
    return Optimum(policy=policy, reward=bandit.reward_of(policy), risk=risk, multiplier=coefficient)


def best_under_limit(bandit: Bandit, rows: Floats, at_most: float) -> Optimum:
    """The best policy whose risk is at most the limit.

        max over policies of E[reward]  subject to  E[row] <= at_most,   for each row; the best of them

    The result mixes two arms in one context at most. Raises ConfigError if no policy meets the limit.
    """
    solved = [found for row in rows if (found := _linear_programme(bandit, row, at_most)) is not None]
    if not solved:
        lowest = min(_lowest(bandit, row) for row in rows)
        raise ConfigError(
            f"no policy has a risk of at most {at_most}: the safest one has {lowest:.4g}. Raise the limit"
        )
    found = max(solved, key=lambda optimum: optimum.reward)
    return Optimum(
        policy=found.policy, reward=found.reward, risk=risk_of(bandit, found.policy, rows), multiplier=found.multiplier
    )


def front(bandit: Bandit, rows: Floats, limits: Sequence[float]) -> list[float]:
    """The best reward under each of several limits on a risk, by a linear programme each."""
    return [best_under_limit(bandit, rows, float(limit)).reward for limit in limits]


def best_under_limits(table: Table, limits: Sequence[tuple[Floats, float]]) -> Optimum:
    """The best policy of a table of scores under limits on several means at once.

        max over policies of E[reward]  subject to  sum over x, a of w_xa policy_xa <= at_most,   for each limit

    table    gives the rewards; every context comes equally often
    limits   weights [X, A] and what their sum may be: `table.weights_of` for the mean of a channel

    The risk is the largest excess over a limit, the multiplier the sum of the prices. Raises ConfigError if no policy
    meets all limits.
    """
    rewards = table.channels["reward"] / len(table.prompts)
    contexts, arms = rewards.shape
    solution = linprog(
        -rewards.ravel(),
        A_ub=np.array([weights.ravel() for weights, _ in limits]),
        b_ub=[at_most for _, at_most in limits],
        A_eq=np.kron(np.eye(contexts), np.ones(arms)),
        b_eq=np.ones(contexts),
        method="highs",
    )
    if not solution.success:
        raise ConfigError(f"no policy meets all {len(limits)} limits at once: raise some of them")
    policy = solution.x.reshape(contexts, arms)
    return Optimum(
        policy=policy,
        reward=float((rewards * policy).sum()),
        risk=max(float((weights * policy).sum()) - at_most for weights, at_most in limits),
        multiplier=-float(solution.ineqlin.marginals.sum()),
    )


def regularised(
    bandit: Bandit,
    rows: Floats,
    at_most: float,
    *,
    kl_weight: Callable[[float], float],
    reference: Floats | None = None,
) -> Optimum:
    """The best policy under a limit and a KL penalty, in closed form but for the multiplier l.

        max E[reward] - b KL(policy, reference)  subject to the limit
        policy ~ reference * exp((reward - l * cost) / b)

    with l = 0, or the one at which the limit is met exactly. `kl_weight` gives b for a multiplier: a constant for the
    problem as written; `lambda l: kl_coef * (1 + l)` for what a trainer finds that mixes (A_r - l A_c) / (1 + l) and
    keeps the weight of KL at `kl_coef`.

    Raises ConfigError if no policy meets the limit.
    """
    reference = bandit.uniform() if reference is None else reference
    found = [_tilted_to_limit(bandit, row, at_most, kl_weight, reference) for row in rows]
    policies = [(policy, multiplier) for policy, multiplier in found if risk_of(bandit, policy, rows) <= at_most + 1e-9]
    if not policies:
        raise ConfigError(
            f"no policy that the reference can be tilted to has a risk of at most {at_most}: raise the limit"
        )
    policy, multiplier = max(policies, key=lambda pair: bandit.reward_of(pair[0]))
    return Optimum(
        policy=policy, reward=bandit.reward_of(policy), risk=risk_of(bandit, policy, rows), multiplier=multiplier
    )


def _linear_programme(bandit: Bandit, row: Floats, at_most: float) -> Optimum | None:
    contexts, arms = bandit.rewards.shape
    weights = np.repeat(bandit.weights, arms)
    risks = weights * (bandit.chances @ row).ravel()
    solution = linprog(
        -weights * bandit.rewards.ravel(),
        A_ub=risks[None],
        b_ub=[at_most],
        A_eq=np.kron(np.eye(contexts), np.ones(arms)),
        b_eq=np.ones(contexts),
        method="highs",
    )
    if not solution.success:
        return None
    policy = solution.x.reshape(contexts, arms)
    price = max(0.0, -float(solution.ineqlin.marginals[0]))
    return Optimum(policy=policy, reward=bandit.reward_of(policy), risk=float(risks @ solution.x), multiplier=price)


def _lowest(bandit: Bandit, row: Floats) -> float:
    return float(bandit.weights @ (bandit.chances @ row).min(-1))


def _tilted_to_limit(
    bandit: Bandit, row: Floats, at_most: float, kl_weight: Callable[[float], float], reference: Floats
) -> tuple[Floats, float]:
    costs = bandit.chances @ row

    def policy_at(share: float) -> Floats:  # the multiplier is share / (1 - share)
        multiplier = share / (1 - share)
        return _tilt(reference, (bandit.rewards - multiplier * costs) / kl_weight(multiplier))

    def excess(share: float) -> float:
        return float(bandit.weights @ (policy_at(share) * costs).sum(-1)) - at_most

    if excess(0.0) <= 0:
        return policy_at(0.0), 0.0
    last = 1 - 1e-6
    share = last if excess(last) > 0 else float(brentq(excess, 0.0, last, xtol=1e-12))
    return policy_at(share), share / (1 - share)


def _tilt(reference: Floats, exponent: Floats) -> Floats:
    weights = reference * np.exp(exponent - exponent.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
