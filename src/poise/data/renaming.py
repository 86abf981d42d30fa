"""What the columns of a user's files are called: our names for theirs, and the columns to leave out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from poise.data.kept_columns import KEPT
from poise.data.reading import RawFile, RawRow
from poise.errors import ConfigError, DataError

Given = str | Mapping[str, str | Sequence[str]] | None
_IGNORE, _KEEP = "ignore", "keep"
_MISSING = object()


@dataclass(slots=True, kw_only=True)
class ColumnNames:
    """Names of columns by the names that the formats know; "a.b" is the column b of the object a."""

    ours: Mapping[str, str] = field(default_factory=dict)  # our name -> theirs
    ignored: frozenset[str] = frozenset()  # left out wherever they stand
    kept: tuple[str, ...] = ()  # tags of the prompt under their own names, whatever a format would read them as
    found: set[str] = field(default_factory=set)  # of theirs, in any file
    seen: set[str] = field(default_factory=set)  # every column of any file, for the error

    @classmethod
    def of(cls, given: Given) -> ColumnNames:
        """Read "prompt=question,keep=answer,ignore=score", the same as a JSON object, or a mapping.

        Raises ConfigError for what is neither, for a name that no format knows and for one that is given twice.

        >>> ColumnNames.of("prompt=question,ignore=score").ours
        {'prompt': 'question'}
        """
        pairs = list(_pairs(given))
        ours = [(name, theirs) for name, theirs in pairs if name not in (_IGNORE, _KEEP)]
        _require_known([name for name, _ in ours])
        for names, what in (([name for name, _ in ours], "given"), ([theirs for _, theirs in ours], "used")):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"columns: {', '.join(twice)} is {what} twice")
        ignored = frozenset(theirs for name, theirs in pairs if name == _IGNORE)
        return cls(ours=dict(ours), ignored=ignored, kept=tuple(theirs for name, theirs in pairs if name == _KEEP))

    def __bool__(self) -> bool:
        return bool(self.ours or self.ignored or self.kept)

    def applied(self, file: RawFile) -> RawFile:
        """The file with its columns under our names; a column that stood under one of ours is left out."""
        if not self:
            return file
        return replace(file, rows=tuple(self._row(row) for row in file.rows))

    def require_all_found(self) -> None:
        """Raise DataError for a column that no file had."""
        missing = sorted({*self.ours.values(), *self.ignored, *self.kept} - self.found)
        if missing:
            there = (
                f"there are {', '.join(sorted(self.seen))}" if self.seen else "only named sets were read, as they are"
            )
            raise DataError(f"columns: no file has a column {' or '.join(map(repr, missing))}; {there}")

    def _row(self, row: RawRow) -> RawRow:
        if row.columns is None:
            return row
        self.seen.update(row.columns)
        kept = self._without_ignored(row.columns)
        values = {name: _value_at(kept, theirs) for name, theirs in self.ours.items()}
        given = {name: value for name, value in values.items() if value is not _MISSING}
        self.found.update(self.ours[name] for name in given)
        aside = {theirs: value for theirs in self.kept if (value := _value_at(kept, theirs)) is not _MISSING}
        self.found.update(aside)
        named = {*self.ours, *self.ours.values(), *self.kept}
        rest = {name: value for name, value in kept.items() if name not in named}
        tags = {KEPT: {theirs.rpartition(".")[2]: value for theirs, value in aside.items()}} if aside else {}
        return replace(row, columns=rest | given | tags)

    def _without_ignored(self, value: Any) -> Any:
        """The value without ignored columns, at whatever depth."""
        if not self.ignored:
            return value
        if isinstance(value, list):
            return [self._without_ignored(each) for each in value]
        if not isinstance(value, dict):
            return value
        self.found.update(self.ignored & value.keys())
        return {name: self._without_ignored(each) for name, each in value.items() if name not in self.ignored}


def _pairs(given: Given) -> Iterator[tuple[str, str]]:
    if given is None or given == "":
        return
    if isinstance(given, str):
        yield from _pairs_of_text(given)
        return
    for name, theirs in given.items():
        yield from ((name, each) for each in ([theirs] if isinstance(theirs, str) else theirs))


def _pairs_of_text(text: str) -> Iterator[tuple[str, str]]:
    if text.lstrip().startswith("{"):  # for names with a comma
        try:
            yield from _pairs(dict(json.loads(text)))
        except ValueError as error:
            raise ConfigError(f"columns {text!r} look like a JSON object but are invalid: {error}") from error
        return
    for part in text.split(","):
        name, sign, theirs = (piece.strip() for piece in part.partition("="))
        if not (name and sign and theirs):
            raise ConfigError(
                f"columns {text!r}: {part.strip()!r} is not of the form OURS=YOURS, such as prompt=question"
            )
        yield name, theirs


def _require_known(names: Iterable[str]) -> None:
    from poise.data.datasets.formats import KNOWN

    for name in names:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, [*KNOWN, _IGNORE, _KEEP], n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known names: {', '.join(sorted(KNOWN))}."
            raise ConfigError(f"columns: no format has the name {name!r}. Write our name first, then yours. {hint}")


def _value_at(columns: Mapping[str, Any], path: str) -> Any:
    if path in columns:
        return columns[path]
    value: Any = columns
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _MISSING
        value = value[name]
    return value
