"""Arguments of recipes, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poise.errors import ConfigError


def check(
    values: Mapping[str, Any],
    *,
    at_least_one: Sequence[str] = (),
    above_zero: Sequence[str] = (),
    not_negative: Sequence[str] = (),
) -> None:
    """Raise ConfigError that names the first number out of its range; None, where it is a default, passes.

    >>> check({"steps": 0}, at_least_one=["steps"])
    Traceback (most recent call last):
    ...
    poise.errors.ConfigError: steps is 0: it must be at least 1
    """
    for names, fits, wanted in (
        (at_least_one, lambda value: value >= 1, "must be at least 1"),
        (above_zero, lambda value: value > 0, "must be above 0"),
        (not_negative, lambda value: value >= 0, "must not be negative"),
    ):
        for name in names:
            if (value := values[name]) is not None and not fits(value):
                raise ConfigError(f"{name} is {value}: it {wanted}")
