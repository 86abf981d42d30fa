"""What `quick` does to a recipe: it fills the arguments that were not given with those of a smoke test."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

TINY = "random:llama?layers=3"
ALIGNED = {  # what recipes on judged answers have in common
    "model": TINY,
    "steps": 2,
    "response_tokens": 8,
}


RATED = {  # and those on rated pairs
    "model": TINY,
    "steps": 2,
    "prompts_per_step": 2,
    "pairs_per_prompt": 2,
    "response_tokens": 6,
    "seeds": (0, 1),
}


def briefly(**brief: Any) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Have a recipe called with `quick=True` take these values for the arguments that the call leaves out.

    What the call gives counts, a default's own value included.

    >>> @briefly(steps=2, model="tiny")
    ... def recipe(*, steps: int = 24, model: str = "large", quick: bool = False) -> str:
    ...     return f"{steps} steps of {model}"
    >>> recipe(), recipe(quick=True), recipe(quick=True, steps=24)
    ('24 steps of large', '2 steps of tiny', '24 steps of tiny')
    """

    def decorate(recipe: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(recipe)
        def filled(*args: Arguments.args, **given: Arguments.kwargs) -> Result:
            return recipe(*args, **(brief if given.get("quick") else {}) | given)  # type: ignore[arg-type]

        vars(filled)["brief"] = brief
        return filled

    return decorate


def brief_of(recipe: Callable[..., Any]) -> dict[str, Any]:
    """The values that `quick` fills in for a recipe; none for one that was written without `briefly`."""
    return dict(getattr(recipe, "brief", {}))
