"""Additions of which most are too easy or too hard: groups of samples that all succeed or all fail.

Gold: 1 for the right sum, 0 for anything else. Optimum: the right sum everywhere, reward 1. What goes wrong: a group of
samples with equal rewards has a standard deviation of 0, so its group-normalised advantages are 0. The start policy
is right on 97 % of easy sums, 50 % of fair ones and 3 % of hard ones, so this happens in most groups of eight, and
nothing is learned from them (`zero_variance_share`).

The same problems come as text, for a language model (`prompts`, `demonstrations`, `AdditionScorer`), and as tables for
a trainer of tables: of candidate answers (`Addition`), or digit by digit (`AdditionByDigits`), so that a wrong answer
has sure and unsure tokens.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from poise.types import Completion, Demonstration, Prompt, Scores
from poise.worlds.bandit import Floats

DIGITS = {"easy": 1, "fair": 2, "hard": 4}  # of each summand
SUCCESS = {"easy": 0.97, "fair": 0.5, "hard": 0.03}  # of the starting policy of the table
_NUMBER = re.compile(r"-?\d+")


def zero_variance_share(success: Sequence[float] | Floats, group: int) -> float:
    """How often all samples of a prompt are right, or all wrong: the mean of p^G + (1 - p)^G over prompts.

    >>> round(zero_variance_share([1.0, 0.5], group=2), 3)
    0.75
    """
    return sum(p**group + (1 - p) ** group for p in success) / len(success)


class AdditionScorer:
    """Scores a sum: 1.0 on the channel "reward" if the first number of the response is the prompt's answer.

    >>> prompt = Prompt.of("2+3=", answer=5)
    >>> completions = [Completion(prompt_id=prompt.id, text=text) for text in ("5", "It is 5.", "6", "five")]
    >>> [scores.values["reward"] for scores in AdditionScorer().score([prompt] * 4, completions)]
    [1.0, 1.0, 0.0, 0.0]
    """

    name = "addition"

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """Check each response against the tag `answer` of the prompt beside it."""
        return [
            Scores(values={"reward": float(_first_number(completion.text) == prompt.tags["answer"])}, source=self.name)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Addition:
    """How many problems of each level there are, drawn by seed."""

    easy: int = 6
    fair: int = 4
    hard: int = 6
    num_arms: int = 10  # candidate answers in the table, one of them right
    seed: int = 0

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The problems; tags `answer`, `level` and `context`, the number of the problem."""
        generator, found = random.Random(self.seed), dict[str, tuple[int, str]]()
        for level, count in (("easy", self.easy), ("fair", self.fair), ("hard", self.hard)):
            wanted = len(found) + count
            while len(found) < wanted:
                left, right = (_number(generator, DIGITS[level]) for _ in range(2))
                found[f"{left}+{right}="] = left + right, level
        return tuple(
            Prompt.of(text, source="addition", answer=answer, level=level, context=i)
            for i, (text, (answer, level)) in enumerate(found.items())
        )

    def demonstrations(
        self, count: int, *, levels: Sequence[str] = ("easy", "fair"), seed: int = 0
    ) -> list[Demonstration]:
        """Right answers to random problems of some levels: what a starting model may have seen."""
        generator = random.Random(f"{self.seed}/{seed}")
        rows = []
        for _ in range(count):
            digits = DIGITS[generator.choice(list(levels))]
            left, right = (_number(generator, digits) for _ in range(2))
            rows.append(Demonstration(prompt=Prompt.of(f"{left}+{right}="), response=str(left + right)))
        return rows

    @cached_property
    def success(self) -> tuple[float, ...]:
        """How often the table's starting policy is right on each problem [X]."""
        return tuple(SUCCESS[prompt.tags["level"]] for prompt in self.prompts)

    @cached_property
    def right(self) -> Tensor:
        """The arm [X] that holds the right answer."""
        return torch.tensor([random.Random(prompt.id).randrange(self.num_arms) for prompt in self.prompts])

    @cached_property
    def start(self) -> Tensor:
        """Logits [X, A] of the starting policy: the right arm by its level, the others alike."""
        logits = torch.zeros(len(self.prompts), self.num_arms)
        odds = [math.log(p / (1 - p) * (self.num_arms - 1)) for p in self.success]
        return logits.scatter(1, self.right[:, None], torch.tensor(odds)[:, None])

    def sample(self, contexts: Tensor, arms: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Rewards [B] of answering the problems `contexts` [B] by the arms [B]; nothing is random in it."""
        return {"reward": (self.right[contexts] == arms).float()}

    def reward_of(self, policy: Floats) -> float:
        """The mean reward of a policy [X, A], exactly."""
        return float(policy[range(len(self.prompts)), self.right.numpy()].mean())


@dataclass(frozen=True, kw_only=True)
class AdditionByDigits:
    """The same problems, answered by five digits: a table [X, T, A] of problems, places and digits, drawn one by one.

    An answer is right if all of its digits are. The starting policy is as often right as that of `Addition`. It is
    surest of the outer digits; in the middle, where digits are carried, it is least sure, and nine tenths of its
    mistakes are the digit one below: a carry forgotten.
    """

    problems: Addition = Addition()
    doubt: tuple[float, ...] = (1.0, 2.0, 4.0, 2.0, 1.0)  # how the chance to be wrong is shared by the places
    num_arms: int = 10

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The problems; the tag `context` is the number of one."""
        return self.problems.prompts

    @cached_property
    def right(self) -> Tensor:
        """The right digits [X, T], the first place first."""
        answers = [f"{prompt.tags['answer']:0{len(self.doubt)}d}" for prompt in self.prompts]
        return torch.tensor([[int(digit) for digit in answer] for answer in answers])

    @cached_property
    def start(self) -> Tensor:
        """Logits [X, T, A] of the starting policy."""
        shares = torch.tensor(self.doubt) / sum(self.doubt)
        right = torch.tensor(self.problems.success)[:, None] ** shares  # [X, T], their product is the success
        wrong = (1 - right)[..., None]
        table = (0.1 * wrong / (self.num_arms - 2)).expand(-1, -1, self.num_arms).clone()
        table.scatter_(-1, (self.right[..., None] - 1) % self.num_arms, 0.9 * wrong)
        return table.scatter_(-1, self.right[..., None], right[..., None]).log()

    def sample(self, contexts: Tensor, arms: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Rewards [B] of answering the problems `contexts` [B] by the digits [B, T]; nothing is random in it."""
        return {"reward": (self.right[contexts] == arms).all(-1).float()}

    def success_of(self, policy: Tensor) -> Tensor:
        """How often a policy [X, T, A] is right on each problem [X], exactly."""
        return policy.gather(-1, self.right[..., None]).squeeze(-1).prod(-1)


def _number(generator: random.Random, digits: int) -> int:
    return generator.randrange(10 ** (digits - 1), 10**digits)


def _first_number(text: str) -> int | None:
    found = _NUMBER.search(text)
    return int(found.group()) if found else None
