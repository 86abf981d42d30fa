"""Two hidden domains and a shortcut that pays in one of them: what is best on average is not what holds everywhere.

A prompt shows a cue. Behind it stands the easy domain or the hard one; the cue says which only in part, and nobody is
told. Three arms: the shortcut pays 1.2 in the easy domain and -0.3 in the hard one, sound work pays 0.8 in both, and
nonsense 0.

Gold: those rewards. Optimum: on average, the shortcut for every cue behind which the easy domain is likely enough (more
than 11 in 15), sound work for the others (`best_on_average`). For the invariant objective

    E[R] - coefficient * Var(mean reward of a domain),   Var = ((m_easy - m_hard) / 2)^2

a share of the shortcut that shrinks as the coefficient grows (`best_invariant`). What goes wrong: the average hides
that the hard domain pays for the easy one, and where the hard domain comes up more often than in training (`shifted`)
the shortcut loses.

Source: the setting of Zheng et al., "Improving Generalization of Alignment with Human Preferences through Group
Invariant Learning" (arXiv:2310.11971), reduced to a table; the form of the variance is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from poise.types import Prompt
from poise.worlds.bandit import Floats

ARMS = ("shortcut", "sound", "nonsense")
EASY, HARD = 0, 1
_REWARDS = np.array([[1.2, 0.8, 0.0], [-0.3, 0.8, 0.0]])  # [domain, arm]


@dataclass(frozen=True, kw_only=True)
class ShortcutWorld:
    """Cues X, each with the chance that the hard domain stands behind it; every cue comes equally often."""

    hard: tuple[float, ...] = (0.05, 0.1, 0.2, 0.45)  # [X]

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """One prompt for each cue; the tag `context` is its number."""
        return tuple(Prompt.of(f"shortcut: cue {i}", source="shortcut", context=i) for i in range(len(self.hard)))

    @property
    def num_arms(self) -> int:
        """Shortcut, sound work and nonsense."""
        return len(ARMS)

    @property
    def domain_shares(self) -> Floats:
        """How often the easy and the hard domain come [2]."""
        share = float(np.mean(self.hard))
        return np.array([1 - share, share])

    def shifted(self, hard: tuple[float, ...] = (0.55, 0.8, 0.9, 0.95)) -> ShortcutWorld:
        """The same task where the hard domain is common, for what was not seen in training."""
        return replace(self, hard=hard)

    def sample(self, contexts: Tensor, arms: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Rewards and domains [B] of playing `arms` [B] on the cues `contexts` [B]; the domain is for evaluation."""
        chances = torch.tensor(self.hard)[contexts]
        domains = (torch.rand(len(contexts), generator=generator) < chances).long()
        rewards = torch.tensor(_REWARDS, dtype=torch.float32)[domains, arms]
        return {"reward": rewards, "domain": domains.float()}

    def domain_rewards(self, policy: Floats) -> Floats:
        """The mean reward [2] of a policy [X, A] in the easy and in the hard domain, exactly."""
        behind = np.array([1 - np.array(self.hard), self.hard])  # [2, X]
        return np.einsum("dx,xa,da->d", behind / behind.sum(1, keepdims=True), policy, _REWARDS)

    def reward_of(self, policy: Floats) -> float:
        """The mean reward of a policy [X, A], exactly."""
        return float(self.domain_shares @ self.domain_rewards(policy))

    def variance_of(self, policy: Floats) -> float:
        """The variance of the domains' mean rewards, each domain counting the same, exactly."""
        easy, hard = self.domain_rewards(policy)
        return float(((easy - hard) / 2) ** 2)

    def measure(self, policy: Floats) -> dict[str, float]:
        """What a policy [X, A] earns as trained, in either domain and under the shift, and its share of shortcuts."""
        domains = self.domain_rewards(policy)
        return {
            "reward": self.reward_of(policy),
            "easy": float(domains[EASY]),
            "hard": float(domains[HARD]),
            "variance": self.variance_of(policy),
            "shifted": self.shifted().reward_of(policy),
            "shortcut": float(policy[:, ARMS.index("shortcut")].mean()),
        }

    def best_for_all_cues(self, coefficient: float) -> Floats:
        """The same as `best_invariant`, of the policies [X, A] that do the same under every cue; shares by 0.001."""
        every = [np.tile([share, 1 - share, 0.0], (len(self.hard), 1)) for share in np.linspace(0, 1, 1001)]
        values = [self.reward_of(policy) - coefficient * self.variance_of(policy) for policy in every]
        return every[int(np.argmax(values))]

    def best_on_average(self) -> Floats:
        """The policy [X, A] of the highest mean reward."""
        chances = np.array(self.hard)[:, None]
        return np.eye(len(ARMS))[((1 - chances) * _REWARDS[EASY] + chances * _REWARDS[HARD]).argmax(-1)]

    def best_invariant(self, coefficient: float) -> Floats:
        """The policy [X, A] with the highest mean reward - coefficient * variance between the domains.

        Nonsense never pays, so that a share of the shortcut for each cue is all there is to find, in a concave problem.
        """

        def loss(shares: Floats) -> float:
            policy = _with_shortcut(shares)
            return coefficient * self.variance_of(policy) - self.reward_of(policy)

        start = np.full(len(self.hard), 0.5)
        found = minimize(loss, start, bounds=[(0, 1)] * len(start), options={"ftol": 1e-15, "gtol": 1e-10})
        return _with_shortcut(found.x)


def _with_shortcut(shares: Floats) -> Floats:
    return np.stack([shares, 1 - shares, np.zeros_like(shares)], axis=-1)
