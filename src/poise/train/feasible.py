"""The best feasible policy by what training itself samples: the weights whose recent batches met every limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from poise.ranks import current
from poise.train.averaging import put

_WINDOW = 3  # batches averaged before a policy may be called the best feasible one


class BestFeasible:
    """The weights whose recent scores met every limit, of these the ones with the highest recent reward.

    They are those that the last of the scores belong to: an update later, a policy may have left the limit behind.
    """

    def __init__(self, num_limits: int):
        self.num_limits = num_limits
        self.recent: deque[dict[str, float]] = deque(maxlen=_WINDOW)
        self.best: dict[str, Any] = {}

    @property
    def is_met(self) -> bool:
        """Whether the recent batches met every limit on average."""
        means = self._means()
        limits = [value for name, value in means.items() if name.startswith("excess")]
        measured = len(limits) >= max(1, self.num_limits)
        return len(self.recent) == _WINDOW and "reward" in means and measured and max(limits) <= 0

    def see(
        self, scores: Mapping[str, Tensor], moved: Mapping[str, float], *, step: int, weights: Mapping[str, Tensor]
    ) -> None:
        """Take in a batch: its scores, what the objective measured of it, and the weights that sampled it."""
        rewards = {"reward": float(scores["reward"].mean())} if "reward" in scores else {}
        self.recent.append(rewards | {k: v for k, v in moved.items() if k.startswith("excess")})
        if self.is_met and (reward := self._means()["reward"]) >= self.best.get("reward", -float("inf")):
            copies = {name: weight.detach().clone() for name, weight in weights.items()}
            self.best = {"reward": reward, "step": step, "weights": copies}

    def load_into(self, parameters: Mapping[str, Tensor]) -> int | None:
        """Put the best weights into parameters; returns the number of their step, or None if there are none."""
        if not self.best:
            return None
        put(self.best["weights"], parameters)
        return int(self.best["step"])

    def _means(self) -> dict[str, float]:
        known = set.intersection(*(set(row) for row in self.recent)) if self.recent else set()
        return {k: sum(row[k] for row in self.recent) / len(self.recent) for k in known}  # a group's may be missing

    def state_dict(self) -> dict[str, Any]:
        """The recent batches and the best weights."""
        return {"recent": list(self.recent), "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Restore them, laid out over the processes as `parameters` are."""
        self.recent = deque(state["recent"], maxlen=_WINDOW)
        self.best = dict(state["best"])
        if self.best:
            weights = self.best["weights"]
            self.best["weights"] = {name: current().like(p, weights[name]) for name, p in parameters.items()}
