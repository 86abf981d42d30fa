"""How data that no judge can learn from are divided: into what is learned and what is held out."""

from __future__ import annotations

from dataclasses import replace

from poise.data import split_by_prompt, without_splits
from poise.types import Dataset

_HELD_OUT = 0.2
_OUTSIDE = ("test", "validation")  # the splits of a publisher that are held out, the first that has prompts


def judges_harm(data: Dataset) -> bool:
    """True if some rows say which responses are safe, or safer: what a judge of harm learns from."""
    return bool(data.labels) or any(each.criterion == "safe" for each in data.comparisons)


def held_out(dataset: Dataset, *, seed: int) -> dict[str, Dataset]:
    """The sides train and test, as the rows say; where they leave one empty, a fifth of the prompts is held out.

    >>> from poise.types import Prompt
    >>> rows = Dataset(name="rows", prompts=tuple(Prompt.of(f"{i}", split="train") for i in range(50)))
    >>> 0 < len(held_out(rows, seed=0)["test"].prompts) < 25
    True
    """
    tags = {str(prompt.tags.get("split")) for prompt in dataset.prompts}
    outside = next((name for name in _OUTSIDE if name in tags), _OUTSIDE[0])
    shares = {"train": 1 - _HELD_OUT, outside: _HELD_OUT}
    parts = split_by_prompt(dataset, shares, seed=seed)
    if not all(part.prompts for part in parts.values()):
        parts = split_by_prompt(without_splits(dataset), shares, seed=seed)
    named = {"train": parts["train"], "test": parts[outside]}
    return {
        name: replace(part, name=f"{dataset.name}[{name}]", provenance=dataset.provenance)
        for name, part in named.items()
    }
