"""Files of installed packages that are read as data: their code is never imported."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path


def version_of(package: str) -> str:
    """The version of an installed package, or "" where it is not installed.

    >>> version_of("poise-of-nobody")
    ''
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def package_files(package: str, pattern: str) -> list[Path]:
    """The files of an installed package whose path in it matches a pattern, in order; none where it is not installed.

    >>> package_files("poise-of-nobody", "*.csv")
    []
    """
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return []
    found = [file for file in distribution.files or () if fnmatch(file.as_posix(), pattern)]
    return [Path(str(distribution.locate_file(file))) for file in sorted(found)]
