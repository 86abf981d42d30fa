"""Models that are made once for this machine, by conversion or merging, and kept in the cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from poise.caches import private_cache, written_by_others
from poise.checksums import facts_below, read_sealed, require_facts, write_sealed
from poise.errors import RunError
from poise.files import cache_folder, sync, translate_os_errors

_CARD = "poise_kept.json"  # the checksums of the files beside it
_WHOLE: set[Path] = set()  # folders that this process has compared with their card


def kept_model(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of a model in the cache; `make` writes it into a new folder if it is not there, or not whole.

    The cache is read if its files are whole and only their owner can write them, whoever that is: it may be shared. A
    model is made in a folder that is this user's alone.
    """
    if _is_whole(shared := cache_folder() / name):
        return shared
    if not _is_whole(own := private_cache() / name):
        _keep(make, own)
    return own


def _is_whole(folder: Path) -> bool:
    if folder in _WHOLE:
        return True
    if not (folder / _CARD).exists() or written_by_others(folder):
        return False
    try:
        _, seal = read_sealed(folder / _CARD, remedy="")
        require_facts(folder, seal["files"], remedy="")
    except RunError:
        return False
    _WHOLE.add(folder)
    return True


def _keep(make: Callable[[Path], None], target: Path) -> None:
    """Make the model beside the target and move it there whole, for other users to read as well."""
    with translate_os_errors(target, 0, "keep a model in"):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        make(temporary)
        with translate_os_errors(target, 0, "keep a model in"):
            write_sealed(temporary / _CARD, {}, files=facts_below(temporary))
            for file in temporary.iterdir():
                file.chmod(0o644)
                sync(file)
            temporary.chmod(0o755)
            _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(made: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}-{os.getpid()}.old")
    if target.exists():
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if not _is_whole(target):  # another process may have been first
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
