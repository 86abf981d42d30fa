"""Five limits at once: harm of three categories, over-refusal and length, against one limit and against a penalty.

    toy language -> reward alone, one limit, penalty, five limits, seeds each -> what each policy keeps of which limit

Safe RLHF (Josef Dai et al., arXiv:2310.12773) limits one mean cost, and names several costs as what should come next.
The world is exact: the best policy under all five limits follows from a linear programme.
"""

from __future__ import annotations

from poise.run import Run

PAPER = "after arXiv:2310.12773, which limits one cost"
SHAPE = "toy language -> policies of five objectives, one table"
COST = "about 2 minutes on 2 CPU cores"
EXPECTED = {
    "paper": "none: one cost is limited",
    "ours": "all five within 0.24 [0.02, 0.46] tolerances at 100.0 % [99.6, 100.4] of the best reward (n = 5)",
    "hardware": "2 CPU cores, shared",
    "date": "2026-11-22",
}


def multi_limit(
    *,
    steps: int = 300,
    seeds: int = 5,
    workers: int = 2,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Train under one limit, five limits and a penalty, and print what each policy keeps.

    Args:
        steps: updates of each run.
        seeds: seeds of each arm.
        workers: processes.
        page: a Markdown file to write the results to as well.
        folder: run folder; an unfinished run in it is continued.
        quick: two seeds and few steps: a smoke test, not a result.
    """
    from poise.recipes import _multi_limit as limits
    from poise.recipes._arms import finish, measure

    seeds, steps, workers = (2, 10, 1) if quick else (seeds, steps, workers)
    with Run.open(folder, recipe="multi-limit", arguments={"steps": steps, "seeds": seeds, "quick": quick}) as run:
        results = measure(run, limits.attempt, tuple(limits.ARMS), seeds=seeds, workers=workers, steps=steps)
        finish(run, limits.page(results, steps=steps), results, target=page, is_quick=quick)
    return run
