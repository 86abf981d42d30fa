"""Find recipes: what each file says of itself, and the function that it is about."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from poise.checksums import facts_of
from poise.cli.options import argument_help
from poise.errors import ConfigError
from poise.experiment.source import import_file
from poise.run_folder import RECIPE, RECORD

ALIASES = {"preference": "dpo", "preferences": "dpo"}  # further names on the command line
Recipe = Callable[..., Any]  # keyword arguments to a poise.Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeCard:
    """What a recipe file says of itself, read without importing it (and so without torch)."""

    name: str
    path: Path
    title: str
    paper: str = ""
    stages: str = ""
    duration: str = ""
    expected: Mapping[str, Any] | None = None
    method: Mapping[str, str] | None = None  # the MethodCard of a recipe that is a study


def recipe_files() -> dict[str, Path]:
    """The recipes that come with poise: name on the command line -> file."""
    folder = Path(__file__).parents[1] / "recipes"
    return {path.stem.replace("_", "-"): path for path in sorted(folder.glob("[!_]*.py"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: by name, with - or _ alike, or the path of the user's own file.

    Raises ConfigError that names the closest recipes.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no recipe file {name}. To start from a copy: poise copy RECIPE {name}")
        return path
    files = recipe_files()
    wanted = name.replace("_", "-").lower()
    if (wanted := ALIASES.get(wanted, wanted)) in files:
        return files[wanted]
    close = get_close_matches(wanted, files, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"There are: {', '.join(files) or 'none'}."
    raise ConfigError(f"no recipe {name!r}. {hint} `poise list` describes them; your own recipe file must end in .py")


def read_card(path: Path) -> RecipeCard:
    """Read a recipe's docstring and constants from its source."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    constants = {
        name: _literal(path, name, value)
        for name, value in _assignments(tree)
        if name in ("PAPER", "STAGES", "DURATION", "EXPECTED")
    }
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    fields = {name.lower(): value for name, value in constants.items()}
    if (method := _method_card(tree, path)) is not None:
        fields |= {"method": method, "paper": method["paper"]}
    return RecipeCard(name=path.stem.replace("_", "-"), path=path, title=title, **fields)


def load_recipe(path: Path) -> Recipe:
    """Import a recipe file and return its function."""
    module = import_file(path)
    return _recipe_function(module, path)


def came_with_a_run(path: Path) -> bool:
    """Whether a recipe file is the one that a run keeps: code of whoever made the run."""
    return any(each.name == RECIPE and (each.parent / RECORD).exists() for each in (path, path.resolve()))


def require_trust(path: Path, *, trusted: bool) -> None:
    """Raise ConfigError that shows path and checksum of a recipe that came with a run, unless the user trusts it."""
    if not came_with_a_run(path) or trusted:
        return
    raise ConfigError(
        f"{path} is code stored in the run, and it would run with your permissions "
        f"(sha256 {facts_of(path)['sha256']}). Read it; if you trust it, repeat the command with --trust-recipe"
    )


def unread_help(path: Path) -> str:
    """The arguments of a recipe as its source states them, without running any of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    lines = [f"{path} is stored in a run and was not executed for this help. Its functions:"]
    for node in functions:
        arguments = [*node.args.args, *node.args.kwonlyargs]
        texts = argument_help(ast.get_docstring(node) or "", [each.arg for each in arguments])
        lines += ["", f"{node.name}: {(ast.get_docstring(node) or '').partition(chr(10))[0]}"]
        lines += [f"  --{each.arg.replace('_', '-')}  {texts.get(each.arg, '')}".rstrip() for each in arguments]
    return "\n".join(lines)


def _recipe_function(module: ModuleType, path: Path) -> Recipe:
    """The function with the file's own name; in a renamed copy the only one that takes a run folder."""
    function = getattr(module, path.stem, None)
    if callable(function) and getattr(function, "__module__", "") == module.__name__:
        return function
    candidates = [
        value
        for name, value in vars(module).items()
        if callable(value)
        and not isinstance(value, type)
        and getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
        and "folder" in inspect.signature(value).parameters
    ]
    if len(candidates) == 1:
        return candidates[0]
    raise ConfigError(
        f"{path}: a recipe file needs one public function with the argument `folder`, or one named {path.stem}; "
        f"it has {len(candidates)}. See `poise copy RECIPE FILE` for a file to begin with"
    )


def _method_card(tree: ast.Module, path: Path) -> dict[str, str] | None:
    """The arguments of the first `MethodCard(...)` of a file; None if it has none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "MethodCard":
            return {each.arg: _literal(path, each.arg, each.value) for each in node.keywords if each.arg}
    return None


def _assignments(tree: ast.Module) -> list[tuple[str, ast.expr]]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.append((node.targets[0].id, node.value))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found.append((node.target.id, node.value))
    return found


def _literal(path: Path, name: str, value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        raise ConfigError(
            f"{path}:{value.lineno}: {name} must be a literal, so that `poise list` can read it"
        ) from error
