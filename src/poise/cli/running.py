"""`poise run`: read the words, call the recipe, and say how to continue when it is stopped."""

from __future__ import annotations

import inspect
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
from poise.checksums import SEAL, facts_of, read_sealed, require_file
from poise.cli.options import parse_options, restore
from poise.cli.recipes import came_with_a_run, find_recipe, load_recipe, recipe_files, require_trust, unread_help
from poise.errors import ConfigError, RunError
from poise.files import read_json
from poise.ranks import Ranks, use_ranks
from poise.run import RECIPE_FILE, Run, default_folder
from poise.run_folder import RECIPE, RECORD
from poise.text import say, without_passwords

HELP = """Run a recipe; its options are the arguments of its function.

poise run safe-rlhf --help          all options of a recipe

poise run safe-rlhf --quick         minutes instead of hours: a check that everything works

poise run mine.py --folder runs/a   your own file (poise copy safe-rlhf mine.py), continued if runs/a exists

poise run --from RUN/run.json       repeat a run in a new folder; further options override its arguments. A recipe that
came with the run is code: it runs only with --trust-recipe
"""

_TRUST = "--trust-recipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What the words after `poise run` ask for."""

    recipe: Path
    words: tuple[str, ...]  # the options
    head: tuple[str, ...]  # what names the recipe: safe-rlhf, mine.py or --from FILE
    recorded: dict[str, Any]  # arguments of the run to repeat
    trusted: bool = False  # code that came with a run may run


def run(words: Sequence[str]) -> None:
    """Run the recipe that the words name, with the options that they hold."""
    if not words or words[0] in ("--help", "-h"):
        say(f"Usage: poise run RECIPE [OPTIONS]\n\n{HELP}\nRecipes: {', '.join(recipe_files())}")
        return
    order = _read_order(words)
    if came_with_a_run(order.recipe) and "--help" in order.words:
        say(unread_help(order.recipe))
        return
    require_trust(order.recipe, trusted=order.trusted)
    if order.trusted and came_with_a_run(order.recipe):
        say(f"Running {order.recipe} (sha256 {facts_of(order.recipe)['sha256']})", error=True)
    recipe = load_recipe(order.recipe)
    given = parse_options(recipe, order.words, program=shlex.join(["poise", "run", *order.head]))
    if given is None:
        return
    keep_freed_memory()
    arguments = restore(recipe, order.recorded) | (getattr(recipe, "brief", {}) if given.get("quick") else {}) | given
    with _ranks_of_this_run() as ranks:
        if "folder" in inspect.signature(recipe).parameters:
            chosen = str(arguments.get("folder") or default_folder(order.recipe.stem))
            arguments["folder"] = ranks.broadcast_object(chosen)
            if ranks.is_main:
                say(f"Run folder: {arguments['folder']}", error=True)
        with _stoppable(order, arguments.get("folder")):
            _call(recipe, arguments, order.recipe)


def _ranks_of_this_run() -> AbstractContextManager[Ranks]:
    """Be one of the processes that torchrun started; one started alone need not load torch for it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return use_ranks(Ranks())
    from poise.train.distributed import process_group

    return process_group()


def _read_order(words: Sequence[str]) -> _Order:
    first, _, inline = words[0].partition("=")
    if first != "--from":
        if first.startswith("-"):
            raise ConfigError(f"name a recipe before its options: poise run RECIPE {shlex.join(words)}")
        return _order(find_recipe(words[0]), words[1:], head=words[:1], recorded={})
    values = [inline, *words[1:]] if inline else list(words[1:])
    if not values:
        raise ConfigError("--from needs a run: poise run --from RUN/run.json")
    path = Path(values[0])
    path = path / RECORD if path.is_dir() else path
    record = _read_record(path)
    own = path.parent / RECIPE
    if expected := record.get(RECIPE):
        require_file(own, expected, remedy="Restore the recipe that the run was made with, or name one of your own")
    recipe = own if own.exists() else find_recipe(record["recipe"])
    return _order(recipe, values[1:], head=("--from", str(path)), recorded=record["arguments"])


def _order(recipe: Path, words: Sequence[str], *, head: Sequence[str], recorded: dict[str, Any]) -> _Order:
    trusted = _TRUST in words
    head = (*head, _TRUST) if trusted else tuple(head)
    kept = tuple(word for word in words if word != _TRUST)
    return _Order(recipe=recipe, words=kept, head=head, recorded=recorded, trusted=trusted)


def _read_record(path: Path) -> dict[str, Any]:
    """What a run.json says of its recipe and arguments; one that was written by hand may do without a seal."""
    remedy = "Give the run.json in a run folder"
    try:
        record = read_json(path, remedy=remedy)
    except RunError as error:
        raise RunError(f"{path} is not the run.json of a run: {error}") from error
    if SEAL in record:
        record, _ = read_sealed(path, remedy=f"{remedy}; other arguments are options that follow it")
    if not isinstance(record.get("recipe"), str) or not isinstance(record.get("arguments"), dict):
        raise RunError(f"{path} is not the run.json of a run: it names no recipe and arguments. {remedy}")
    return record


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
        say(f"\nStopped. Finished stages are kept; continue with: {without_passwords(shlex.join(command))}", error=True)
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
