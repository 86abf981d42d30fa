"""The rules of the house, read from the source: which part may import which, and what no part may do."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import poise

ROOT = Path(poise.__file__).parent
LAYERS = [
    {"types", "errors", "ranks", "files", "provenance", "allocator", "kernels", "http_client", "text", "run"}
    | {"caches", "checksums", "estimates", "messages", "packages", "run_folder", "run_logs", "run_record", "run_stage"},
    {"functional"},
    {"data", "models", "worlds"},
    {"rollout", "feedback"},
    {"train", "evaluate", "redteam", "plan"},
    {"pipeline"},
    {"experiment"},
    {"recipes"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
STRANGERS = {
    frozenset({"rollout", "feedback"}),
}  # of one layer, and still never importing each other
FUNCTIONAL_MAY_IMPORT = {"numpy", "scipy", "torch"} | set(sys.stdlib_module_names)
# Packages that poise can do without: each has one file, and is imported when a function of it is called.
OPTIONAL = {
    *("accelerate", "datasets", "bitsandbytes", "deepspeed", "pyarrow", "pandas", "vllm", "ray", "trl"),
    *("openai", "anthropic", "httpx", "httpx2", "requests", "fastapi", "uvicorn", "tenacity", "sqlalchemy"),
    *("wandb", "trackio", "tensorboard", "evalica", "krippendorff", "statsmodels"),
}
PRINTERS = {"print", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write", "sys.stderr.write", "rich.print"}
UNSAFE_READERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it is imported when its file is."""

    module: str
    line: int
    inside_function: bool
    for_types_only: bool


def imports_of(tree: ast.AST, *, inside_function: bool = False, for_types_only: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, inside_function, for_types_only)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "poise" else [module]
            for name in names:
                yield Import(name, node.lineno, inside_function, for_types_only)
        else:
            in_function = inside_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            for_types = for_types_only or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
            yield from imports_of(node, inside_function=in_function, for_types_only=for_types)


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def broken_layers(path: Path, tree: ast.Module) -> Iterator[str]:
    """Imports against the direction of the layers; `poise` itself is a public face that only recipes and cli use."""
    part = part_of(path)
    for each in imports_of(tree):
        if each.module.startswith("."):
            yield f"{path}:{each.line} imports {each.module}: write the full name"
        pieces = each.module.split(".")
        if pieces[0] != "poise" or part == "__init__":
            continue
        other = pieces[1] if len(pieces) > 1 else ""
        level = LEVEL.get(other, LEVEL["recipes"])  # a name of the public face
        if level > LEVEL[part] or frozenset({part, other}) in STRANGERS:
            yield f"{path}:{each.line} ({part}) imports {each.module}"


def impure_functional(path: Path, tree: ast.Module) -> Iterator[str]:
    if part_of(path) != "functional":
        return
    allowed = ("poise.types", "poise.errors", "poise.kernels", "poise.functional")
    for each in imports_of(tree):
        if each.module.split(".")[0] not in FUNCTIONAL_MAY_IMPORT and not each.module.startswith(allowed):
            yield f"{path}:{each.line} imports {each.module}: functional is pure mathematics"


def early_optional(path: Path, tree: ast.Module) -> Iterator[str]:
    for each in imports_of(tree):
        if each.module.split(".")[0] in OPTIONAL and not (each.inside_function or each.for_types_only):
            yield f"{path}:{each.line} imports {each.module} at the top: import it in the function that needs it"


def unsafe_reading(path: Path, tree: ast.Module) -> Iterator[str]:
    for each in imports_of(tree):
        if each.module.split(".")[0] in UNSAFE_READERS:
            yield f"{path}:{each.line} imports {each.module}: its files can run code; use json or safetensors"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True":
            yield f"{path}:{node.lineno} calls torch.load without weights_only=True"
        if keywords.get("trust_remote_code", "False") != "False":
            yield f"{path}:{node.lineno} trusts remote code"


def too_long(path: Path, tree: ast.Module) -> Iterator[str]:
    num_lines = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    if num_lines > MAX_FILE_LINES:
        yield f"{path} has {num_lines} lines (at most {MAX_FILE_LINES}): split it by idea"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and function_lines(node) > MAX_FUNCTION_LINES:
            yield f"{path}:{node.lineno} {node.name} has {function_lines(node)} lines (at most {MAX_FUNCTION_LINES})"


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring not counted."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def prints_unseen(path: Path, tree: ast.Module) -> Iterator[str]:
    """Whatever reaches a terminal goes through `text.say`, which lets no control character pass."""
    if part_of(path) == "text":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTERS:
            yield f"{path}:{node.lineno} calls {ast.unparse(node.func)}: use poise.text.say"


RULES = [broken_layers, impure_functional, early_optional, unsafe_reading, too_long, prints_unseen]
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule) -> None:  # type: ignore[no-untyped-def]
    violations = [violation for path, tree in SOURCES.items() for violation in rule(path, tree)]
    assert not violations, "\n" + "\n".join(violations)


def test_every_part_has_a_layer() -> None:
    unknown = {part_of(path) for path in SOURCES} - LEVEL.keys() - {"__init__"}
    assert not unknown, f"give {unknown} a place in LAYERS and in docs/architecture.md"


def test_an_optional_package_is_imported_in_one_file() -> None:
    files = defaultdict(set)
    for path, tree in SOURCES.items():
        for each in imports_of(tree):
            if (package := each.module.split(".")[0]) in OPTIONAL and not each.for_types_only:
                files[package].add(str(path.relative_to(ROOT)))
    scattered = {package: sorted(where) for package, where in files.items() if len(where) > 1}
    assert not scattered


LONG = "def f():\n" + "    x = 1\n" * 60
LONG_DOCSTRING = 'def f():\n    """One.\n' + "    more\n" * 60 + '    """\n'


@pytest.mark.parametrize(
    ("rule", "file", "source", "num_violations"),
    [
        (broken_layers, "functional/a.py", "from poise.models.load import x", 1),
        (broken_layers, "types.py", "from poise.run import Run", 0),
        (broken_layers, "run.py", "def f():\n    from poise import functional", 1),
        (broken_layers, "rollout/a.py", "import poise.feedback.base", 1),
        (broken_layers, "train/a.py", "from poise import Prompt", 1),
        (broken_layers, "recipes/a.py", "from poise import Prompt, safe_rlhf\nfrom poise.train import loop", 0),
        (broken_layers, "train/a.py", "from poise.evaluate import suite\nfrom .loop import run", 1),
        (impure_functional, "functional/a.py", "import math, torch\nfrom poise.types import Prompt", 0),
        (impure_functional, "functional/a.py", "import transformers\nfrom poise.run import Run", 2),
        (early_optional, "data/a.py", "import pyarrow.parquet", 1),
        (early_optional, "data/a.py", "try:\n    import ray\nexcept ImportError:\n    ray = None", 1),
        (early_optional, "data/a.py", "class A:\n    def f(self):\n        import pyarrow", 0),
        (early_optional, "data/a.py", "if TYPE_CHECKING:\n    import ray", 0),
        (unsafe_reading, "data/a.py", "import pickle\ntorch.load('x')\ntorch.load('x', weights_only=True)", 2),
        (unsafe_reading, "data/a.py", "f(trust_remote_code=True)\nf(trust_remote_code=False)", 1),
        (prints_unseen, "cli/a.py", "print(answer)\ntyper.echo(answer)\nsay(answer)", 2),
        (too_long, "data/a.py", LONG, 1),
        (too_long, "data/a.py", LONG_DOCSTRING, 0),
    ],
)
def test_a_planted_violation_is_found(rule, file: str, source: str, num_violations: int) -> None:  # type: ignore[no-untyped-def]
    planted = ROOT / Path(file).parent / f"planted_{Path(file).name}" if "/" in file else ROOT / file
    assert len(list(rule(planted, ast.parse(source)))) == num_violations
