"""Where a study comes from: a file with a recipe in it, and how it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from poise.experiment.study import MethodCard, Study

Build = Callable[..., Study]

_OURS = Path(__file__).parents[1] / "recipes"


class Source(Protocol):
    """A function from arguments to a study that another process can import again."""

    name: str  # on the command line and on pages
    __name__: str  # in its file
    file: Path
    card: MethodCard
    build: Build

    def beside_defaults(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those recorded arguments that differ from the defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options that every recipe has in addition to its own arguments."""

    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    workers: int
    output: str
    folder: str | None
    quick: bool


def import_file(file: Path) -> ModuleType:
    """Import a recipe's file: one of ours as a module of the package, any other as its source stands.

    A compiled file beside it, of which nobody sees the contents, is not read.
    """
    file = file.resolve()
    if file.parent == _OURS.resolve():
        return importlib.import_module(f"poise.recipes.{file.stem}")
    module = ModuleType(f"poise_recipe_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
    return module
