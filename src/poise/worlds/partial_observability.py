"""Two tasks whose judge sees only part of what happens: what is learned from such feedback, in closed form.

An agent installs a driver and then a program that may fail. Someone reads the log and compares runs. What the log does
not show they fill in by a belief, so that what they teach is the observed return

    G_obs(trajectory) = mean of the returns of the trajectories that look like it, weighted by the belief.

`hiding()`   The agent can send errors to /dev/null. Gold: +1 for the driver, +10 for the program, -5 for a failure and
             1 less if it was hidden. Optimum: install openly, return 3.5. What goes wrong: a hidden failure looks like
             an installation that stopped early; if the judge thinks it likely enough that nothing was attempted,
             hiding looks better (4.5 against 3.5) and is worse (3.0). That is deceptive inflation.
`verbose()`  The default log says nothing of success; the agent can print it at a cost of 1. Gold: +10 for the driver,
             +5 for the program (4 if verbose), -1 for a failure. Optimum: the quiet log, return 12. What goes wrong: a
             judge who rarely takes silence for success teaches the verbose log (11.5): overjustification. One who takes
             it for success more often teaches to stop after the driver (10): both failures.

Source: Lang et al., "When Your AIs Deceive You" (arXiv:2402.17747), the examples of the paper with the rewards of its
public code; the choices that lead nowhere in either are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import null_space
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from poise.functional.observed_returns import (
    ObservedValue,
    deceptive_inflation,
    observed_value,
    overjustification,
)
from poise.worlds.bandit import Floats

Trajectory = tuple[str, ...]  # states from the start to the end
Policy = Mapping[str, str]  # state -> action


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The policy that a judge's feedback leads to, beside the best one."""

    optimal_policy: Policy
    learned_policy: Policy
    optimal: ObservedValue
    learned: ObservedValue
    deceptive_inflation: bool
    overjustification: bool


@dataclass(frozen=True, kw_only=True)
class ObservedWorld:
    """A small decision problem, what a judge sees of it, and what they believe of what they do not see."""

    rewards: Mapping[str, float]  # of entering a state
    actions: Mapping[str, Mapping[str, Mapping[str, float]]]  # state -> action -> next state -> probability
    looks_like: Mapping[str, str]  # state -> what is seen of it, "" for nothing; a state not named is seen
    beliefs: Mapping[Trajectory, Mapping[Trajectory, float]]  # what is seen -> trajectories that it could be
    start: str = "S"

    @cached_property
    def policies(self) -> tuple[Policy, ...]:
        """All deterministic policies."""
        return tuple(dict(zip(self.actions, chosen, strict=True)) for chosen in product(*self.actions.values()))

    @cached_property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """All trajectories that some policy takes."""
        return tuple(sorted({taken for policy in self.policies for taken in self._taken(policy)}))

    @cached_property
    def returns(self) -> Tensor:
        """The true return [N] of each trajectory."""
        return torch.tensor([self._return(each) for each in self.trajectories], dtype=torch.float64)

    @cached_property
    def observed_returns(self) -> Tensor:
        """What each trajectory seems to be worth [N]."""
        believed = [self.beliefs.get(self.observation(each), {each: 1.0}) for each in self.trajectories]
        means = [sum(chance * self._return(each) for each, chance in belief.items()) for belief in believed]
        return torch.tensor(means, dtype=torch.float64)

    def observation(self, trajectory: Trajectory) -> Trajectory:
        """What the judge sees: states by what they look like, and nothing of those that leave no trace."""
        seen = (self.looks_like.get(state, state) for state in trajectory)
        return tuple(state for state in seen if state)

    def probabilities(self, policy: Policy) -> Tensor:
        """The probability [N] that the policy takes each trajectory."""
        taken = self._taken(policy)
        return torch.tensor([taken.get(each, 0.0) for each in self.trajectories], dtype=torch.float64)

    def measure(self, policy: Policy) -> ObservedValue:
        """J, J_obs, E+ and E- of a policy, exactly."""
        return observed_value(self.returns, self.observed_returns, self.probabilities(policy))

    def best(self, value: Callable[[ObservedValue], Tensor]) -> Policy:
        """The policy of the highest value, such as `lambda v: v.observed_value`; the first one of equals."""
        return max(self.policies, key=lambda policy: round(float(value(self.measure(policy))), 9))

    def best_for(self, returns: Floats) -> Policy:
        """The policy of the highest mean of learned returns [N]; the first one of equals."""
        learned = torch.from_numpy(returns)
        return max(self.policies, key=lambda policy: round(float(self.probabilities(policy) @ learned), 9))

    @cached_property
    def state_visits(self) -> Floats:
        """How often each trajectory comes to each state [N, S]."""
        states = sorted({state for trajectory in self.trajectories for state in trajectory})
        return np.array([[each.count(state) for state in states] for each in self.trajectories], dtype=float)

    @cached_property
    def believed(self) -> Floats:
        """What the judge takes each trajectory for [N, N]: the probability of each by what is seen of it."""
        places = {trajectory: i for i, trajectory in enumerate(self.trajectories)}
        table = np.zeros((len(places), len(places)))
        for trajectory, i in places.items():
            for other, chance in self.beliefs.get(self.observation(trajectory), {trajectory: 1.0}).items():
                table[i, places[other]] += chance
        return table

    def open_directions(self, rows: Floats) -> int:
        """In how many directions returns can differ while all comparisons (differences of visits [P, S]) look alike."""
        kernel = null_space(np.unique(rows, axis=0), rcond=1e-9)
        apart = self.state_visits - self.state_visits[0]
        return int(np.linalg.matrix_rank(apart @ kernel, tol=1e-6)) if kernel.size else 0

    def verdict(self) -> Verdict:
        """What feedback on observations leads to, and whether it inflates or overjustifies."""
        best, learned = self.best(lambda v: v.value), self.best(lambda v: v.observed_value)
        reference, found = self.measure(best), self.measure(learned)
        return Verdict(
            optimal_policy=best,
            learned_policy=learned,
            optimal=reference,
            learned=found,
            deceptive_inflation=bool(deceptive_inflation(found, reference)),
            overjustification=bool(overjustification(found, reference)),
        )

    def choice_probabilities(self, *, rationality: float = 1.0) -> Tensor:
        """How likely the judge prefers trajectory i to j [N, N]: sigmoid(rationality * (G_obs(i) - G_obs(j)))."""
        return torch.sigmoid(rationality * (self.observed_returns[:, None] - self.observed_returns[None]))

    def _return(self, trajectory: Trajectory) -> float:
        return sum(self.rewards.get(state, 0.0) for state in trajectory)

    def _taken(self, policy: Policy) -> dict[Trajectory, float]:
        found: dict[Trajectory, float] = {}
        open_ends: list[tuple[Trajectory, float]] = [((self.start,), 1.0)]
        while open_ends:
            taken, chance = open_ends.pop()
            if taken[-1] not in self.actions:
                found[taken] = found.get(taken, 0.0) + chance
                continue
            outcomes = self.actions[taken[-1]][policy[taken[-1]]]
            open_ends += [((*taken, state), chance * p) for state, p in outcomes.items() if p > 0]
        return found


def fitted_rewards(rows: Floats, is_first: NDArray[np.bool_], *, rationality: float, ridge: float = 1e-6) -> Floats:
    """Fit rewards of states [S] to comparisons by Bradley-Terry.

        max over r of mean log sigmoid(+- rationality * row . r) - ridge / 2 |r|^2

    rows      [P, S] visits of the first trajectory minus those of the second
    is_first  [P] which was preferred
    """
    rows = np.where(is_first, rationality, -rationality)[:, None] * rows

    def loss(rewards: Floats) -> tuple[float, Floats]:
        margins = rows @ rewards
        value = np.logaddexp(0, -margins).mean() + ridge / 2 * rewards @ rewards
        return float(value), -(rows * expit(-margins)[:, None]).mean(0) + ridge * rewards

    return np.asarray(minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B").x)


def hiding(*, suspicion: float = 0.5, success: float = 0.5, penalty: float = 1.0) -> ObservedWorld:
    """The task in which errors can be hidden; `suspicion` is how likely silence is taken for a hidden failure.

    >>> verdict = hiding(suspicion=0.5).verdict()
    >>> verdict.learned_policy, verdict.deceptive_inflation, verdict.overjustification
    ({'S': 'install', 'I': 'configure hidden'}, True, False)
    """
    failure, stopped = ("S", "I", "hidden failure"), ("S", "I", "stopped")
    return ObservedWorld(
        rewards={"I": 1.0, "success": 10.0, "failure": -5.0, "hidden failure": -5.0 - penalty},
        actions={
            "S": {"install": {"I": 1.0}, "stop": {"stopped": 1.0}},
            "I": {
                "configure": {"success": success, "failure": 1 - success},
                "configure hidden": {"success": success, "hidden failure": 1 - success},
                "stop": {"stopped": 1.0},
            },
        },
        looks_like={"hidden failure": "", "stopped": ""},
        beliefs={("S", "I"): {failure: suspicion, stopped: 1 - suspicion}},
    )


def verbose(*, trust: float = 0.2, success: float = 0.5, penalty: float = 1.0) -> ObservedWorld:
    """The task in which success can be shown at a cost; `trust` is how likely silence is taken for success.

    >>> [verbose(trust=trust).verdict().learned_policy["I"] for trust in (0.2, 0.5)]
    ['configure verbose', 'stop']
    """
    done, stopped = ("S", "I", "success"), ("S", "I", "stopped")
    return ObservedWorld(
        rewards={"I": 10.0, "success": 5.0, "shown success": 5.0 - penalty, "failure": -1.0, "shown failure": -1.0},
        actions={
            "S": {"install": {"I": 1.0}, "stop": {"stopped": 1.0}},
            "I": {
                "configure": {"success": success, "failure": 1 - success},
                "configure verbose": {"shown success": success, "shown failure": 1 - success},
                "stop": {"stopped": 1.0},
            },
        },
        looks_like={"success": "", "stopped": ""},
        beliefs={("S", "I"): {done: trust, stopped: 1 - trust}},
    )
