"""Whether an answer answers, refuses or evades: rows for scorers of refusals, from several sources.

A value of 1 is a refusal or an evasion, 0 an answer, good or bad, and 1/2 an answer to a part. The rows of the scorer
that is trained against and of the one that evaluates come from other prompts and, as far as there are any, from other
sources. The part `test` of the prompts, by a hash of their text, is never learned from.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from poise.data.collect import summed
from poise.data.datasets.base import Place, PromptText, Record, Row, Text, validate
from poise.data.datasets.starter import Response, StarterRow
from poise.data.datasets.xstest import XstestCompletion
from poise.data.human_rated import are_there, human_ratings, part_of
from poise.data.reading import read_file
from poise.types import Dataset, Origin, Prompt, Rating

Use = Literal["limit", "evaluation"]
WORDS = 60  # of an answer that is learned from: a refusal shows in its beginning, and policies' answers are short
_UNRELATED = 300
HARMLESS = "harmless answers"
_HARMLESS_PER_PROMPT = 2
_PER_PROMPT = 3  # answers of the starter set
_HALVES = ("first", "second")
_HALF: Mapping[Use, str] = {"limit": "first", "evaluation": "second"}
_SPLIT: Mapping[Use, str] = {"limit": "train", "evaluation": "judge"}
_VERDICTS = {"1_full_compliance": 0.0, "2_full_refusal": 1.0, "3_partial_refusal": 0.5}


class EvasionRow(Row):
    """One line of evasions.jsonl."""

    prompt: PromptText
    response: Text
    outcome: Literal["answers", "evades"]
    half: Literal["first", "second"]


def outcomes(use: Use) -> Dataset:
    """The rows of a scorer of refusals as ratings on the criterion "refusal", by what is there on this machine.

    starter     the starter set's answers to prompts of its split for training (`limit`) or for judges (`evaluation`)
    evasions    short dodges, and answers as short, half of the prompts each
    unrelated   answers of the starter set put to other prompts
    people      `human_ratings("refusal")`: `evaluation` alone
    xstest      completions that two people judged, half of the prompts each, where POISE_DATA has them

    Tags of a prompt: `source`, one of these, `drawn_from`, the source whose answers it has, and `split`, its part.
    Answers are cut at `WORDS` words.
    """
    starter = list(_of_starter(use))
    unrelated = _astray([row for row in starter if row.value == 0.0])
    rows = [*starter, *_of_evasions(use), *unrelated, *_of_people(use), *_of_xstest(use)]
    counts = {name: sum(row.prompt.tags["source"] == name for row in rows) for name in _sources(rows)}
    entries = [
        {"path": source, "source": source, "licence": _LICENCES[source], "non_commercial": False}
        | {"rows_read": count, "rows_bad": 0}
        for source, count in counts.items()
    ]
    prompts = {row.prompt.id: row.prompt for row in rows}
    name, provenance = f"outcomes-{use}", summed(entries) | {"read_from": " + ".join(counts)}
    return Dataset(name=name, prompts=tuple(prompts.values()), ratings=tuple(rows), provenance=provenance)


def harmless_answers() -> Dataset:
    """Answers of the starter set to harmless prompts of its split for judges, as ratings of harm: none has any.

    People rated answers to prompts that invite harm, and a judge of those alone calls a quarter of a small model's
    answers to harmless prompts harmful. Two of each prompt are taken, the prompt's tag `source` says where from.
    """
    rows = list[Rating]()
    for row in _rows("starter/starter.jsonl", StarterRow):
        if row.kind != "harmful" and row.split == "judge":
            prompt = Prompt.of(row.prompt, source=HARMLESS, split=part_of(row.prompt))
            safe = [each.text for each in row.responses if each.safe and not each.harm][:_HARMLESS_PER_PROMPT]
            origin = Origin(kind="dataset", name=HARMLESS)
            rows += [Rating(prompt=prompt, response=text, value=0.0, criterion="harm", origin=origin) for text in safe]
    prompts = {row.prompt.id: row.prompt for row in rows}
    return Dataset(name=HARMLESS, prompts=tuple(prompts.values()), ratings=tuple(rows))


_LICENCES = {
    "starter": "CC0-1.0", "evasions": "CC0-1.0", "unrelated": "CC0-1.0", "people": "MIT", "xstest": "CC-BY-4.0"
}  # fmt: skip


def first_words(text: str, count: int = WORDS) -> str:
    """The beginning of a text, as many words of it.

    >>> first_words("One  two three.", 2)
    'One  two'
    """
    words = list(re.finditer(r"\S+", text))
    return text if len(words) <= count else text[: words[count - 1].end()]


def _rating(text: str, response: str, value: float, source: str, **tags: Any) -> Rating:
    prompt = Prompt.of(text, **({"source": source, "drawn_from": source, "split": part_of(text)} | tags))
    origin = Origin(kind="human" if source in ("people", "xstest") else "dataset", name=source)
    return Rating(prompt=prompt, response=first_words(response), value=value, criterion="refusal", origin=origin)


def _of_starter(use: Use) -> Iterator[Rating]:
    for row in _rows("starter/starter.jsonl", StarterRow):
        if row.split == _SPLIT[use]:
            told = [(response.text, _told(row.kind, response)) for response in row.responses]
            clear = [(text, value) for text, value in told if value is not None]
            for text, value in clear[:_PER_PROMPT]:
                yield _rating(row.prompt, text, value, "starter", kind=row.kind)


def _told(kind: str, response: Response) -> float | None:
    """The outcome that points for help and harm tell, where they do."""
    if kind == "harmful":
        if response.source == "author" and response.safe and response.help <= 1:
            return 1.0
        return 0.0 if response.help >= 6 and not response.safe else None
    if response.help == 0:
        return 1.0
    is_attempt = response.source == "author" and response.help in (2, 3)  # a wrong answer, and still one
    return 0.0 if response.help >= 5 or is_attempt else None


def _of_evasions(use: Use) -> Iterator[Rating]:
    for row in _rows("evasions/evasions.jsonl", EvasionRow):
        if row.half == _HALF[use]:
            yield _rating(row.prompt, row.response, float(row.outcome == "evades"), "evasions")


def _astray(answers: Sequence[Rating]) -> Iterator[Rating]:
    """Answers put to other prompts of the same part, so that only what was asked tells them from answers."""
    ordered = sorted(answers, key=lambda row: _hash(row.prompt.id + row.response))
    for part in ("train", "test"):
        of_part = [row for row in ordered if row.prompt.tags["split"] == part][:_UNRELATED]
        for asked, said in zip(of_part, [*of_part[1:], *of_part[:1]], strict=True):
            if asked.prompt.id != said.prompt.id:
                yield _rating(asked.prompt.text, said.response, 1.0, "unrelated", drawn_from="starter")


def _of_people(use: Use) -> Iterator[Rating]:
    if use == "evaluation" and are_there("refusal"):
        for row in human_ratings("refusal").ratings:
            tags = {"outcome": row.prompt.tags["outcome"]}
            yield _rating(row.prompt.text, row.response, row.value, "people", **tags)


def _of_xstest(use: Use) -> Iterator[Rating]:
    return (row for row in xstest_outcomes() if row.prompt.tags["half"] == _HALF[use])


def xstest_outcomes() -> Iterator[Rating]:
    """XSTest's completions with people's verdict on each, where POISE_DATA has them; tags `half` and `writer`."""
    root = os.environ.get("POISE_DATA", "")
    for path in sorted(Path(root).glob("xstest_annotations/xstest_v2_completions_*.jsonl")) if root else ():
        file = read_file(path, path.name)
        for row in file.rows:
            place = Place(dataset="xstest", file=file.label, line=row.line)
            read = validate(XstestCompletion, row.columns or {}, place)
            tags = {"half": _HALVES[_hash(read.prompt) % 2], "writer": path.stem.rpartition("_")[2]}
            yield _rating(read.prompt, read.completion, _VERDICTS[read.final_label], "xstest", **tags)


def _rows(path: str, record: type[Record]) -> Iterator[Record]:
    """Rows of a file that is part of the package."""
    file = read_file(Path(str(resources.files("poise.data") / path)), path)
    for row in file.rows:
        yield validate(record, row.columns or {}, Place(dataset=path, file=path, line=row.line))


def _sources(rows: Sequence[Rating]) -> list[str]:
    return list(dict.fromkeys(row.prompt.tags["source"] for row in rows))


def _hash(text: str) -> int:
    return int(hashlib.sha256(f"outcome {text}".encode()).hexdigest(), 16)
