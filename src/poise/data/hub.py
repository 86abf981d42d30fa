"""Data sets on the Hugging Face hub, through the optional `datasets` package."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.data.reading import RawFile, RawRow, plain_values
from poise.errors import DataError
from poise.files import cache_folder

_NAME = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:#(?P<split>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A set on the hub as `load` takes it: OWNER/NAME:CONFIG#SPLIT@REVISION; what follows OWNER/NAME may be left out.

    >>> HubName.read("openai/gsm8k:main#train@refs/pr/1").split
    'train'
    """

    id: str
    config: str = ""
    split: str = ""
    revision: str = "main"

    @classmethod
    def read(cls, text: str) -> HubName | None:
        """The parts of a name; None for what is none."""
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        given = {name: value for name, value in found.groupdict().items() if value}
        return cls(**given)

    def files(self) -> list[RawFile]:
        """The files of the split, or of all splits.

        Raises DataError as `read_hub` does, or for a split that is not there.
        """
        files = read_hub(self.id, revision=self.revision, arguments={"name": self.config} if self.config else {})
        chosen = [file for file in files if self.split in ("", file.split)]
        if not chosen:
            raise DataError(
                f"{self.id} has no split {self.split!r}: there are {', '.join(file.split for file in files)}"
            )
        return chosen


def read_hub(hub_id: str, *, revision: str, arguments: Mapping[str, Any]) -> list[RawFile]:
    """All splits of a set on the hub, or in the local cache when HF_HUB_OFFLINE=1.

    Raises DataError with the reason if the package is not installed or the set cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("the hub needs the datasets package: pip install 'poise[data]'") from error
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        found = datasets.load_dataset(hub_id, revision=revision, cache_dir=_instead_of(cache), **arguments)
    except Exception as error:  # the package raises whatever its network, cache and file readers raise
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            raise DataError(
                f"its cache cannot be written, {error.filename or cache} ({os.strerror(error.errno).lower()}): set "
                "POISE_CACHE to a folder that you can write, and HF_HOME to one below it"
            ) from error
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        where = "HF_HUB_OFFLINE is set, so only the local cache was searched: " if offline else ""
        raise DataError(f"{where}{type(error).__name__}: {str(error).strip()[:200]}") from error
    name = "/".join([hub_id, *filter(None, [arguments.get("data_dir")])])
    return [_as_file(f"{name}/{split}", split, found[split].to_list()) for split in found]


def _instead_of(cache: Path) -> str | None:
    """The folder below POISE_CACHE, where it is set and the package's own cache cannot be written."""
    nearest = next(folder for folder in (cache, *cache.parents) if folder.exists())
    is_needed = "POISE_CACHE" in os.environ and not os.access(nearest, os.W_OK)
    return str(cache_folder() / "datasets") if is_needed else None


def _as_file(label: str, split: str, rows: list[dict[str, Any]]) -> RawFile:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode(errors="backslashreplace") + b"\n")
    raw = tuple(RawRow(line=number, columns=plain_values(row)) for number, row in enumerate(rows, start=1))
    return RawFile(path=f"hub:{label}", label=label, rows=raw, sha256=digest.hexdigest(), split=split)
