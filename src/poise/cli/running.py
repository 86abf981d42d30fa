"""`poise run`: read the words, call the recipe, and say how to continue when it is stopped."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from poise.allocator import keep_freed_memory
from poise.cli.options import parse_options, restore
from poise.cli.recipes import find_recipe, load_recipe, recipe_files
from poise.errors import ConfigError, RunError
from poise.ranks import Ranks, use_ranks
from poise.run import RECIPE_FILE, Run, default_folder
from poise.text import say, without_passwords

HELP = """Run a recipe; its options are the arguments of its function.

poise run safe-rlhf --help          all options of a recipe

poise run safe-rlhf --quick         minutes instead of hours: a check that everything works

poise run mine.py --folder runs/a   your own file (poise copy safe-rlhf mine.py), continued if runs/a exists

poise run --from RUN/run.json       repeat a run in a new folder; further options override its arguments
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What the words after `poise run` ask for."""

    recipe: Path
    words: tuple[str, ...]  # the options
    head: tuple[str, ...]  # what names the recipe: safe-rlhf, mine.py or --from FILE
    recorded: dict[str, Any]  # arguments of the run to repeat


def run(words: Sequence[str]) -> None:
    """Run the recipe that the words name, with the options that they hold."""
    if not words or words[0] in ("--help", "-h"):
        say(f"Usage: poise run RECIPE [OPTIONS]\n\n{HELP}\nRecipes: {', '.join(recipe_files())}")
        return
    order = _read_order(words)
    recipe = load_recipe(order.recipe)
    given = parse_options(recipe, order.words, program=shlex.join(["poise", "run", *order.head]))
    if given is None:
        return
    keep_freed_memory()
    arguments = restore(recipe, order.recorded) | given
    with _joined() as ranks:
        if "folder" in inspect.signature(recipe).parameters:
            arguments["folder"] = ranks.share(str(arguments.get("folder") or default_folder(order.recipe.stem)))
            if ranks.is_main:
                say(f"Run folder: {arguments['folder']}", error=True)
        with _stoppable(order, arguments.get("folder")):
            _call(recipe, arguments, order.recipe)


def _joined() -> AbstractContextManager[Ranks]:
    """Be one of the processes that torchrun started; one started alone need not load torch for it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return use_ranks(Ranks())
    from poise.train.distributed import joined

    return joined()


def _read_order(words: Sequence[str]) -> _Order:
    first, _, inline = words[0].partition("=")
    if first != "--from":
        if first.startswith("-"):
            raise ConfigError(f"name a recipe before its options: poise run RECIPE {shlex.join(words)}")
        return _Order(recipe=find_recipe(words[0]), words=tuple(words[1:]), head=(words[0],), recorded={})
    values = [inline, *words[1:]] if inline else list(words[1:])
    if not values:
        raise ConfigError("--from needs a run: poise run --from RUN/run.json")
    path = Path(values[0])
    path = path / "run.json" if path.is_dir() else path
    record = _read_record(path)
    own = path.parent / "recipe.py"
    recipe = own if own.exists() else find_recipe(record["recipe"])
    return _Order(recipe=recipe, words=tuple(values[1:]), head=("--from", str(path)), recorded=record["arguments"])


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"recipe": record["recipe"], "arguments": dict(record["arguments"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not the run.json of a run ({error!r}). Give the run.json in a run folder") from error


def _call(recipe: Any, arguments: dict[str, Any], path: Path) -> None:
    ours = path in recipe_files().values()
    token = RECIPE_FILE.set(None if ours else path)
    try:
        result = recipe(**arguments)
    finally:
        RECIPE_FILE.reset(token)
    if isinstance(result, Run):
        result.close()


@contextmanager
def _stoppable(order: _Order, folder: str | None) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one line that says how to continue, and exit status 130."""
    previous = _interrupt_on_terminate()
    try:
        yield
    except KeyboardInterrupt:
        command = ["poise", "run", *order.head, *_without_folder(order.words)]
        command += ["--folder", folder] if folder else []
        say(f"\nStopped. Nothing finished is lost; continue with: {without_passwords(shlex.join(command))}", error=True)
        raise typer.Exit(130) from None
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _interrupt_on_terminate() -> Any:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    return signal.signal(signal.SIGTERM, interrupt) if in_main_thread else None


def _without_folder(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("--folder="):
            skip = False
        elif word == "--folder":
            skip = True
        else:
            kept.append(word)
    return kept
