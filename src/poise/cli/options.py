"""A recipe's command line is its function signature: options, types, defaults and help come from it."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import typer

from poise.errors import ConfigError

_SEVERAL = list[Any] | None  # what a repeatable option gives
_NONE = object()  # `--option none`, as distinct from an option that was not given
_SIMPLE = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How one annotation reads the text of an option, and how help names it."""

    parse: Callable[[str], Any]
    metavar: str
    is_repeatable: bool = False  # a list: what each mention of the option gives is joined


def parse_options(function: Callable[..., Any], words: Sequence[str], *, program: str) -> dict[str, Any] | None:
    """Read the options of a recipe; the result holds the given ones only. None if help was asked for and shown.

    Arguments whose type cannot be written on a command line are left to Python.
    """
    given: dict[str, Any] = {}
    seen = []

    def receive(**values: Any) -> None:
        seen.append(True)
        joined = {name: _joined(value) if name in repeatable else value for name, value in values.items()}
        given.update({name: None if value is _NONE else value for name, value in joined.items() if value is not None})

    signature = _option_signature(function)
    repeatable = {name for name, each in signature.parameters.items() if each.annotation == _SEVERAL}
    receive.__signature__ = signature  # type: ignore[attr-defined]
    receive.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=_description(function))(receive)
    _refuse_unknown(words, signature, program)
    typer.main.get_command(app)(list(words), prog_name=program, standalone_mode=False)
    return given if seen else None


def restore(function: Callable[..., Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the arguments of a run.json back into what the function takes; unknown ones are left out."""
    hints = _hints(function)
    restored: dict[str, Any] = {}
    for name, value in recorded.items():
        if name not in hints:
            continue
        kinds = {typing.get_origin(each) or each for each in (hints[name], *typing.get_args(hints[name]))}
        if isinstance(value, list) and tuple in kinds:
            restored[name] = tuple(value)
        elif value in ("inf", "-inf", "nan") and float in kinds:
            restored[name] = float(value)
        else:
            restored[name] = value
    return restored


def argument_help(docstring: str, names: Iterable[str]) -> dict[str, str]:
    """The lines `name: text` (or `name   text`) of a docstring, with their deeper indented continuations."""
    known, found = set(names), {}
    current, depth = "", 0
    for line in inspect.cleandoc(docstring).splitlines():
        indent = len(line) - len(line.lstrip())
        match = re.match(r"\s*(\w+)(?::\s+|\s{2,})(\S.*)", line)
        if match and match[1] in known:
            current, depth = match[1], indent
            found[current] = match[2].strip()
        elif current and line.strip() and indent > depth:
            found[current] += f" {line.strip()}"
        else:
            current = ""
    return found


def _option_signature(function: Callable[..., Any]) -> inspect.Signature:
    hints = _hints(function)
    parameters = inspect.signature(function).parameters
    texts = argument_help(function.__doc__ or "", parameters)
    options = [
        option
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and (option := _option(parameter, hints.get(name, str), texts.get(name, "")))
    ]
    return inspect.Signature(options)


def _option(parameter: inspect.Parameter, annotation: Any, text: str) -> inspect.Parameter | None:
    required = parameter.default is parameter.empty
    flag = f"--{parameter.name.replace('_', '-')}"
    help_text = text if required or parameter.default is None else f"{text} [{_shown(parameter.default)}]".strip()
    common: dict[str, Any] = {"help": help_text, "show_default": False}
    start = ... if required else None
    if annotation is bool:
        option = typer.Option(start, f"{flag}/--no-{flag[2:]}", **common)
        kind: Any = bool | None
    else:
        reader = _kind(annotation)
        if reader is None:
            return None
        option = typer.Option(start, flag, parser=reader.parse, metavar=reader.metavar, **common)
        kind = _SEVERAL if reader.is_repeatable else Any
    return inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _kind(annotation: Any) -> _Kind | None:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _SIMPLE:
        return _Kind(parse=_reader(annotation), metavar=_SIMPLE[annotation])
    if origin is Literal:
        return _choice(inside)
    if origin in (typing.Union, types.UnionType):
        return _either(inside)
    if origin in (list, tuple, Sequence) and (item := _kind(inside[0])):
        made = list if origin is list else tuple
        return _Kind(
            parse=lambda text: made(
                item.parse(part) for given in text.split(",") for part in _counted(given.strip(), inside[0]) if part
            ),
            metavar=f"{item.metavar},...",
            is_repeatable=True,
        )
    return None


def _counted(text: str, kind: Any) -> list[str]:
    """The numbers of a range of whole numbers such as 0-4 or 0..4, both ends included; any other text alone.

    >>> _counted("8..10", int), _counted("0-4", str)
    (['8', '9', '10'], ['0-4'])
    """
    found = re.fullmatch(r"(\d+)(?:-|\.\.)(\d+)", text) if kind is int else None
    if found is None:
        return [text]
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise typer.BadParameter(f"{text!r} counts down: write {last}-{first}.")
    return [str(number) for number in range(first, last + 1)]


def _joined(value: Any) -> Any:
    """The value of an option; of one that may be given several times, all its lists as one, and None if not given.

    A single value that is no list stays one: `--seeds 2` of an option that takes a number or a list is the number.
    """
    if not isinstance(value, list):
        return value
    if not value or _NONE in value:
        return _NONE if value else None
    if len(value) == 1:
        return value[0]
    made = list if any(isinstance(each, list) for each in value) else tuple
    return made(item for each in value for item in (each if isinstance(each, (list, tuple)) else [each]))


def _reader(kind: type) -> Callable[[str], Any]:
    rule = {int: "a whole number", float: "a number"}.get(kind, "valid")

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} is not {rule}.") from error

    return read


def _choice(choices: Sequence[Any]) -> _Kind:
    by_text = {str(choice): choice for choice in choices}

    def read(text: str) -> Any:
        if text in by_text:
            return by_text[text]
        close = get_close_matches(text, by_text, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(by_text)}.{hint}")

    return _Kind(parse=read, metavar="|".join(by_text))


def _either(alternatives: Sequence[Any]) -> _Kind | None:
    optional = types.NoneType in alternatives
    kinds = [kind for each in alternatives if each is not types.NoneType and (kind := _kind(each))]
    if not kinds:
        return None

    def read(text: str) -> Any:
        if optional and text.lower() == "none":
            return _NONE
        for kind in kinds[:-1]:
            try:
                return kind.parse(text)
            except typer.BadParameter:
                continue
        return kinds[-1].parse(text)

    return _Kind(
        parse=read,
        metavar="|".join(kind.metavar for kind in kinds),
        is_repeatable=any(kind.is_repeatable for kind in kinds),
    )


def _refuse_unknown(words: Sequence[str], signature: inspect.Signature, program: str) -> None:
    """Name the closest option for one that does not exist, `_` for `-` included."""
    flags = [f"--{name.replace('_', '-')}" for name in signature.parameters]
    flags += [
        f"--no-{name.replace('_', '-')}"
        for name, each in signature.parameters.items()
        if each.annotation == bool | None
    ]
    for word in words:
        flag = word.partition("=")[0]
        if not re.match(r"--[A-Za-z]", flag) or flag in flags or flag == "--help":
            continue
        close = get_close_matches(flag.replace("_", "-"), flags, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(flags)}."
        raise ConfigError(f"{program} has no option {flag}: {hint} `{program} --help` lists all options")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The argument types; the return type is left alone, since it may exist for type checkers only."""
    function = inspect.unwrap(function)
    wanted = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    carrier = types.SimpleNamespace(__annotations__=wanted)
    try:
        return typing.get_type_hints(carrier, globalns=function.__globals__)  # type: ignore[arg-type, attr-defined]
    except NameError as error:
        raise ConfigError(
            f"recipe {function.__name__}: {error}. Argument types must be importable at run time, "
            "not under `if TYPE_CHECKING`"
        ) from error


def _description(function: Callable[..., Any]) -> str:
    """The docstring up to its first list of arguments."""
    names = inspect.signature(function).parameters
    lines = []
    for line in inspect.cleandoc(function.__doc__ or "").splitlines():
        if line.strip() in ("Args:", "Arguments:", "Raises:", "Returns:") or argument_help(line, names):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, (list, tuple)):
        return ",".join(map(str, default))
    return str(default)
