"""Arguments of recipes, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from poise.errors import ConfigError


def check(
    values: Mapping[str, Any],
    *,
    at_least_one: Sequence[str] = (),
    at_least: Mapping[str, float] | None = None,
    above_zero: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    one_of: Mapping[str, Collection[str]] | None = None,
    several: Mapping[str, Collection[Any] | None] | None = None,
) -> None:
    """Raise ConfigError that names the first argument out of its range; None, where it is a default, passes.

    above_zero  of an argument that holds several numbers, each must be
    one_of      argument -> what it may be
    several     argument that holds several -> what each may be, or None for anything; one at least, and none twice

    >>> check({"steps": 0}, at_least_one=["steps"])
    Traceback (most recent call last):
    ...
    poise.errors.ConfigError: steps is 0: it must be at least 1
    """
    for name, choices in (several or {}).items():
        _check_several(name, values[name], choices)
    for name, allowed in (one_of or {}).items():
        if values[name] not in allowed:
            raise ConfigError(f"{name} is {values[name]!r}: choose {', '.join(allowed)}")
    least = {**dict.fromkeys(at_least_one, 1), **(at_least or {})}
    rules = [
        *((name, lambda value, bound=bound: value >= bound, f"at least {bound:g}") for name, bound in least.items()),
        *((name, lambda value: value > 0, "above 0") for name in above_zero),
    ]
    for name, fits, wanted in rules:
        _check_number(name, values[name], fits, f"must be {wanted}")
    for name in not_negative:
        _check_number(name, values[name], lambda value: value >= 0, "must not be negative")


def _check_number(name: str, given: Any, fits: Any, wanted: str) -> None:
    for value in given if isinstance(given, tuple | list) else (given,):
        if value is not None and not fits(value):
            raise ConfigError(f"{name} is {value}: it {wanted}")


def _check_several(name: str, given: Sequence[Any], choices: Collection[Any] | None) -> None:
    if not given or len(set(given)) < len(given):
        raise ConfigError(f"{name} are {tuple(given)}: give at least one, without duplicates")
    if choices is not None and (strangers := [value for value in given if value not in choices]):
        raise ConfigError(f"{name}: no {strangers[0]!r}; choose {', '.join(map(str, choices))}")
