"""Pairs with margins, from responses that were rated: how much better a response is, not only which.

rated responses -> pairs of different ratings -> train | judge | test      (by prompt)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from itertools import combinations

import torch

from poise.data.sources import load
from poise.data.splits import split_by_prompt
from poise.errors import ConfigError
from poise.functional.preference_targets import margin_target
from poise.types import Comparison, Dataset, Demonstration, Prompt

SHARES = {"train": 0.5, "judge": 0.3, "test": 0.2}
_LONGEST_PROMPT, _LONGEST_RESPONSE = 200, 32  # words


def rated_pairs(name: str, *, pairs_per_prompt: int, columns: str = "") -> Dataset:
    """Comparisons with margins; of each prompt so many, drawn by a hash of the texts.

    name  a set with ratings or margins: odpo-sentiment, tldr-ratings, starter, or a file

    Raises ConfigError for a set without margins.
    """
    dataset = load(name, columns=columns)
    rated = _starter_points() if name == "starter" else dataset.demonstrations
    comparisons = _paired(rated) or dataset.comparisons
    by_prompt: dict[str, list[Comparison]] = {}
    for each in comparisons:
        if each.criterion == "helpful" and each.winner is not None and _is_short(each.prompt):
            by_prompt.setdefault(each.prompt.id, []).append(each)
    chosen = [each for found in by_prompt.values() for each in sorted(found, key=_drawn)[:pairs_per_prompt]]
    if not chosen or not any(each.margin for each in chosen):
        raise ConfigError(f"{name} has no comparisons with margins: choose odpo-sentiment, tldr-ratings or starter")
    prompts = {each.prompt.id: each.prompt for each in chosen}
    return replace(dataset, prompts=tuple(prompts.values()), comparisons=tuple(chosen), demonstrations=(), labels=())


def _starter_points() -> list[Demonstration]:
    """The responses of the starter set with their points for help, which its comparisons leave out."""
    text = (resources.files("poise.data") / "starter" / "starter.jsonl").read_text(encoding="utf-8")
    return [
        Demonstration(prompt=Prompt.of(row["prompt"], reward=float(each["help"])), response=each["text"], weight=0.0)
        for row in map(json.loads, text.splitlines())
        for each in row["responses"]
    ]


def _is_short(prompt: Prompt) -> bool:
    return len(prompt.text.split()) <= _LONGEST_PROMPT


def _drawn(comparison: Comparison) -> bytes:
    return hashlib.sha256("\x1e".join(comparison.responses).encode()).digest()


def _paired(rated: Sequence[Demonstration]) -> list[Comparison]:
    """Every two responses to a prompt with different ratings (the tag `reward`), cut to the same number of words."""
    by_prompt: dict[str, list[Demonstration]] = {}
    for row in rated:
        by_prompt.setdefault(row.prompt.id, []).append(row)
    found = []
    for rows in by_prompt.values():
        for pair in combinations(rows, 2):
            ours, theirs = (row.prompt.tags.get("reward", 0.0) for row in pair)
            texts = tuple(_cut(row.response) for row in pair)
            if ours != theirs and texts[0] != texts[1]:
                winner, margin = int(theirs > ours), abs(ours - theirs)
                found.append(Comparison(prompt=rows[0].prompt, responses=texts, winner=winner, margin=margin))
    return found


def _cut(text: str) -> str:
    """The first words, with the space or mark that the text begins with."""
    head = " " if text[:1] == " " else ""
    return head + " ".join(text.split()[:_LONGEST_RESPONSE])


def name_of_set(data: str) -> str:
    """What folders and arms call a set, be it a name or a path.

    >>> name_of_set("odpo-sentiment"), name_of_set("/data/my pairs.jsonl")
    ('odpo-sentiment', 'data-my-pairs-jsonl')
    """
    return re.sub(r"\W+", "-", data).strip("-")


def split_rated_pairs(dataset: Dataset, *, most_prompts: int = 0) -> dict[str, Dataset]:
    """Pairs to learn from, for a judge and to test on; no prompt is on two sides.

    most_prompts  of all sides together, the first of the set; 0: all
    """
    bare = [replace(p, tags={k: v for k, v in p.tags.items() if k != "split"}) for p in dataset.prompts]
    known = {p.id: p for p in (bare[:most_prompts] if most_prompts else bare)}
    rows = [replace(c, prompt=known[c.prompt.id]) for c in dataset.comparisons if c.prompt.id in known]
    kept = Dataset(name=dataset.name, prompts=tuple(known.values()), comparisons=tuple(rows))
    return split_by_prompt(kept, SHARES)


def without_margins(dataset: Dataset) -> Dataset:
    """The pairs as comparisons alone, of which Bradley-Terry learns who wins."""
    return replace(dataset, comparisons=tuple(replace(each, margin=0.0) for each in dataset.comparisons))


def with_margin_targets(dataset: Dataset, *, gamma: float) -> Dataset:
    """The pairs with probabilities in place of winners alone: sigmoid(gamma * margin) that the winner is better.

    Source: MMPO (arXiv:2410.03145), the target of its reward model.
    """
    return replace(dataset, comparisons=tuple(_softened(each, gamma) for each in dataset.comparisons))


def _softened(comparison: Comparison, gamma: float) -> Comparison:
    target = float(margin_target(torch.tensor(comparison.margin), gamma=gamma))
    return replace(comparison, probability=target if comparison.winner == 0 else 1 - target)
