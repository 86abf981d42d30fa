"""A table of sure scores on any number of channels: what several limits at once are tried on.

Gold: every channel of every response. Optimum: `optimum.best_under_limits`. What goes wrong: what the channels stand
for; a limit on one of them says nothing of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from poise.types import Prompt
from poise.worlds.bandit import Floats


@dataclass(frozen=True, kw_only=True)
class Table:
    """Contexts X and arms A with scores [X, A] on channels; every context comes equally often.

    >>> prompts = (Prompt.of("a", context=0), Prompt.of("b", context=1))
    >>> table = Table(prompts=prompts, channels={"reward": np.array([[0.0, 2.0], [1.0, 5.0]])})
    >>> table.mean_of(np.full((2, 2), 0.5), "reward"), table.mean_of(np.eye(2), "reward", lambda p: p.text == "b")
    (2.0, 5.0)
    """

    prompts: Sequence[Prompt]  # the tag `context` is the number of the row
    channels: Mapping[str, Floats]  # [X, A]

    @property
    def num_arms(self) -> int:
        """Arms of every context."""
        return next(iter(self.channels.values())).shape[1]

    def sample(self, contexts: Tensor, arms: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Scores [B] of playing `arms` [B] in `contexts` [B] on every channel; nothing is random in them."""
        return {name: scores[contexts, arms] for name, scores in self._tensors.items()}

    def weights_of(self, channel: str, contains: Callable[[Prompt], bool] = lambda _: True) -> Floats:
        """Weights [X, A] by which a policy sums to the mean of a channel, over all prompts or those of a group."""
        inside = np.array([contains(prompt) for prompt in self.prompts], dtype=np.float64)
        return inside[:, None] / inside.sum() * self.channels[channel]

    def mean_of(self, policy: Floats, channel: str, contains: Callable[[Prompt], bool] = lambda _: True) -> float:
        """The mean of a channel under a policy [X, A], exactly."""
        return float((self.weights_of(channel, contains) * policy).sum())

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return {name: torch.tensor(scores, dtype=torch.float32) for name, scores in self.channels.items()}
