"""Every printed interval holds the truth at least 93 times in 100: the cases of `interval_coverage.py`, in short."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import poise

ROOT = Path(poise.__file__).parent
TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "benchmarks"))
import interval_coverage as simulations  # noqa: E402

INTERVALS = tuple(dict.fromkeys(case.interval for case in simulations.CASES))
FEW, MANY = 60, 400
SLACK = 2 * math.sqrt(simulations.LEAST * (1 - simulations.LEAST) / MANY)  # what so many samples can tell
# Functions that set ends and estimate nothing: they pass on, or only write, an interval.
# The first writes ends down; the others move an interval by a known number, which changes nothing of its coverage.
WRITERS = {  # they write, move or take away an interval that another function gave
    "evaluate.report.interval_text",
    "evaluate.gate._decided",  # one end each of two intervals; how often it errs is simulated by its own tests
    "evaluate.gate._compared",
    "evaluate.verdict.wins_above_even",
    "experiment.results._from_number",
    "experiment.results._beyond",
    "experiment.safety_seeds._pooled",
    "pipeline.dual_start._estimate",  # of functional.dual.multiplier_intervals, whose coverage its own tests simulate
}


@pytest.mark.parametrize("interval", INTERVALS)
def test_the_interval_holds_the_truth_as_often_as_it_says(interval: str) -> None:
    """A case that looks low in a few samples is looked at again in many."""
    cases = [case for case in simulations.CASES if case.interval == interval]
    doubtful = [case for case in cases if simulations.coverage(case, FEW).covered < simulations.NOMINAL]
    rows = [simulations.coverage(case, MANY) for case in doubtful]
    assert not [row for row in rows if row.covered < simulations.LEAST - SLACK]


def functions_of(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield f"{module}.{node.name}", node


def sets_ends(function: ast.FunctionDef) -> bool:
    """Whether it makes an estimate, or changes one, with ends of its own."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    ends = {"low", "high"}
    return any(
        ast.unparse(call.func) in ("Estimate", "replace") and ends & {keyword.arg for keyword in call.keywords}
        for call in calls
    )


def gives_estimates(name: str, function: ast.FunctionDef) -> bool:
    layer, public = name.split(".", maxsplit=1)[0], not function.name.startswith("_")
    returned = ast.unparse(function.returns) if function.returns else ""
    return layer == "functional" and public and any(word in returned for word in ("Estimate", "ArenaTable"))


def test_an_interval_without_a_case_is_found() -> None:
    functions = dict(item for path in sorted(ROOT.rglob("*.py")) for item in functions_of(path))
    wanted = {name for name, node in functions.items() if sets_ends(node) or gives_estimates(name, node)} - WRITERS
    assert wanted - simulations.COVERED_BY.keys() == set(), (
        "give it cases in benchmarks/interval_coverage.py, or take one of ours"
    )
    assert simulations.COVERED_BY.keys() - functions.keys() == set()
    assert {name for cases in simulations.COVERED_BY.values() for name in cases} == set(INTERVALS)


@pytest.mark.parametrize(
    "source",
    ["def f(n):\n    return Estimate(value=0.0, n=n, low=0.0, high=0.0)", "def f(e):\n    return replace(e, high=1.0)"],
)
def test_a_planted_interval_is_found(source: str) -> None:
    assert sets_ends(ast.parse(source).body[0])
    assert not sets_ends(ast.parse("def f(n):\n    return Estimate(value=0.0, n=n, method='none')").body[0])


def test_an_interval_that_lies_is_found_out() -> None:
    """The simulation can fail: ends at the value itself, as a bootstrap gives where nothing varies."""
    from poise.types import Estimate

    def draw(random: simulations.Random) -> Estimate:
        value = float(random.binomial(20, 0.02)) / 20
        return Estimate(value=value, n=20, low=value, high=value)

    case = simulations.Case(interval="zero width", data="20 rows at 0.02", draw=draw, truth=0.02)
    assert simulations.coverage(case, FEW).covered < 0.5


def test_the_page_has_every_interval_and_none_that_is_missed_too_often() -> None:
    page = (TOP / "docs" / "intervals.md").read_text(encoding="utf-8").split("### Every case")
    rows = [line.split("|") for line in page[1].splitlines() if line.startswith("| `")]
    assert {(row[1].strip(" `"), row[2].strip()) for row in rows} == {(c.interval, c.data) for c in simulations.CASES}
    assert min(float(row[3].strip(" %")) for row in rows) >= 100 * simulations.LEAST
