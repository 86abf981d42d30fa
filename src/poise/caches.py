"""Which folder may hold what runs as code: one that this user owns and nobody else can write.

Compiled kernels are loaded into the process, so that whoever can write them can do what the user can. Models in a cache
are data: they may be shared and only be read, as long as nobody but the owner of the folder can write there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from functools import cache
from pathlib import Path

from poise.errors import ConfigError
from poise.files import cache_folder, reason_of
from poise.text import say

_REMEDY = "Set POISE_CACHE to a folder that only you can write"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def private_cache() -> Path:
    """The cache folder if it is this user's alone to write, else a private one below the temporary folder.

    Says once, on stderr, why the cache is not used. Raises ConfigError if neither can be had.
    """
    folder = cache_folder()
    if not (problem := _problem(folder)):
        return folder
    private = Path(tempfile.gettempdir()) / f"poise-{os.geteuid()}"
    if further := _problem(private):
        raise ConfigError(f"{problem}, and {further}. {_REMEDY}")
    _say_once(f"{problem}: cached files for this machine go to {private}. {_REMEDY}")
    return private


def written_by_others(path: Path) -> str:
    """Why somebody beside its owner could have written to a file, or to a folder that holds it; "" if nobody could."""
    place = path.absolute()
    for each in (place, *place.parents):
        if not each.exists():
            continue
        found = each.stat()
        in_public = each != place and found.st_mode & stat.S_ISVTX  # entries of a sticky folder keep their owners
        if found.st_mode & _OTHERS and not in_public:
            return f"others can write to {each}"
    return ""


def _problem(folder: Path) -> str:
    """Why a folder, made if it is missing, may not hold code; "" if it may."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        return f"{folder} cannot be made ({reason_of(error)})"
    if folder.stat().st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if problem := written_by_others(folder):
        return problem
    return "" if os.access(folder, os.W_OK) else f"{folder} cannot be written"


@cache
def _say_once(message: str) -> None:
    say(f"poise: {message}", error=True)
