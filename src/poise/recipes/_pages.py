"""Pages of results: written by the run that measured them, printed, and kept where the user wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from poise.evaluate.seeds import OverSeeds
from poise.files import atomic_write
from poise.run import Run
from poise.types import Estimate


def publish(run: Run, name: str, text: str, path: str = "", *, pictures: dict[str, str] | None = None) -> None:
    """Print the page, and keep it with its pictures in the run folder and, if given, at `path`."""
    print(text, flush=True)
    for target in (run.path / name, *([Path(path)] if path else [])):
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, text.encode())
        for file, picture in (pictures or {}).items():
            atomic_write(target.parent / file, picture.encode())


