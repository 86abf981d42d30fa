"""A hundred arms, a strong teacher and a weak student: what preferences can teach, and what demonstrations can.

Gold: arm i is worth i. Optimum: arm 99, worth 99. The teacher's answers lie around arm 80, the student's around arm 40:

    p(i) ~ exp(-(i - centre)^2 / spread),   spread 300

Imitation fits a softmax to the teacher's answers and gets to the teacher. Feedback lets the student answer, compares
its answers by their gold (no label is wrong), fits a reward to the comparisons and tilts the student by it:

    pi(i) ~ student(i) exp(reward(i) / beta),   beta 0.1

What goes wrong: the reward is right only where the student answers, so that feedback cannot reach the teacher's region
however good the one who compares.

Source: Sharma et al., "A Critical Evaluation of AI Feedback for Aligning Large Language Models" (arXiv:2402.12366), the
bandit of the public code: 500,000 answers in 250,000 pairs, 7,500 steps of descent at rate 0.01 for the reward; 250,000
demonstrations and 15,000 steps for the imitation. A step here is one of full-batch descent, which needs counts only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poise.worlds.bandit import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStudent:
    """Where the teacher's and the student's answers lie, and how wide."""

    teacher_centre: float = 80.0
    student_centre: float = 40.0
    spread: float = 300.0
    arms: int = 100

    @property
    def rewards(self) -> Floats:
        """The gold [A] of each arm: its number."""
        return np.arange(self.arms, dtype=np.float64)

    @property
    def teacher(self) -> Floats:
        """The teacher's distribution [A]."""
        return self._around(self.teacher_centre)

    @property
    def student(self) -> Floats:
        """The student's distribution [A]."""
        return self._around(self.student_centre)

    def reward_of(self, policy: Floats) -> float:
        """The mean gold of a policy [A], exactly."""
        return float(policy @ self.rewards)

    def compare(self, *, pairs: int = 250_000, seed: int = 0) -> Floats:
        """How often arm i beat arm j [A, A] in pairs of the student's answers; of equal arms either wins at random."""
        generator = np.random.default_rng(seed)
        drawn = np.sort(generator.choice(self.arms, size=(pairs, 2), p=self.student), axis=1)
        wins = np.zeros((self.arms, self.arms))
        np.add.at(wins, (drawn[:, 1], drawn[:, 0]), 1.0)  # the higher arm is worth more
        return wins

    def demonstrate(self, *, answers: int = 250_000, seed: int = 0) -> Floats:
        """How often the teacher gave each answer [A]."""
        return np.random.default_rng(seed).multinomial(answers, self.teacher).astype(np.float64)

    def imitation(self, counts: Floats, *, steps: int = 15_000, rate: float = 1.0) -> Floats:
        """Fit a softmax to answers counted [A], from the uniform one: the policy [A] of supervised fine-tuning."""
        wanted, logits = counts / counts.sum(), np.zeros(self.arms)
        for _ in range(steps):
            logits += rate * (wanted - _softmax(logits))
        return _softmax(logits)

    def fitted_reward(self, wins: Floats, *, steps: int = 7_500, rate: float = 0.01) -> Floats:
        """Fit a reward [A] to comparisons [A, A] by Bradley-Terry, from zero.

        max over r of sum_ij wins_ij log sigmoid(r_i - r_j)
        """
        shares, reward = wins / wins.sum(), np.zeros(self.arms)
        for _ in range(steps):
            surprise = shares / (1 + np.exp(np.clip(reward[:, None] - reward[None], -500, 500)))
            reward += rate * (surprise.sum(1) - surprise.sum(0))
        return reward

    def feedback(self, reward: Floats, *, beta: float = 0.1) -> Floats:
        """Tilt the student by a reward [A]: the policy [A] that reinforcement learning with that KL weight ends at."""
        return _softmax(np.log(self.student) + reward / beta)

    def _around(self, centre: float) -> Floats:
        return _softmax(-((self.rewards - centre) ** 2) / self.spread)


def ordered_rightly(reward: Floats) -> float:
    """The share of pairs of arms, whose gold rises along `reward` [A], that a fitted reward orders as gold does.

    Equal rewards count one half.

    >>> ordered_rightly(np.array([0.0, 2.0, 2.0]))
    0.8333333333333334
    """
    differences = reward[None] - reward[:, None]
    above = differences[np.triu_indices(len(reward), k=1)]
    return float(((np.sign(above) + 1) / 2).mean())


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
