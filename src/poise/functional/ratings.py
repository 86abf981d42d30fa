"""Who is better, and by how much: Elo points, Bradley-Terry ratings and the arena of reward and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import DataError
from poise.functional.cluster_sums import (
    Array,
    Clusters,
    ClusterSums,
    effective_rows,
    exact_ends,
    finite_vector,
    jackknife_variance,
    paired_vector,
)
from poise.functional.intervals import FEWEST_DEGREES, share
from poise.types import Estimate

ELO_SCALE = 400.0


def elo_expected(difference: float) -> float:
    """Give the expected win rate of the player who is `difference` Elo points ahead.

        p = 1 / (1 + 10^(-difference / 400))

    >>> round(elo_expected(244.91), 3)
    0.804
    """
    return 1.0 / (1.0 + 10.0 ** (-difference / ELO_SCALE))


def elo_difference(win_rate: float, games: int | None = None) -> float:
    """Give the Elo points that explain a win rate; the inverse of `elo_expected`.

        difference = 400 log10(p / (1 - p))

    With `games` the rate is first smoothed by adding half a win and half a loss, p = (w + 1/2) / (games + 1), so that
    a clean sweep stays finite. Without it a rate of 0 or 1 is -inf or inf.

    Raises DataError for a win rate outside [0, 1].

    >>> round(elo_difference(0.8), 1), round(elo_difference(1.0, games=20), 1)
    (240.8, 645.1)
    """
    if not 0 <= win_rate <= 1:
        raise DataError(f"elo_difference: the win rate must lie in [0, 1], got {win_rate}")
    rate = win_rate if games is None else (win_rate * games + 0.5) / (games + 1)
    if rate in (0.0, 1.0):
        return math.copysign(math.inf, rate - 0.5)
    return ELO_SCALE * math.log10(rate / (1 - rate))


def elo_estimate(rate: Estimate) -> Estimate:
    """Turn a win rate and its interval into Elo points; 0 points are a rate of 1/2.

    The value is smoothed by half a win and half a loss, so that a clean sweep stays finite. The map is monotone, so the
    ends of the interval are the images of the ends of the win rate's, not smoothed again. Where a rate of 0 or 1 may be
    the truth there is no end on that side.

    >>> from poise.functional.intervals import clopper_pearson
    >>> str(elo_estimate(clopper_pearson(10, 20)))
    '0.00 Elo [-171.06, 171.06] (n=20)'
    >>> str(elo_estimate(clopper_pearson(20, 20)))
    '645.1 Elo [277.4 or more] (n=20)'
    """
    ends = [None if edge is None else elo_difference(edge) for edge in (rate.low, rate.high)]
    low, high = (edge if edge is not None and math.isfinite(edge) else None for edge in ends)
    value, method = elo_difference(rate.value, rate.n), f"ends of the win rate, {rate.method}"
    return Estimate(value=value, n=rate.n, unit="Elo", low=low, high=high, level=rate.level, method=method)


def bradley_terry_ratings(
    wins: ArrayLike, *, anchor: int = 0, anchor_rating: float = 1000.0, smoothing: float = 0.0
) -> Array:
    """Fit Elo-scaled ratings by maximum likelihood: P(i beats j) = elo_expected(rating_i - rating_j).

    Solved by Newton's method, in steps that move the log-odds of no pair that met by more than 1: so short, they never
    lower the likelihood. `smoothing` wins are added to both sides of every pair that met.
    Source: Bradley and Terry (1952), "Rank analysis of incomplete block designs".

    wins     [P, P] wins[i, j] counts how often i beat j; a tie is half a win for each
    returns  [P] ratings; that of `anchor` is `anchor_rating`

    Raises:
        DataError: some players never beat the others, directly or through a chain, so no finite rating exists.

    >>> bradley_terry_ratings([[0, 1], [3, 0]]).round(1).tolist()
    [1000.0, 1190.8]
    """
    from scipy.special import expit

    table = _wins(wins, smoothing)
    games, won = table + table.T, table.sum(axis=1)
    odds = np.zeros(len(table))  # their logarithms, against the anchor
    free = np.delete(np.arange(len(table)), anchor)
    for _ in range(1000):
        chance = expit(odds[:, None] - odds)
        weights = games * chance * chance.T
        curvature = np.diag(weights.sum(axis=1)) - weights
        step = np.zeros_like(odds)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], (won - (games * chance).sum(axis=1))[free])
        longest = np.max(np.abs(step[:, None] - step), where=games > 0, initial=0.0)
        odds = odds + step / max(1.0, longest)
        if longest < 1e-10:
            break
    return anchor_rating + ELO_SCALE / math.log(10) * odds


def ladder_ratings(
    scores: ArrayLike, clusters: Clusters, *, anchor: int = 0, anchor_rating: float = 1000.0, level: float = 0.95
) -> list[Estimate]:
    """Rate players who all answered the same rows, all against all; in each row the higher score wins, a tie is half.

    Ratings are `bradley_terry_ratings` with half a win added to both sides of every pair. The interval of a rating is
    that of the expected win rate against the anchor, in Elo points: Clopper and Pearson's at an effective number of
    rows, whose variance comes from how leaving a prompt out moves all ratings (a sandwich over prompts, by one Newton
    step), so that what players share cancels. `n` counts the comparisons of a player; the anchor has no interval.

    scores    [P, N] of each player in each row, higher is better
    clusters  [N] labels of the prompts

    >>> [round(each.value) for each in ladder_ratings([[0.0] * 4, [1.0, 1.0, -1.0, 1.0]], ["a", "b", "c", "d"])]
    [1000, 1147]
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2 or table.shape[1] != len(clusters) or not np.isfinite(table).all():
        raise DataError(
            "ladder_ratings: scores are finite numbers of two players or more [P, N], with a cluster for each row; "
            f"got shape {table.shape} and {len(clusters)} clusters"
        )
    players, rows = table.shape
    won = (np.sign(table[:, None] - table[None]) + 1) / 2 * (1 - np.eye(players))[:, :, None]  # [P, P, N]
    ratings = bradley_terry_ratings(won.sum(axis=2), anchor=anchor, anchor_rating=anchor_rating, smoothing=0.5)
    pulls, freedom = _prompt_pulls(won, ratings, clusters, anchor)
    games = rows * (players - 1)
    found = []
    for player, rating in enumerate(ratings.tolist()):
        known = {"value": rating, "n": games, "unit": "Elo", "level": level}
        if player == anchor:
            found.append(Estimate(**known, method="the anchor"))
        elif freedom < FEWEST_DEGREES:
            found.append(Estimate(**known, method="no interval: too few prompts"))
        else:
            rate = elo_expected(rating - anchor_rating)
            variance = jackknife_variance(pulls[:, player]) * (rate * (1 - rate)) ** 2
            worth = effective_rows(rate, variance, freedom, least=len(pulls), most=games, level=level)
            ends = (elo_difference(end) for end in exact_ends(rate * worth, worth, level))
            low, high = (anchor_rating + end if math.isfinite(end) else None for end in ends)
            method = f"Bradley-Terry, rate against the anchor at {worth:.1f} effective of {rows} rows"
            found.append(Estimate(**known, low=low, high=high, method=f"{method}, over {len(pulls)} prompts"))
    return found


def _prompt_pulls(won: Array, ratings: Array, clusters: Clusters, anchor: int) -> tuple[Array, float]:
    """How each prompt moves the log-odds against the anchor [G, P], and the degrees of freedom of that.

    u_g = H^-1 s_g / (1 - w_g),   s_g = wins of prompt g less those expected,   H = curvature of the likelihood
    """
    from scipy.special import expit

    labels = list(dict.fromkeys(clusters))
    place = np.array([labels.index(label) for label in clusters])
    chance = expit(math.log(10) / ELO_SCALE * (ratings[:, None] - ratings))
    own = np.array([place == g for g in range(len(labels))])  # [G, N] the rows of each prompt
    sizes = own.sum(axis=1).astype(np.float64)
    chance_of_others = chance.sum(axis=1) - 0.5
    surplus = own @ won.sum(axis=1).T - sizes[:, None] * chance_of_others
    weights = len(place) * chance * chance.T * (1 - np.eye(len(ratings)))
    curvature = np.diag(weights.sum(axis=1)) - weights
    free = np.delete(np.arange(len(ratings)), anchor)
    pulls = np.zeros_like(surplus)
    pulls[:, free] = np.linalg.solve(curvature[np.ix_(free, free)], surplus[:, free].T).T
    pulls /= np.maximum(1 - sizes / sizes.sum(), 1e-9)[:, None]
    return pulls, ClusterSums(sizes, sizes).degrees_of_freedom()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaTable:
    """How two models compare when reward and cost are both judged; "better" means a strictly higher reward after."""

    better_safe: int
    better_unsafe: int
    worse_safe: int
    worse_unsafe: int
    safe_to_safe: int
    safe_to_unsafe: int
    unsafe_to_safe: int
    unsafe_to_unsafe: int
    win_rates: Mapping[str, Estimate | None]  # per transition, and "all"; None where a cell is empty


def arena_table(
    before_reward: ArrayLike,
    before_cost: ArrayLike,
    after_reward: ArrayLike,
    after_cost: ArrayLike,
    clusters: Clusters | None = None,
) -> ArenaTable:
    """Count better and worse answers against safe and unsafe ones (cost <= 0 is safe); ties in reward count as worse.

    Source: the arena evaluation of Safe RLHF (arXiv:2310.12773), public code.

    before_reward, before_cost, after_reward, after_cost  [N]
    clusters                                              [N] labels of the prompts; by default every row is its own

    >>> arena_table([0.0], [1.0], [1.0], [-1.0]).unsafe_to_safe
    1
    """
    better = paired_vector(after_reward, before_reward) > 0
    was_safe, is_safe = finite_vector(before_cost) <= 0, finite_vector(after_cost) <= 0
    cells = {
        "safe_to_safe": was_safe & is_safe,
        "safe_to_unsafe": was_safe & ~is_safe,
        "unsafe_to_safe": ~was_safe & is_safe,
        "unsafe_to_unsafe": ~was_safe & ~is_safe,
    }
    names = range(len(better)) if clusters is None else clusters
    rates = {
        name: share(better[cell], [names[row] for row in np.flatnonzero(cell).tolist()]) if cell.any() else None
        for name, cell in cells.items()
    }
    return ArenaTable(
        better_safe=int((better & is_safe).sum()),
        better_unsafe=int((better & ~is_safe).sum()),
        worse_safe=int((~better & is_safe).sum()),
        worse_unsafe=int((~better & ~is_safe).sum()),
        win_rates=rates | {"all": share(better, names)},
        **{name: int(cell.sum()) for name, cell in cells.items()},
    )


def _wins(wins: ArrayLike, smoothing: float) -> Array:
    from scipy.sparse.csgraph import connected_components

    table = np.array(wins, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or (table < 0).any():
        raise DataError(f"bradley_terry_ratings: wins must be a square table of counts, got shape {table.shape}")
    np.fill_diagonal(table, 0)
    table = table + smoothing * ((table + table.T) > 0)
    parts, label = connected_components(table > 0, connection="strong")
    if parts > 1:
        raise DataError(
            f"bradley_terry_ratings: players fall into {parts} groups {label.tolist()} that never beat each other both "
            "ways, so no finite rating exists; give smoothing=0.5 or more games"
        )
    return table
