"""Text on disk to nouns, nouns to tensors.

`load` reads a known data set or a file of yours, `split_by_prompt`, `merge` and `select` rearrange what was read, and
`poise.data.lint.lint` says what is wrong with it. Each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.data.contradictions import drop_contradictions
    from poise.data.lint import LintReport
    from poise.data.sources import load
    from poise.data.splits import (
        first_prompts,
        held_out,
        judges_harm,
        merge,
        select,
        split_by_prompt,
        split_in_strata,
        with_cut_responses,
        without_splits,
    )

_LAZY = {
    "LintReport": "poise.data.lint",
    "drop_contradictions": "poise.data.contradictions",
    "first_prompts": "poise.data.splits",
    "held_out": "poise.data.splits",
    "judges_harm": "poise.data.splits",
    "load": "poise.data.sources",
    "merge": "poise.data.splits",
    "select": "poise.data.splits",
    "split_by_prompt": "poise.data.splits",
    "split_in_strata": "poise.data.splits",
    "with_cut_responses": "poise.data.splits",
    "without_splits": "poise.data.splits",
}
__all__ = [
    "LintReport",
    "drop_contradictions",
    "first_prompts",
    "held_out",
    "judges_harm",
    "load",
    "merge",
    "select",
    "split_by_prompt",
    "split_in_strata",
    "with_cut_responses",
    "without_splits",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'poise.data' has no attribute {name!r}")
