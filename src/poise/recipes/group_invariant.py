"""Group invariant learning: the same return in groups that nobody named, where a shortcut pays in one of them.

    two hidden domains -> PPO, relaxed KL, group invariant learning, seeds each -> reward by domain and under a shift

Rui Zheng et al., "Improving Generalization of Alignment with Human Preferences through Group Invariant Learning",
ICLR 2024, arXiv:2310.11971. The paper trains Llama-2-7B on dialogues and summaries; here the domains are known exactly,
though not to who learns.
"""

from __future__ import annotations

from poise.run import Run

PAPER = "arXiv:2310.11971"
SHAPE = "two hidden domains -> policies of five algorithms, one table"
COST = "about 1 minute on 2 CPU cores"
EXPECTED = None


def group_invariant(
    *,
    steps: int = 300,
    seeds: int = 10,
    workers: int = 2,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Train with and without group invariance, and print what is earned in either domain.

    Args:
        steps: updates of each run.
        seeds: seeds of each arm.
        workers: processes.
        page: a Markdown file to write the results to as well, its pictures beside it.
        folder: run folder; an unfinished run in it is continued.
        quick: two seeds and few steps: a smoke test, not a result.
    """
    from poise.recipes import _invariant as invariant
    from poise.recipes._arms import finish, measure

    seeds, steps, workers = (2, 10, 1) if quick else (seeds, steps, workers)
    with Run.open(folder, recipe="group-invariant", arguments={"steps": steps, "seeds": seeds, "quick": quick}) as run:
        results = measure(run, invariant.attempt, tuple(invariant.LABELS), seeds=seeds, workers=workers, steps=steps)
        finish(run, invariant.page(results, steps=steps), results, target=page, is_quick=quick)
    return run
