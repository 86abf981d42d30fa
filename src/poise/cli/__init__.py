"""The command line. A recipe's options are its function's arguments; nothing heavy is imported before it is needed."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from poise.allocator import restart_with_huge_pages
from poise.cli import running
from poise.cli.listing import card_text, cards_table
from poise.cli.recipes import find_recipe, read_card, recipe_files
from poise.errors import ConfigError, PoiseError, RunError
from poise.files import atomic_write, reason_of, way_out
from poise.provenance import package_versions
from poise.run_record import require_output
from poise.text import say

app = typer.Typer(
    help="Keep a language model helpful and harmless, and measure both. Every command takes --debug for tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="List the data sets, or check one.", no_args_is_help=True)
app.add_typer(data_app, name="data")


def _show_version(asked: bool) -> None:
    if asked:
        say(f"poise {package_versions(['poise'])['poise']}")
        raise typer.Exit


_VERSION = typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)


@app.callback()
def everything(version: Annotated[bool, _VERSION] = False) -> None:
    """Keep a language model helpful and harmless, and measure both. Every command takes --debug for tracebacks."""


@app.command("list")
def list_recipes(
    cards: Annotated[bool, typer.Option("--cards", help="A table: feedback, signal, optimiser, ...")] = False,
) -> None:
    """Show all recipes: paper, cost and the last published result."""
    width = min(120, shutil.get_terminal_size().columns)
    every = [read_card(path) for path in recipe_files().values()]
    if cards:
        say(cards_table(every))
        return
    for card in every:
        say(card_text(card, width) + "\n")
    say("All options: poise run RECIPE --help. Your own copy: poise copy RECIPE FILE")


@app.command(
    "run",
    help=running.HELP,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run_recipe(context: typer.Context) -> None:
    """Run a recipe."""
    running.run(context.args)


@app.command("plan", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan_recipe(
    context: typer.Context,
    recipe: str,
    machine: Annotated[
        str | None, typer.Option(help="A machine such as h100x8; by default this machine is measured.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Number of processes; 0 means one per device.", min=0)] = 0,
    shard: Annotated[bool, typer.Option(help="Shard the model over the processes.")] = True,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of an adapter.")] = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Recompute activations, to save memory.")] = False,
    base_bits: Annotated[int, typer.Option(help="Bits per frozen weight: 16, or 4 on a GPU.")] = 16,
) -> None:
    """Estimate time and memory of a recipe's stages before anything runs; further options are the recipe's own.

    poise plan safe-rlhf --model 7b --machine h100x8 --steps 100
    """
    from poise.cli.planning import plan_lines

    layout = {"processes": processes, "shard": shard, "is_full": full, "recompute": recompute, "base_bits": base_bits}
    for line in plan_lines(recipe, context.args, machine=machine, **layout):
        say(line)


@app.command("copy")
def copy_recipe(recipe: str, file: Path) -> None:
    """Copy a recipe into a file of your own, to change and run."""
    source = find_recipe(recipe)
    if file.suffix != ".py":
        raise ConfigError(f"{file}: a recipe file ends in .py; try {file.with_suffix('.py')}")
    if file.exists():
        raise ConfigError(f"{file} exists and was not changed. Choose another name, or delete it")
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, file)
    say(f"Wrote {file}. Edit it, then run it with: poise run {file}")


@app.command("render")
def render(
    root: Annotated[Path, typer.Argument(help="A folder with results/, README.md and docs/.")] = Path(),
) -> None:
    """Write every page of docs/results/ and every generated table again from results/*.json and the recipes' cards."""
    from poise.cli.listing import render_all

    for path in render_all(root):
        say(f"Wrote {path}")


@app.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="A run folder that holds report.json.")],
    pdf: Annotated[bool, typer.Option("--pdf", help="Print it into report.pdf as well (needs Chromium).")] = False,
) -> None:
    """Write report.html again from a run's report.json, and with --pdf report.pdf beside it."""
    source = run / "report.json"
    if not source.is_file():
        raise RunError(f"{run} has no report.json: a run writes it after evaluating its model")
    from poise.evaluate.report import rewrite_report

    require_output(source)
    page = rewrite_report(run)
    say(f"Wrote {page}")
    if pdf:
        from poise.evaluate.pdf import print_page

        say(f"Wrote {print_page(page)}")


@app.command("gate")
def gate(
    requirements: Annotated[Path, typer.Argument(help="A YAML file of requirements (docs/how-to/gate.md).")],
    answers: Annotated[Path, typer.Argument(help="Judged answers: a rollouts.jsonl, or a folder that holds one.")],
    reference: Annotated[Path | None, typer.Option(help="Judged answers of the reference model.")] = None,
    labels: Annotated[Path | None, typer.Option(help="People's labels: a queue that was filled in.")] = None,
    queue: Annotated[Path | None, typer.Option(help="Write the answers that people should label to this file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the evidence to this JSON file.")] = None,
) -> None:
    """Decide whether a model may be released: exit status 0 yes, 1 no, 2 not enough evidence, 3 an error."""
    from poise.cli.gating import decide

    try:
        code = decide(requirements, answers, reference=reference, labels=labels, queue=queue, output=output)
    except PoiseError as error:
        say(f"Error: {error}", error=True, red=True)
        raise typer.Exit(3) from None
    raise typer.Exit(code)


@app.command("table")
def table(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or files that --output FILE.json wrote.")],
    metrics: Annotated[str, typer.Option(help="Names of metrics, joined by commas; all by default.")] = "",
    output: Annotated[Path | None, typer.Option(help="A file to write the table to as well.")] = None,
) -> None:
    """Print one table of the figures of several runs, with intervals, and what the runs differ in."""
    from poise.cli.table import table_of

    text = table_of(runs, metrics=[name for name in metrics.split(",") if name.strip()])
    say(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, text + "\n")


@app.command("chat")
def chat(
    model: Annotated[str, typer.Argument(help="A model name, a folder, or a run folder.")],
    max_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always gives the most likely answer.")] = 0.7,
    chat_template: Annotated[
        Path | None, typer.Option(help="A file to use instead of the tokenizer's template.")
    ] = None,
) -> None:
    """Talk to a model; an empty line is skipped, Ctrl-D ends."""
    from poise.cli.chatting import chat_with

    chat_with(model, max_tokens=max_tokens, temperature=temperature, chat_template=chat_template)


@app.command("serve-scorer")
def serve_scorer(
    folder: Annotated[Path, typer.Argument(help="A folder with a saved score model.")],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(help="0 picks a free port.")] = 8900,
) -> None:
    """Serve a score model's scores over HTTP; clients need the token of POISE_SCORER_TOKEN, or the one it prints."""
    from poise.cli import serving

    serving.serve_scorer(folder, host=host, port=port)


@app.command("doctor")
def doctor() -> None:
    """Show versions, cores, memory, data and models of this installation, and what is missing."""
    from poise.cli.doctor import findings

    for name, finding in findings():
        say(f"{name:<16} {finding}")


@data_app.command("list")
def data_list() -> None:
    """Show all data sets that can be loaded by name."""
    from poise.cli.datasets import describe_all

    for line in describe_all():
        say(line)


@data_app.command("lint")
def data_lint(
    name: Annotated[str, typer.Argument(help="A data set's name or a path.")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quarantine: Annotated[Path | None, typer.Option(help="Write rows that cannot be read to this file.")] = None,
    columns: Annotated[
        str, typer.Option(help="Names of your columns: prompt=question,chosen=better,ignore=score.")
    ] = "",
) -> None:
    """Check a data set: contradictions, duplicates, leaks between splits, label and length statistics."""
    from poise.cli.datasets import lint_lines

    for line in lint_lines(name, as_json=json, quarantine=quarantine, columns=columns):
        say(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors that a user can act on are one paragraph and exit status 2."""
    if arguments is not None:
        return _main(list(arguments))
    words = sys.argv[1:]
    if words[:1] == ["run"]:
        restart_with_huge_pages()
    try:
        _main(words)
    except Exception:  # a message may quote whatever was read, and a terminal would obey it
        say(traceback.format_exc().rstrip(), error=True)
        sys.exit(1)


def _main(words: list[str]) -> None:
    debug = "--debug" in words or os.environ.get("POISE_DEBUG", "0") not in ("", "0")
    try:
        app([word for word in words if word != "--debug"], prog_name="poise")
    except PoiseError as error:
        _give_up(str(error), error, debug)
    except BrokenPipeError:  # whoever read our lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if (message := _of_the_disk(error)) is None:
            raise
        _give_up(message, error, debug)


def _of_the_disk(error: OSError) -> str | None:
    """An error of the disk in one paragraph with a way out; None for any other, which keeps its traceback."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = "the disk is full. Free some space (`du -sh runs/*` shows the largest runs) and repeat the command"
        return f"cannot write {error.filename or 'a file'}: {message}; finished stages are kept"
    if not isinstance(error.filename, str):
        return None
    return f"cannot use {error.filename}: {reason_of(error)}. {way_out(error, Path(error.filename))}"


def _give_up(message: str, error: Exception, debug: bool) -> None:
    if debug:
        raise error
    say(f"Error: {message}", error=True, red=True)
    sys.exit(2)
