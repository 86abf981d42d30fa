"""What the experiments on small worlds share: arms x seeds -> figures with intervals, claims, a page and pictures.

An attempt runs one arm from one seed and returns numbers. Everything else is here: processes, stages that a stopped
run goes on from, Student's intervals over seeds, differences paired by seed, and the page that the run writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from poise.evaluate.figures import Series
from poise.files import atomic_write
from poise.functional.intervals import student_mean
from poise.recipes._real_report import markdown_table
from poise.run import Run
from poise.text import say
from poise.types import Estimate

Verdict = Literal["holds", "not shown", "contradicted"]


class Outcome(NamedTuple):
    """What one run of an arm came to: numbers by name, and lists of numbers for pictures."""

    figures: Mapping[str, float]
    curves: Mapping[str, Sequence[float]] = {}


Attempt = Callable[..., Outcome]  # of an arm's name, a seed and the settings that all arms share


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A figure as it stands in a table."""

    figure: str
    label: str  # with its unit
    digits: int = 3
    is_share: bool = False  # shown in per cent
    is_bounded: bool = True  # a share that cannot be above 1, so that its interval is not either

    def text(self, estimate: Estimate) -> str:
        """The value with its interval."""
        scale, digits = (100.0, max(0, self.digits - 2)) if self.is_share else (1.0, self.digits)
        text = f"{scale * estimate.value + 0.0:.{digits}f}" + " %" * self.is_share
        if estimate.low is None or estimate.high is None:
            return text
        low, high = estimate.low, estimate.high
        if self.is_share and self.is_bounded:
            low, high = max(low, 0.0), min(high, 1.0)
        return f"{text} [{scale * low + 0.0:.{digits}f}, {scale * high + 0.0:.{digits}f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A direction that is tested: the difference lies above 0."""

    text: str
    difference: Estimate
    is_papers: bool = True  # False: an expectation of ours

    @property
    def verdict(self) -> Verdict:
        """Whether the whole interval lies above 0, below it, or on both sides.

        Where every seed gives the same there is no interval: then six seeds or more show a side, by the sign test.
        """
        low, high = self.difference.low, self.difference.high
        if low is None and high is None and 2 * 0.5**self.difference.n < 1 - self.difference.level:
            low = high = self.difference.value
        if low is not None and low > 0:
            return "holds"
        return "contradicted" if high is not None and high < 0 else "not shown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The outcomes of every arm, in the order of the seeds."""

    outcomes: Mapping[str, Sequence[Outcome]]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names in the order in which they were given."""
        return tuple(self.outcomes)

    @property
    def seeds(self) -> int:
        """Seeds of each arm."""
        return len(next(iter(self.outcomes.values())))

    def values(self, arm: str, figure: str) -> np.ndarray:
        """The figure of every seed [N]."""
        return np.array([outcome.figures[figure] for outcome in self.outcomes[arm]])

    def estimate(self, arm: str, figure: str) -> Estimate:
        """The mean over seeds with its interval."""
        return student_mean(self.values(arm, figure))

    def estimates(self, arm: str, columns: Sequence[Column]) -> dict[str, Estimate]:
        """The figures of an arm that it has."""
        has = self.outcomes[arm][0].figures
        return {column.figure: self.estimate(arm, column.figure) for column in columns if column.figure in has}

    def difference(self, arm: str, other: str, figure: str) -> Estimate:
        """How much higher the figure of an arm is than that of another, seed by seed."""
        return student_mean(self.values(arm, figure) - self.values(other, figure))

    def contrast(self, arm: str, figure: str, other: str) -> Estimate:
        """How much higher one figure of an arm is than another one, seed by seed."""
        return student_mean(self.values(arm, figure) - self.values(arm, other))

    def mean_curve(self, arm: str, name: str) -> np.ndarray:
        """A curve averaged over seeds [T]."""
        return np.mean([outcome.curves[name] for outcome in self.outcomes[arm]], axis=0)

    def series(self, arm: str, across: str, up: str, label: str = "") -> Series:
        """A curve as a line with the band of its seeds' 95 % interval."""
        rows = np.array([outcome.curves[up] for outcome in self.outcomes[arm]]).T
        every = [student_mean(row) for row in rows]
        return Series(
            label=label or arm,
            x=self.mean_curve(arm, across).tolist(),
            y=[each.value for each in every],
            low=[each.value if each.low is None else each.low for each in every],
            high=[each.value if each.high is None else each.high for each in every],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a run found, to be read: prose, one table, claims and pictures."""

    name: str  # of the recipe, as on the command line
    title: str
    intro: str
    columns: Sequence[Column]
    rows: Mapping[str, str]  # arm -> what it is called in the table
    claims: Sequence[Claim]
    pictures: Mapping[str, str] = field(default_factory=dict)  # description -> SVG
    extra: str = ""  # Markdown after the claims
    stem: str = ""  # of the files, where it is not the name: a run of some tasks has a page of its own

    def text(self, results: Results) -> str:
        """The page as Markdown."""
        body = []
        for arm, label in self.rows.items():
            found = results.estimates(arm, self.columns)
            cells = [column.text(found[column.figure]) if column.figure in found else "–" for column in self.columns]
            body.append([label, *cells])
        blocks = [
            f"# {self.title}",
            f"Written by `poise run {self.name} --page docs/results/{self.stem or self.name}.md`. "
            f"Means over {results.seeds} seeds; in brackets Student's 95 % interval.",
            self.intro.strip(),
            markdown_table(["", *(column.label for column in self.columns)], body),
            "## What was claimed, and what was found",
            _claims_table(self.claims),
            "A claim holds if the whole interval of the difference, paired by seed, lies above 0;\n"
            "it is contradicted if the whole interval lies below. Where six seeds or more give the same there is no\n"
            "interval, and that they agree is what shows it.",
            *(f"![{text}]({file})" for file, text in zip(self.files, self.pictures, strict=True)),
            self.extra.strip(),
        ]
        return "\n\n".join(block for block in blocks if block) + "\n"

    @property
    def files(self) -> list[str]:
        """The names of the pictures' files."""
        return [f"{self.stem or self.name}{'' if i == 0 else f'-{i + 1}'}.svg" for i in range(len(self.pictures))]


def measure(run: Run, attempt: Attempt, arms: Sequence[str], *, seeds: int, workers: int, **settings: Any) -> Results:
    """Run every arm from every seed; an arm is a stage, so that a stopped run continues with the next."""
    found: dict[str, list[Outcome]] = {}
    with pool(workers) as run_all:
        for arm in arms:
            stage = run.stage(arm)
            if not stage.finished:
                outcomes = run_all(_Attempted(attempt, settings), [(arm, seed) for seed in range(seeds)])
                stage.finish({"outcomes": [each._asdict() for each in outcomes]})
            found[arm] = [Outcome(**row) for row in stage.result["outcomes"]]
    return Results(outcomes=found)


@dataclass(frozen=True, slots=True)
class _Attempted:
    """An attempt with its settings, as a process takes it."""

    attempt: Attempt
    settings: Mapping[str, Any]

    def __call__(self, arm: str, seed: int) -> Outcome:
        return self.attempt(arm, seed, **self.settings)


@contextmanager
def pool(workers: int) -> Iterator[Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]]:
    """A function that calls another with each of many arguments, in several processes or in this one."""
    if workers <= 1:
        yield lambda function, orders: [function(*order) for order in orders]
        return
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        yield lambda function, orders: list(executor.map(function, *zip(*orders, strict=True)))
    finally:
        executor.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # tables are small: threads of several processes only wait for one another


def finish(run: Run, page: Page, results: Results, *, target: str, is_quick: bool = False) -> None:
    """Print the page, keep it with its pictures in the run folder and where the user wants it, and sum up."""
    page = replace(page, stem=Path(target).stem) if target else page
    text = page.text(results)
    text += "\nA smoke test: the numbers mean nothing.\n" if is_quick else ""
    files = dict(zip(page.files, page.pictures.values(), strict=True))
    publish(run, text, run.path / f"{page.name}.md", target, files)
    figures = {arm: results.estimates(arm, page.columns) for arm in page.rows}
    claims = [asdict(claim) | {"verdict": claim.verdict} for claim in page.claims]
    run.finish({"seeds": results.seeds, "claims": claims, "figures": figures})


def publish(run: Run, text: str, own: Path, target: str, files: Mapping[str, str] | None = None) -> None:
    """Print a page, and keep it in the run folder and at `target` as well, its files beside it."""
    say(text)
    for path in (own, *([Path(target)] if target else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
        for name, content in (files or {}).items():
            atomic_write(path.with_name(name), content.encode())


def _claims_table(claims: Sequence[Claim]) -> str:
    head = ["claim", "difference", "n", "verdict"]
    column = Column(figure="", label="")
    rows = [
        [
            claim.text + ("" if claim.is_papers else " (ours)"),
            column.text(claim.difference),
            str(claim.difference.n),
            claim.verdict if claim.verdict != "contradicted" else "**contradicted**",
        ]
        for claim in claims
    ]
    return markdown_table(head, rows)
