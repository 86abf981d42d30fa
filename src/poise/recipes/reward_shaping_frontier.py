"""Penalties against limits: how much of the front of help and harm each finds in as many runs.

    toy language -> penalties, limits on the mean, limits on the tail, seeds each -> fronts, hypervolumes, pictures

Josef Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024, arXiv:2310.12773: its
comparison with reward shaping, whose coefficients are used here, in a world whose front is known exactly. Limits on the
tail and coefficients tuned to the world are ours.
"""

from __future__ import annotations

from poise.run import Run

PAPER = "arXiv:2310.12773"
SHAPE = "toy language -> fronts of four families of objectives, hypervolumes"
COST = "about 4 minutes on 2 CPU cores"
EXPECTED = None


def reward_shaping_frontier(
    *,
    steps: int = 200,
    seeds: int = 5,
    workers: int = 2,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Train seven settings of every objective, and print what their fronts cover.

    Args:
        steps: updates of each run.
        seeds: seeds of each setting.
        workers: processes.
        page: a Markdown file to write the results to as well, its pictures beside it.
        folder: run folder; an unfinished run in it is continued.
        quick: two seeds and few steps: a smoke test, not a result.
    """
    from poise.recipes import _frontier as frontier
    from poise.recipes._arms import finish, measure

    seeds, steps, workers = (2, 4, 1) if quick else (seeds, steps, workers)
    arguments = {"steps": steps, "seeds": seeds, "quick": quick}
    with Run.open(folder, recipe="reward-shaping-frontier", arguments=arguments) as run:
        results = measure(run, frontier.attempt, tuple(frontier.FAMILIES), seeds=seeds, workers=workers, steps=steps)
        finish(run, frontier.page(results, steps=steps), results, target=page, is_quick=quick)
    return run
