"""What people said of answers: how harmful each is, whether it refuses, whether it does what a harmful request asks.

Source: the evaluation sets of scorers in PyRIT 1.1.0 (Microsoft, MIT). They lie in the package `pyrit`, whose files are
read and whose code is never imported, or in folders below POISE_DATA. A third of the prompts, by a hash of their text,
is the part `test`, which nothing may learn from. The package holds all parts; a folder may hold no test part.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from poise.data.collect import summed
from poise.data.datasets.base import Place, PromptText, Row, Text, is_unknown, validate
from poise.data.lint_checks import normalised
from poise.data.reading import RawFile, RawRow, read_file
from poise.errors import DataError
from poise.packages import package_files, version_of
from poise.types import BadRow, Dataset, Prompt, Rating

Criterion = Literal["harm", "refusal", "compliance"]
PACKAGE, VERSION = "pyrit", "1.1.0"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
LICENCE = "MIT"
_KEPT_APART = 3  # one of so many prompts


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the ratings of a criterion lie: in the package, or in a folder below POISE_DATA."""

    in_package: str
    in_folder: str
    skipped: str = ""  # a file of the package whose rows stand in another, too


PLACES: Mapping[str, _Place] = {
    "harm": _Place("*/scorer_evals/harm/*.csv", "human_rated_harm/harm.jsonl", skipped="mini_hate_speech.csv"),
    "refusal": _Place("*/scorer_evals/refusal_scorer/*.csv", "human_rated_refusal/refusal.jsonl"),
    "compliance": _Place("*/scorer_evals/objective/*.csv", "human_rated_compliance/compliance.jsonl"),
}


class _PackageRow(Row):
    """A row of the package: `human_score` of one person, or `human_score_1` to `human_score_3` in further columns."""

    objective: PromptText
    assistant_response: Text = ""
    human_score: str = ""
    harm_category: str = ""
    data_type: str = "text"


class _FolderRow(Row):
    """A row of a folder, with the column of its criterion: ratings, kind or complied."""

    prompt: PromptText
    response: Text
    category: str = ""
    ratings: list[float] = []  # noqa: RUF012 (pydantic copies it)
    kind: Literal["answer", "refusal", "unrelated"] | None = None
    complied: bool | None = None


def part_of(prompt: str) -> Literal["train", "test"]:
    """The part of a prompt, from its text alone: `test` where its SHA-256 is a multiple of 3.

    >>> part_of("Tell me a riddle!"), part_of("riddle 5")
    ('train', 'test')
    """
    return "train" if int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % _KEPT_APART else "test"


def human_ratings(criterion: Criterion) -> Dataset:
    """People's ratings of answers under a criterion, from 0 to 1, each the mean of those who rated the answer.

    harm        0 none, 1 the most harmful; one to three people on a scale of five points
    refusal     1 for a refusal or an answer to something else; where the folder tells these apart, and where the same
                text answers another prompt, the prompt's tag `outcome` says which
    compliance  1 where the answer does what the harmful request asked

    A prompt's tag `split` is its part, `categories` the kind of harm, `raters` how many people rated the answer.
    Prompts that differ in case, spaces or punctuation alone are on one side, that of the test if any of them is.

    Raises DataError that says how to get the ratings, if they lie nowhere.
    """
    files, whence = _files(criterion)
    found, bad = list[_Rated](), list[BadRow]()
    for file, row in [(each, row) for each in files for row in each.rows]:
        place = Place(dataset=f"human-rated-{criterion}", file=file.label, line=row.line, untyped=file.untyped)
        try:
            found.append(_read(row, criterion, place))
        except DataError as error:
            bad.append(BadRow(path=file.path, line=row.line, reason=str(error), row=row.text or repr(row.columns)))
    if not found:
        raise DataError(f"no row of people's ratings of {criterion} in {whence} can be read: {bad[0].reason}")
    ratings = _as_ratings(found, criterion)
    entries = [_entry(file, criterion, bad) for file in files]
    prompts = {rating.prompt.id: rating.prompt for rating in ratings}
    return Dataset(
        name=f"human-rated-{criterion}",
        prompts=tuple(prompts.values()),
        ratings=ratings,
        bad_rows=tuple(bad),
        provenance=summed(entries) | {"read_from": whence},
    )


def are_there(criterion: Criterion = "harm") -> bool:
    """Whether people's ratings lie anywhere on this machine."""
    return bool(_in_package(criterion) or _in_folder(criterion))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rated:
    """One answer with what people said of it, before its prompt knows its side."""

    prompt: str
    response: str
    ratings: tuple[float, ...]
    category: str
    outcome: str
    place: Place


def _files(criterion: Criterion) -> tuple[list[RawFile], str]:
    """The files with ratings, and where they lie in words."""
    if paths := _in_package(criterion):
        return [read_file(path, f"{PACKAGE}/{path.name}") for path in paths], f"{PACKAGE} {version_of(PACKAGE)}"
    if path := _in_folder(criterion):
        return [read_file(path, f"{path.parent.name}/{path.name}")], "POISE_DATA"
    root = os.environ.get("POISE_DATA", "")
    tried = f"there is no {PLACES[criterion].in_folder} in {root}" if root else "POISE_DATA is not set"
    raise DataError(
        f"people's ratings of {criterion} were not found: the package {PACKAGE} is not installed, and {tried}. "
        f"Install the package without its dependencies, whose files are read and whose code never runs: {INSTALL}"
    )


def _in_package(criterion: Criterion) -> list[Path]:
    place = PLACES[criterion]
    return [path for path in package_files(PACKAGE, place.in_package) if path.name != place.skipped]


def _in_folder(criterion: Criterion) -> Path | None:
    root = os.environ.get("POISE_DATA", "")
    path = Path(root) / PLACES[criterion].in_folder
    return path if root and path.is_file() else None


def _read(row: RawRow, criterion: Criterion, place: Place) -> _Rated:
    """One row of the package, whose files are tables, or of a folder."""
    if row.columns is None:
        raise DataError(row.problem)
    rated = (_of_package if place.untyped else _of_folder)(row.columns, criterion, place)
    if not rated.response.strip():
        raise DataError("the response is empty")
    if not rated.ratings or not all(0 <= value <= 1 for value in rated.ratings):
        raise DataError(f"the ratings are {list(rated.ratings)}, expected one or more numbers from 0 to 1")
    return rated


def _of_package(columns: Mapping[str, Any], criterion: Criterion, place: Place) -> _Rated:
    row = validate(_PackageRow, columns, place)
    if row.data_type != "text":
        raise DataError(f"the answer is of type {row.data_type!r}, and only texts are read")
    further = {name: value for name, value in (row.model_extra or {}).items() if name.startswith("human_score")}
    try:
        scores = tuple(float(value) for value in (row.human_score, *further.values()) if not is_unknown(value))
    except ValueError as error:
        raise DataError(f"a score is not a number: {error}") from None
    return _Rated(
        prompt=row.objective,
        response=row.assistant_response,
        ratings=scores,
        category=row.harm_category.lower(),
        outcome=("refusal" if scores[:1] == (1.0,) else "answer") if criterion == "refusal" else "",
        place=place,
    )


def _of_folder(columns: Mapping[str, Any], criterion: Criterion, place: Place) -> _Rated:
    row = validate(_FolderRow, columns, place)
    said: dict[str, list[float]] = {
        "harm": row.ratings,
        "refusal": [] if row.kind is None else [float(row.kind != "answer")],
        "compliance": [] if row.complied is None else [float(row.complied)],
    }
    outcome = row.kind or ""
    ratings, category = tuple(said[criterion]), row.category.lower()
    return _Rated(
        prompt=row.prompt, response=row.response, ratings=ratings, category=category, outcome=outcome, place=place
    )


def _as_ratings(rows: Sequence[_Rated], criterion: Criterion) -> tuple[Rating, ...]:
    """The rows as records, each prompt on one side."""
    tests = {normalised(row.prompt) for row in rows if part_of(row.prompt) == "test"}
    answers = {row.response for row in rows if row.outcome == "answer"}
    found = []
    for row in rows:
        is_astray = row.outcome == "refusal" and row.response in answers
        tags = row.place.tags(
            split="test" if normalised(row.prompt) in tests else "train",
            categories=(row.category,) if row.category else (),
            outcome="unrelated" if is_astray else row.outcome,
            raters=len(row.ratings),
        )
        value = sum(row.ratings) / len(row.ratings)
        prompt, origin = Prompt.of(row.prompt, **tags), row.place.origin("human")
        found.append(Rating(prompt=prompt, response=row.response, value=value, criterion=criterion, origin=origin))
    return tuple(found)


def _entry(file: RawFile, criterion: Criterion, bad: Sequence[BadRow]) -> dict[str, Any]:
    num_bad = sum(row.path == file.path for row in bad)
    source = {"path": file.path, "sha256": file.sha256, "source": f"human-rated-{criterion}"}
    return source | {"licence": LICENCE, "non_commercial": False, "rows_read": len(file.rows), "rows_bad": num_bad}
