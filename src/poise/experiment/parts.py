"""Parts of a run: what a trial has of its own, and what arms share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from poise.run import Run


@contextmanager
def common_part(part: Run, name: str, *, across_seeds: bool = False) -> Iterator[Run]:
    """A run beside the trial's own, for stages that its arms share: one start, one signal and one judge for all.

    part          the run that a trial was given
    name          of the folder, such as seed-0: what arms share and seeds do not
    across_seeds  seeds share it too: nothing in it may depend on the seed
    """
    own = {"arm", "seed"} if across_seeds else {"arm"}
    arguments = {key: value for key, value in part.arguments.items() if key not in own}
    with Run.open(part.path.parent / name, recipe=part.recipe, arguments=arguments) as common:
        yield common
