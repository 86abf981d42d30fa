"""`@recipe`: a function from arguments to a `Study` becomes a command with seeds, arms, workers, folder and output."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from poise.errors import ConfigError
from poise.experiment.source import Build, Options
from poise.experiment.study import MethodCard
from poise.files import to_jsonable
from poise.run import Run

_HELP = """
    seeds: how many seeds of each arm, such as 5, or which ones, such as 0,1,4 or 0-4.
    arms: the arms to run, joined by commas; all of them by default.
    workers: trials that run at the same time, each in a process of its own.
    output: a file to write as well: FILE.md the page with its pictures beside it, FILE.json the results.
    folder: run folder; an unfinished run in it is continued.
    quick: few seeds and little work: a smoke test, not a result. Options given beside it still count.
"""


class Recipe:
    """A recipe: calling it with its arguments runs its study and returns the run.

    card    describes the method
    build   function from the recipe's own arguments to its study
    quick   arguments that `--quick` replaces, and `seeds` (2 by default)
    """

    def __init__(self, build: Build, *, card: MethodCard, quick: Mapping[str, Any], seeds: int, workers: int):
        self.build, self.card, self.file = build, card, Path(inspect.getfile(build))
        self.name, self.quick = build.__name__.replace("_", "-"), {"seeds": 2, "workers": 1, **quick}
        own = inspect.signature(build)
        hints = {name: hint for name, hint in typing.get_type_hints(build).items() if name != "return"}
        common: dict[str, tuple[Any, Any]] = {
            "seeds": (int | tuple[int, ...], seeds),
            "arms": (tuple[str, ...], ()),
            "workers": (int, workers),
            "output": (str, ""),
            "folder": (str | None, None),
            "quick": (bool, False),
        }
        every = [parameter.replace(annotation=hints.get(name, Any)) for name, parameter in own.parameters.items()]
        kind = inspect.Parameter.KEYWORD_ONLY
        every += [inspect.Parameter(name, kind, annotation=t, default=d) for name, (t, d) in common.items()]
        self.__signature__ = inspect.Signature(every, return_annotation=Run)
        self.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        self.__globals__ = getattr(build, "__globals__", {})
        self.__name__, self.__module__ = build.__name__, build.__module__
        self.__doc__ = inspect.cleandoc(build.__doc__ or "") + ("" if _has_arguments(build) else "\n\nArgs:") + _HELP
        self._own, self._common = tuple(own.parameters), tuple(common)

    def __call__(self, **given: Any) -> Run:
        """Run every arm with every seed, print the page and return the run. Raises as `resolve` does."""
        from poise.experiment.runner import run_recipe

        arguments, options = self.resolve(given)
        return run_recipe(self, arguments, options)

    def resolve(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Options]:
        """The recipe's own arguments and the common options. Given values override `quick`, which overrides defaults.

        Raises ConfigError for an unknown argument, or invalid seeds.
        """
        if strangers := set(given) - {*self._own, *self._common}:
            names = ", ".join((*self._own, *self._common))
            raise ConfigError(f"{self.name} has no argument {', '.join(sorted(strangers))}: there are {names}")
        defaults = {name: each.default for name, each in self.__signature__.parameters.items()}
        resolved = defaults | (self.quick if given.get("quick") else {}) | dict(given)
        options = {name: resolved[name] for name in self._common}
        options |= {"seeds": _seeds(options["seeds"]), "arms": tuple(options["arms"])}
        return {name: resolved[name] for name in self._own}, Options(**options)

    @property
    def brief(self) -> Mapping[str, Any]:
        """What `quick` fills in, also where a recorded run is repeated quickly."""
        return self.quick

    def beside_defaults(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Of the arguments that a run recorded, those that are not the defaults."""
        defaults = {name: to_jsonable(each.default) for name, each in self.__signature__.parameters.items()}
        defaults["seeds"] = list(_seeds(defaults["seeds"]))
        return {name: value for name, value in arguments.items() if defaults.get(name) != value}


def recipe(
    card: MethodCard, *, quick: Mapping[str, Any], seeds: int = 5, workers: int = 2
) -> Callable[[Build], Recipe]:
    """Make a recipe of a function from arguments to a `Study`; its docstring explains the arguments.

    card            what the method is
    quick           what a smoke test replaces
    seeds, workers  how many there are unless told otherwise
    """
    return lambda build: Recipe(build, card=card, quick=quick, seeds=seeds, workers=workers)


def _seeds(given: int | typing.Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(given)) if isinstance(given, int) else tuple(given)
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ConfigError(f"seeds {given}: give a number of at least 1, or a list of different seeds such as 0,1,4")
    return found


def _has_arguments(build: Build) -> bool:
    return "Args:" in (build.__doc__ or "")
