"""PPO, DPO and ReMax on physics problems whose answers are checked: which is right most often at equal KL.

    start -> ranked pairs -> reward model -> PPO, ReMax;   the same pairs -> DPO;   right answers over KL

Avinash Anand et al., "Enhancing LLMs for Physics Problem-Solving using Reinforcement Learning with Human-AI Feedback",
arXiv:2412.06827, whose three methods and mixed feedback are taken over; ReMax is Ziniu Li et al., arXiv:2310.10505. A
table of solution steps stands for the language model, and a checker of numbers and units for its graders.
"""

from __future__ import annotations

from poise.run import Run

PAPER = "arXiv:2412.06827, arXiv:2310.10505"
SHAPE = "ranked answers -> policies of three methods, accuracy at equal KL"
COST = "about 2 minutes on 2 CPU cores"
EXPECTED = None


def remax_physics(
    *,
    pairs: int = 600,
    steps: int = 200,
    seeds: int = 10,
    workers: int = 2,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Train by PPO, DPO and ReMax on the same feedback, and print how often each is right at equal KL.

    Args:
        pairs: pairs of answers that are ranked.
        steps: updates of each run.
        seeds: seeds of each arm.
        workers: processes.
        page: a Markdown file to write the results to as well, its pictures beside it.
        folder: run folder; an unfinished run in it is continued.
        quick: two seeds and few steps: a smoke test, not a result.
    """
    from poise.recipes import _physics as physics
    from poise.recipes._arms import finish, measure

    seeds, pairs, steps, workers = (2, 200, 10, 1) if quick else (seeds, pairs, steps, workers)
    settings = {"pairs": pairs, "steps": steps}
    with Run.open(folder, recipe="remax-physics", arguments={**settings, "seeds": seeds, "quick": quick}) as run:
        results = measure(run, physics.attempt, tuple(physics.LABELS), seeds=seeds, workers=workers, **settings)
        finish(run, physics.page(results, **settings), results, target=page, is_quick=quick)
    return run
