"""The shape of the source: no circles of imports, records of few fields, recipes that are short and no copies."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import poise

ROOT = Path(poise.__file__).parent
DOCS = ROOT.parents[1] / "docs/architecture.md"
MAX_FIELDS = 12
WIDER = {"RolloutBatch"}  # records with more, for the reason that docs/architecture.md gives
MIN_RECIPE_LINES, MAX_RECIPE_LINES, SHARED_LINES = 60, 150, 8


def name_of(path: Path) -> str:
    return ".".join(("poise", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def sources() -> dict[str, ast.Module]:
    """Every module of the package, but private parts of recipes: recipes are whole."""
    paths = [path for path in sorted(ROOT.rglob("*.py")) if not path.match("recipes/_[!_]*.py")]
    return {name_of(path): ast.parse(path.read_text("utf-8")) for path in paths}


SOURCES = sources()
RECIPES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "recipes").glob("[!_]*.py"))}


def imported(tree: ast.Module, modules: Mapping[str, object]) -> set[str]:
    """Our modules that a module imports anywhere: at its top, inside functions, and for types alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= full & modules.keys() or {node.module}
    return found & modules.keys()


def circle(modules: Mapping[str, ast.Module]) -> list[str]:
    """Modules that import one another in a circle, or none."""
    graph = {name: imported(tree, modules) - {name} for name, tree in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as found:
        return list(found.args[1])
    return []


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list)


def own_fields(node: ast.ClassDef) -> int:
    annotated = [line for line in node.body if isinstance(line, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(line.annotation) for line in annotated)


def wide_records(modules: Mapping[str, ast.Module]) -> Iterator[tuple[str, int]]:
    """Dataclasses of more than MAX_FIELDS fields, those of the records that they extend included."""
    classes = {
        node.name: node for tree in modules.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    }

    def fields(node: ast.ClassDef) -> int:
        bases = [classes[name] for base in node.bases if (name := ast.unparse(base).split(".")[-1]) in classes]
        return own_fields(node) + sum(fields(base) for base in bases if is_dataclass(base))

    for name, node in classes.items():
        if is_dataclass(node) and fields(node) > MAX_FIELDS:
            yield name, fields(node)


def shared_runs(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Runs of SHARED_LINES lines, blank ones and indentation aside, that stand in more than one text."""
    places = defaultdict(set)
    for name, text in texts.items():
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for start in range(len(lines) - SHARED_LINES + 1):
            places["\n".join(lines[start : start + SHARED_LINES])].add(name)
    return {run: names for run, names in places.items() if len(names) > 1}


def test_no_modules_import_one_another_in_a_circle_those_for_types_included() -> None:
    assert not circle(SOURCES)


def test_no_record_has_more_than_twelve_fields_but_for_the_reasons_in_the_docs() -> None:
    wide = dict(wide_records(SOURCES))
    assert wide.keys() == WIDER, wide
    reasons = re.findall(r"`(\w+)` has (\d+) fields because\s+\w", DOCS.read_text("utf-8"))
    assert {name: int(count) for name, count in reasons} == wide


def test_what_the_source_counts_as_fields_is_what_a_record_has() -> None:
    from poise.experiment.study import MethodCard
    from poise.train.algorithms import Algorithm
    from poise.types import RolloutBatch

    for record in (RolloutBatch, Algorithm, MethodCard):
        node = next(
            node for node in ast.walk(SOURCES[record.__module__]) if getattr(node, "name", "") == record.__name__
        )
        assert isinstance(node, ast.ClassDef)
        assert own_fields(node) == len(dataclasses.fields(record))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_60_to_150_lines(name: str) -> None:
    assert MIN_RECIPE_LINES <= len(RECIPES[name].splitlines()) <= MAX_RECIPE_LINES


def test_no_two_recipes_share_a_run_of_eight_lines() -> None:
    assert not shared_runs(RECIPES)


@pytest.mark.parametrize(
    "line", ["import poise.b", "from poise.b import x", "from poise import b", "def f():\n    from poise.b import x"]
)
@pytest.mark.parametrize("guard", ["", "if TYPE_CHECKING:\n    "])
def test_a_planted_circle_is_found(line: str, guard: str) -> None:
    planted = guard + line.replace("\n", "\n    " if guard else "\n")
    modules = {"poise.a": planted, "poise.b": "import poise.c", "poise.c": "from poise.a import y", "poise.d": ""}
    trees = {name: ast.parse(text) for name, text in modules.items()}
    assert set(circle(trees)) == {"poise.a", "poise.b", "poise.c"}
    assert not circle({name: tree for name, tree in trees.items() if name != "poise.c"})


def test_a_planted_wide_record_is_found_also_where_its_fields_are_inherited() -> None:
    seven = "".join(f"    {{0}}{i}: int\n" for i in range(7))
    source = "@dataclass\nclass A:\n" + seven.format("a") + "@dataclasses.dataclass(frozen=True)\nclass B(m.A):\n"
    source += seven.format("b") + "class C(A):\n" + seven.format("c")
    assert dict(wide_records({"poise.a": ast.parse(source)})) == {"B": 14}


def test_a_planted_copy_of_eight_lines_is_found() -> None:
    lines = [f"x{i} = {i}" for i in range(8)]
    first, second = "\n".join(["import a", *lines]), "if b:\n" + "".join(f"    {line}\n\n" for line in lines)
    assert set(map(frozenset, shared_runs({"a": first, "b": second}).values())) == {frozenset("ab")}
    assert not shared_runs({"a": first, "b": "\n".join(lines[:7])})


def test_no_two_files_of_tests_have_one_name() -> None:
    """One process that collects both could not import the second."""
    counts = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, count in counts.items() if count > 1] == []
