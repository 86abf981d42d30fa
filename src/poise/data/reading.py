"""Files to raw rows, each with the line it stands on; a row that cannot be read does not stop the others."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

from poise.data.encodings import decoded, describe, foreign_byte, unpacked
from poise.errors import DataError

_SPLIT_NAMES = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
}
_DEEPEST = 64  # levels of lists and objects: what any row of text needs, far below what a recursion can stand
_NOT_UTF8 = "not UTF-8: it holds "


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRow:
    """One row as it stands in a file: its columns, or the text and the reason why it has none."""

    line: int  # line of a JSONL or CSV file, row number of a JSON array or a Parquet file; counted from 1
    columns: dict[str, Any] | None
    text: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """All rows of one file, or of one split of a set on the hub."""

    path: str  # where it was read from, for people who want to open it
    label: str  # the short name used in "file:line", the same on every machine
    rows: tuple[RawRow, ...]
    sha256: str
    split: str = ""  # train, test or validation, where the file's name says so
    untyped: bool = False  # CSV: every value is text, so "true" and "0.5" may stand for a flag and a number


def read_file(path: Path, label: str) -> RawFile:
    """Read a .jsonl, .json, .csv or .parquet file, also compressed with gzip; text is UTF-8, or UTF-16 with its mark.

    Raises DataError that says what the file is, if it cannot be read at all; a single broken row is kept with its
    problem.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    rows = tuple(_READERS[_suffix(path)](path, unpacked(path, content)))
    if rows and all(row.problem.startswith(_NOT_UTF8) for row in rows):
        raise DataError(f"{path} is {rows[0].problem}, for example in line {rows[0].line}")
    return RawFile(
        path=str(path),
        label=label,
        rows=rows,
        sha256=hashlib.sha256(content).hexdigest(),
        split=_split_of(path),
        untyped=_suffix(path) == ".csv",
    )


def data_files(folder: Path) -> list[Path]:
    """Every file below a folder that `read_file` can read, in the order of their names; nothing hidden, no metadata."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and _suffix(path) in _READERS)
    shown = (path for path in found if not any(part.startswith(".") for part in path.parts))
    return sorted(folder / path for path in shown if not is_metadata(path))


def is_metadata(path: Path) -> bool:
    """True for the files of a hub snapshot or a saved data set that describe its rows and hold none.

    >>> is_metadata(Path("dataset_infos.json")), is_metadata(Path("train.json"))
    (True, False)
    """
    return path.suffix.lower() == ".json" and bool(_METADATA.fullmatch(path.stem.lower()))


def what_it_is(path: Path) -> str:
    """What a file is by its content, where that is no text that could be rows; empty if it cannot be told."""
    try:
        with path.open("rb") as file:
            return describe(file.read(1 << 16))
    except OSError:
        return ""


def is_data_file(path: Path) -> bool:
    """True if the name ends in a way that `read_file` knows."""
    return _suffix(path) in _READERS


def known_suffixes() -> str:
    """The endings that can be read, for error messages."""
    return ", ".join(_READERS)


def plain_values(value: Any) -> Any:
    """A value of a typed table as JSON would have it: bytes as text, dates and decimals as they are written.

    Bytes that are no text become an object, which no column of text takes.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain_values(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(each) for each in value]
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    return str(value)


_METADATA = re.compile(
    r"dataset_infos?|dataset_dict|state|croissant|metadata|datapackage|schema|features|stats|config|package|license"
    r"|dataset-metadata|data_?card|dataset_?card"
)


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _split_of(path: Path) -> str:
    for word in re.split(r"[.\-_]", path.name.lower()):
        if word in _SPLIT_NAMES:
            return _SPLIT_NAMES[word]
    return ""


class _Twice(dict[str, Any]):
    """An object in which a name stands twice: JSON does not say which value holds."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Twice(pairs)


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _flaw(value: Any) -> str:
    """Why a value from JSON cannot be a row: nested too deep, or with a name twice; empty if it can."""
    level, depth = [value], 0
    while level:
        twice = next((each for each in level if isinstance(each, _Twice)), None)
        if twice is not None:
            return f"the name {twice.name!r} occurs twice in one object: keep one of the two"
        if depth > _DEEPEST:
            return f"nested deeper than {_DEEPEST} levels"
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        depth += 1
    return ""


def _as_row(line: int, value: Any) -> RawRow:
    problem = _flaw(value) or (
        "" if isinstance(value, dict) else f"expected a JSON object, found a {type(value).__name__}"
    )
    if not problem:
        return RawRow(line=line, columns=value)
    return RawRow(line=line, columns=None, text=_shown(value), problem=problem)


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "(too deep to show)"


def _json_lines(path: Path, content: bytes) -> Iterator[RawRow]:
    text = decoded(path, content)
    if text.lstrip().startswith("[") and not foreign_byte(text):  # an array under another name, or rows that are lists
        try:
            yield from _whole(_parsed(text))
            return
        except (ValueError, RecursionError):
            pass
    yield from _rows_of_lines(text)


def _rows_of_lines(text: str) -> Iterator[RawRow]:
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if not line.strip():
            continue
        if byte := foreign_byte(line):
            yield _not_utf8(number, line, byte)
            continue
        try:
            value = _parsed(line)
        except (ValueError, RecursionError) as error:
            yield RawRow(line=number, columns=None, text=line, problem=f"not JSON: {error}")
        else:
            yield _as_row(number, value)


def _not_utf8(line: int, text: str, byte: str) -> RawRow:
    readable = text.encode(errors="surrogateescape").decode(errors="replace")
    problem = f"{_NOT_UTF8}{byte}. If all of it is, convert it: `iconv -f WINDOWS-1252 -t UTF-8`"
    return RawRow(line=line, columns=None, text=readable, problem=problem)


def _json(path: Path, content: bytes) -> Iterator[RawRow]:
    text = decoded(path, content)
    if byte := foreign_byte(text):
        line = next(number for number, each in enumerate(text.split("\n"), start=1) if foreign_byte(each))
        raise DataError(f"{path} is {_not_utf8(line, '', byte).problem}, as in line {line}")
    try:
        value = _parsed(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):  # several objects: lines under another name
            yield from _rows_of_lines(text)
            return
        raise DataError(f"{path} is not JSON: {error}. Expected an array of objects, or one object a line") from error
    yield from _whole(value)


def _whole(value: Any) -> Iterator[RawRow]:
    for number, each in enumerate(value if isinstance(value, list) else [value], start=1):
        yield _as_row(number, each)


def _csv(path: Path, content: bytes) -> Iterator[RawRow]:
    """Rows of a table; an empty cell is a column that the row does not have. Lines "# ..." above it are comments."""
    records = dropwhile(_is_comment, _records(decoded(path, content)))
    _, header, problem = next(records, (1, [], ""))
    names = [name.strip() for name in header or ()]
    named = [name for name in names if name]
    if problem or (byte := foreign_byte(" ".join(names))):
        raise DataError(f"{path}: its header cannot be read: {problem or _not_utf8(1, '', byte).problem}")
    if len(set(named)) < len(named):
        raise DataError(f"{path}: its header names a column twice: {', '.join(named)}. Rename one of them")
    if len(names) == 1 and (other := next((sign for sign in ";\t|" if sign in names[0]), "")):
        raise DataError(f"{path}: its columns are separated by {other!r}: write it with commas")
    for line, cells, problem in records:
        yield _table_row(line, cells or [], names, problem)


def _is_comment(record: tuple[int, list[str] | None, str]) -> bool:
    return (record[1] or [""])[0].startswith("# ")


def _table_row(line: int, cells: list[str], names: list[str], problem: str) -> RawRow:
    text = ",".join(cells)
    if byte := foreign_byte(text):
        return _not_utf8(line, text, byte)
    while len(cells) > len(names) and not cells[-1]:  # commas at the end of the line
        cells = cells[:-1]
    cells = cells + [""] * sum(not name for name in names[len(cells) :])
    if problem or len(cells) != len(names):
        fits = f"does not have the {len(names)} columns of the header"
        return RawRow(line=line, columns=None, text=text, problem=problem or fits)
    return RawRow(line=line, columns={name: cell for name, cell in zip(names, cells, strict=True) if cell != ""})


def _records(text: str) -> Iterator[tuple[int, list[str] | None, str]]:
    """Records of a table with the line that each begins on; lines that a stray quote spoils come with their problem."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    lines, start = list(io.StringIO(text, newline="")), 0
    while start < len(lines):
        reader = csv.reader(islice(lines, start, None), strict=True)
        before = 0
        try:
            for record in reader:
                if record:
                    yield start + before + 1, record, ""
                before = reader.line_num
            return
        except csv.Error as error:
            is_open = "unexpected end" in str(error)
            spoiled = 1 if is_open else reader.line_num - before
            reason = "a quote that is never closed" if is_open else str(error)
            for line in range(start + before, start + before + spoiled):
                yield line + 1, [lines[line].rstrip("\r\n")], f"its quotes cannot be read: {reason}"
            start += before + spoiled


def _parquet(path: Path, content: bytes) -> Iterator[RawRow]:
    try:
        from pyarrow import ArrowException, BufferReader, parquet
    except ImportError as error:
        raise DataError(f"{path} is a Parquet file, which needs pyarrow: pip install 'poise[data]'") from error
    try:
        table = parquet.read_table(BufferReader(content))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error
    if len(set(table.column_names)) < len(table.column_names):
        raise DataError(f"{path} names a column twice: {', '.join(table.column_names)}. Rename one of them")
    for number, row in enumerate(table.to_pylist(), start=1):
        yield RawRow(line=number, columns=plain_values(row))


_READERS: dict[str, Callable[[Path, bytes], Iterator[RawRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
