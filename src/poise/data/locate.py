"""Where the files of a named set lie: in the package, below the folder that POISE_DATA names, or on the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

from poise.data.hub import read_hub
from poise.data.reading import RawFile, data_files, read_file
from poise.errors import DataError


@dataclass(frozen=True, slots=True)
class Licence:
    """The terms of a data set; `non_commercial` is None where nobody said."""

    name: str
    non_commercial: bool | None = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One name that `load` knows."""

    name: str
    summary: str
    parser: str  # "module.function" below poise.data.datasets
    licence: Licence
    folders: tuple[str, ...]  # below POISE_DATA; the first that exists is read
    files: tuple[str, ...] = ("*",)  # patterns of paths below the folder, in the order in which they are read
    hub_id: str = ""
    hub_arguments: Mapping[str, Any] = field(default_factory=dict)
    revision: str = "main"
    embedded: bool = False  # part of the package


def files_of(source: Source) -> list[RawFile]:
    """Read all files of a named set; raises DataError that states each place where they were looked for."""
    return _embedded_files(source) if source.embedded else _found_files(source)


def holds(source: Source, file: Path) -> bool:
    """True if a file lies in the folder of this set, directly or one folder deeper, under a name that the set has."""
    return any(
        folder.name in source.folders and _matches(file.relative_to(folder), source.files)
        for folder in file.parents[:2]
    )


def _embedded_files(source: Source) -> list[RawFile]:
    folder = Path(str(resources.files("poise.data") / source.folders[0]))
    missing = [name for name in source.files if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{source.name}: {', '.join(missing)} is missing from {folder}. Reinstall poise")
    return [read_file(folder / name, f"{folder.name}/{name}") for name in source.files]


def _found_files(source: Source) -> list[RawFile]:
    """The files of a named set from POISE_DATA, else from the hub; the error states all that was tried."""
    tried = [f"1. a path: there is no {source.name!r} here, since a name is no path"]
    root = os.environ.get("POISE_DATA", "")
    folders = [Path(root) / folder for folder in source.folders] if root else []
    for folder in folders:
        files = list(_matching(source, folder))
        if files:
            return [read_file(path, f"{folder.name}/{path.relative_to(folder).as_posix()}") for path in files]
    places = " and ".join(str(folder) for folder in folders)
    patterns = ", ".join(source.files)
    tried.append(f"2. POISE_DATA: {f'no file {patterns} in {places}' if root else 'the variable is not set'}")
    try:
        if source.hub_id:
            return read_hub(source.hub_id, revision=source.revision, arguments=source.hub_arguments)
        tried.append("3. the hub: this set is not there")
    except DataError as error:
        tried.append(f"3. the hub ({source.hub_id}): {error}")
    raise DataError(
        f"data set {source.name!r} was not found. Tried {'; '.join(tried)}. "
        f"Put its files into {source.folders[0]}/ below a folder and set POISE_DATA to that folder, or give a path"
    )


def _matching(source: Source, folder: Path) -> Iterator[Path]:
    paths = data_files(folder) if folder.is_dir() else []
    for pattern in source.files:
        yield from (path for path in paths if fnmatch(path.relative_to(folder).as_posix(), pattern))


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.as_posix(), pattern) for pattern in patterns)
