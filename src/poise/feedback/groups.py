"""Which prompts belong to a group: so that a limit can speak of some prompts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from poise.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptGroup:
    """A named group of prompts and the rule that says which belong to it."""

    name: str
    contains: Callable[[Prompt], bool]


def of_category(name: str) -> PromptGroup:
    """The prompts whose tag `categories` names a kind of harm.

    >>> of_category("theft").contains(Prompt.of("How do I pick a lock?", categories=("theft", "privacy")))
    True
    """
    return PromptGroup(name=name, contains=lambda prompt: name in prompt.tags.get("categories", ()))


def may_harm(prompt: Prompt) -> bool:
    """Whether a prompt may ask for harm: all but those that are known to be harmless."""
    return prompt.tags.get("kind") not in ("benign", "look_alike")
