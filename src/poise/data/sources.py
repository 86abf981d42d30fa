"""`load`: a data set by name, files and folders by path, or several of them.

A set is looked for in this order: the path itself; the folder that POISE_DATA names; the Hugging Face hub.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from glob import glob, has_magic
from importlib import import_module
from pathlib import Path
from typing import Any

from poise.data.catalogue import GROUPS, NOT_STATED, SOURCES, describe, names
from poise.data.collect import Collector, write_quarantine
from poise.data.datasets.base import Parse, ScoresAs
from poise.data.hub import HubName
from poise.data.locate import Source, files_of, holds
from poise.data.reading import RawFile, data_files, is_data_file, known_suffixes, read_file, what_it_is
from poise.data.renaming import ColumnNames, Given
from poise.data.splits import ROWS, merge, split_by_prompt, without_splits
from poise.errors import DataError
from poise.files import expanded
from poise.types import Dataset

__all__ = ["GROUPS", "SOURCES", "describe", "load", "names"]

MOST_BAD = 0.5  # of the rows of a file: with more of them bad, the file is another one than it is taken for
_OTHER_MEANING = "If a column has one of our names but another meaning, drop it with --columns ignore=NAME"
_WEIGHTED = re.compile(r"(\d*\.?\d+)\s*\*\s*(\S.*)")
_DRAWN = 7_901  # the seed by which a share of a set is drawn
_FEW_ROWS = 5  # a file of fewer is tried out by hand


def load(
    name_or_path: str | Path,
    *,
    columns: Given = None,
    scores: ScoresAs = "margins",
    quarantine: Path | None = None,
    strict: bool = False,
    most_bad: float = MOST_BAD,
) -> Dataset:
    """Read a data set by name, a file or folder by path, or several joined with `+`; a path may hold a `+` itself.

    A path may be a pattern (`data/*.jsonl`, `data/**/*.parquet`); `0.2*NAME` takes a fifth of the prompts of a set; a
    set on the hub may say more than its id: `OWNER/NAME:CONFIG#SPLIT@REVISION`.

    `columns` says what the columns of your files are called, as "prompt=question,chosen=better" or as a mapping, and
    which to leave out, as "ignore=score"; named sets are read as they are. Rows that cannot be read become `bad_rows`,
    each with its file, line and reason; with `quarantine` they are also written to that JSONL file. A row whose labels
    contradict each other is not bad: see `poise.data.lint`.

    `scores` says what the scores of several responses in your files become: the margins of their pairs, a rating of
    each response in its own unit, or one ranking of all.

    Raises DataError if nothing is found, if no column of any file has a name of `columns`, if every row of a set or
    more than the share `most_bad` of a file's rows is bad, or on the first bad row if `strict`.

    >>> load("starter").provenance["licence"]
    'CC0-1.0'
    """
    text = os.fspath(name_or_path)
    shares = dict(_weighted(part) for part in _parts(text))
    single = {name: share for part, share in shares.items() for name in GROUPS.get(part, (part,))}  # each once
    renaming = ColumnNames.of(columns)
    datasets = [_load_one(name, renaming, strict=strict, scores=scores) for name in single]
    parts = [_share_of(each, share) for each, share in zip(datasets, single.values(), strict=True)]
    dataset = parts[0] if len(parts) == 1 else merge(parts, name=text)
    if quarantine is not None:
        write_quarantine(quarantine, dataset.bad_rows)
    renaming.require_all_found()
    for each in datasets:
        _require_good_rows(each, most_bad)
    return dataset


def _parts(text: str) -> list[str]:
    """The names that a text joins with `+`; the longest run of them that is a path together is one.

    >>> _parts("starter + hh-rlhf")
    ['starter', 'hh-rlhf']
    """
    pieces, found = text.split("+"), []
    while pieces:
        runs = ("+".join(pieces[:length]).strip() for length in range(len(pieces), 1, -1))
        path = next((run for run in runs if expanded(run).exists()), pieces[0].strip())
        found.append(path)
        del pieces[: path.count("+") + 1]
    return found


def _weighted(part: str) -> tuple[str, float]:
    """The name, and the share of its prompts that is taken; a path that is there is a path.

    >>> _weighted("0.25*pairs.jsonl"), _weighted("a.jsonl")
    (('pairs.jsonl', 0.25), ('a.jsonl', 1.0))
    """
    is_path = expanded(part).exists() or bool(_matching(expanded(part)))
    found = None if is_path else _WEIGHTED.fullmatch(part)
    if found is None:
        return part, 1.0
    share = float(found[1])
    if not 0 < share <= 1:
        raise DataError(f"data {part!r}: the number is the share of its prompts that is taken, above 0 and at most 1")
    return found[2], share


def _share_of(dataset: Dataset, share: float) -> Dataset:
    """The rows of that share of the prompts, drawn by a hash of each prompt."""
    if share == 1:
        return dataset
    # a seed of its own: by that of another split all prompts would fall on one side
    kept = split_by_prompt(without_splits(dataset), {"kept": share, "left": 1 - share}, seed=_DRAWN)["kept"]
    there = {prompt.id for prompt in kept.prompts}
    whole: dict[str, Any] = {
        name: tuple(row for row in getattr(dataset, name) if row.prompt.id in there) for name in ROWS
    }
    prompts = tuple(prompt for prompt in dataset.prompts if prompt.id in there)
    provenance = {**dataset.provenance, "share": share}
    return replace(dataset, prompts=prompts, provenance=provenance, **whole)


def _load_one(name: str, columns: ColumnNames, *, strict: bool, scores: ScoresAs) -> Dataset:
    if name in SOURCES:
        return _load_source(SOURCES[name], strict=strict)
    path = expanded(name)
    if path.exists():
        return _load_path(path, columns, strict=strict, scores=scores)
    on_hub = [source for source in SOURCES.values() if source.hub_id == name]
    if on_hub:
        grouped = {part for parts in GROUPS.values() for part in parts}
        chosen = [source for source in on_hub if source.name in grouped] or on_hub
        return merge([_load_source(source, strict=strict) for source in chosen], name=name)
    if matching := _matching(path):
        return _load_path(path, columns, strict=strict, scores=scores, files=matching)
    if _may_be_hub_id(path, name):
        return _load_hub_id(name, columns, strict=strict, scores=scores)
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known names: {', '.join(names())}."
    raise DataError(
        f"data set {name!r} was not found: there is no file or folder with this path and no data set with this "
        f"name. {hint}"
    )


def _may_be_hub_id(path: Path, name: str) -> bool:
    """True for OWNER/NAME, unless it is written like a file or lies in a folder that is there."""
    is_local = is_data_file(path) or path.parent.is_dir() or name.startswith((".", "/", "~"))
    return HubName.read(name) is not None and not is_local


def _matching(pattern: Path) -> list[Path]:
    """The data files that a pattern such as data/*.jsonl matches, in the order of their names."""
    if not has_magic(str(pattern)):
        return []
    return sorted(path for found in glob(str(pattern), recursive=True) if is_data_file(path := Path(found)))


def _load_source(source: Source, *, strict: bool) -> Dataset:
    files = files_of(source)
    collector = Collector(source.name, strict=strict)
    for file in files:
        _read(collector, file, source)
    return collector.dataset(revision=source.revision if files[0].path.startswith("hub:") else None)


def _read(collector: Collector, file: RawFile, source: Source) -> None:
    module, function = source.parser.split(".")
    parse: Parse = getattr(import_module(f"poise.data.datasets.{module}"), function)
    collector.read(
        file, parse, source=source.name, licence=source.licence.name, non_commercial=source.licence.non_commercial
    )


def _load_path(
    path: Path, columns: ColumnNames, *, strict: bool, scores: ScoresAs, files: Sequence[Path] = ()
) -> Dataset:
    """A file, all files below a folder, or those that a pattern matches.

    A file that lies in the folder of a named set is read as that set.
    """
    root = path.absolute() if path.is_dir() else path.absolute().parent
    if files:
        root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    files = files or (data_files(path) if path.is_dir() else [path])
    _require_data_files(path, files)
    collector = Collector(path.absolute().stem, strict=strict, scores=scores)
    sources = {file: None if columns else _source_of(file.absolute()) for file in files}
    read, skipped = 0, []
    for file, source in sorted(sources.items(), key=_reading_order):
        raw = read_file(file, f"{root.name}/{file.absolute().relative_to(root).as_posix()}")
        if source is not None:
            _read(collector, raw, source)
        elif len(files) > 1 and _describes_others(raw):
            skipped.append(raw.path)
            continue
        elif raw.rows:
            _read_by_columns(collector, raw, columns)
        read += 1
    if not read:
        raise DataError(f"{path} has no rows, only metadata files: {', '.join(skipped)}")
    return collector.dataset(revision=None, **({"skipped": skipped} if skipped else {}))


def _require_data_files(path: Path, files: Sequence[Path]) -> None:
    if files and all(map(is_data_file, files)):
        return
    what = what_it_is(path) if path.is_file() else ""
    if path.is_dir() and any(path.rglob("*.arrow")):
        what = "written by save_to_disk: write Parquet instead (`load_from_disk(...).to_parquet` of datasets)"
    raise DataError(
        f"{path} is {what}"
        if what
        else f"{path} is not a data file and contains none: the name must end in {known_suffixes()}, or .gz after it"
    )


def _describes_others(file: RawFile) -> bool:
    """True for a .json of one object that fits no format and holds no rows: it speaks of the files beside it."""
    from poise.data.datasets.formats import FORMATS

    if len(file.rows) != 1 or not file.path.endswith(".json") or file.rows[0].columns is None:
        return False
    columns = file.rows[0].columns
    lists = [value for value in columns.values() if isinstance(value, list)]
    has_rows = any(isinstance(each, dict) for value in lists for each in value)
    return not has_rows and not any(each.fits(frozenset(columns)) for each in FORMATS)


def _reading_order(found: tuple[Path, Source | None]) -> tuple[int, Path]:
    """Files of a named set in the order of its patterns, others by name."""
    file, source = found
    patterns = source.files if source is not None else ()
    return next((index for index, pattern in enumerate(patterns) if fnmatch(file.name, pattern)), 0), file


def _source_of(file: Path) -> Source | None:
    return next((source for source in SOURCES.values() if holds(source, file)), None)


def _load_hub_id(hub_id: str, columns: ColumnNames, *, strict: bool, scores: ScoresAs) -> Dataset:
    collector = Collector(hub_id, strict=strict, scores=scores)
    try:
        name = HubName.read(hub_id) or HubName(id=hub_id)
        files = name.files()
    except DataError as error:
        raise DataError(
            f"data set {hub_id!r} is not found. Tried 1. a path: there is none; 2. POISE_DATA: it is no known name; "
            f"3. the hub: {error}"
        ) from error
    for file in files:
        _read_by_columns(collector, file, columns)
    return collector.dataset(revision=name.revision)


def _read_by_columns(collector: Collector, file: RawFile, columns: ColumnNames) -> None:
    from poise.data.datasets.formats import detect

    licence, renamed = NOT_STATED, columns.applied(file)
    try:
        parse = detect(renamed).parse
    except DataError:
        columns.require_all_found()  # a misspelt name is why nothing fits
        raise
    collector.read(renamed, parse, source=collector.name, licence=licence.name, non_commercial=licence.non_commercial)


def _require_good_rows(dataset: Dataset, most_bad: float) -> None:
    files: Sequence[Mapping[str, Any]] = dataset.provenance["files"]
    rows_read = dataset.provenance["rows_read"]
    if rows_read == 0:
        raise DataError(f"data set {dataset.name!r} has no rows: {[f['path'] for f in files]}")
    if len(dataset.bad_rows) == rows_read:
        raise DataError(
            f"data set {dataset.name!r}: none of its {rows_read} rows can be read. The first: "
            f"{_first_bad(dataset)}. {_OTHER_MEANING}"
        )
    for file in files:
        if file["rows_read"] >= _FEW_ROWS and file["rows_bad"] > most_bad * file["rows_read"]:
            raise DataError(
                f"{file['path']}: {file['rows_bad']} of {file['rows_read']} rows cannot be read, too many for a "
                f"valid file. Fix them, or load with most_bad=1. The first: {_first_bad(dataset, file['path'])}. "
                f"{_OTHER_MEANING}"
            )


def _first_bad(dataset: Dataset, path: str = "") -> str:
    rows = [row for row in dataset.bad_rows if path in ("", row.path)]
    return "; ".join(f"{row.path}:{row.line}: {row.reason}" for row in rows[:3])
