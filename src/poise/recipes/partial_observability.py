"""Judges who see part of what happens: deceptive inflation and overjustification, and what modelling the belief mends.

    comparisons of what a log shows -> rewards of states -> best policy;   true and observed return, both failures

Leon Lang et al., "When Your AIs Deceive You: Challenges of Partial Observability in Reinforcement Learning from Human
Feedback", NeurIPS 2024, arXiv:2402.17747: its two examples, learned from sampled comparisons where the paper reasons
from the limit of infinitely many.
"""

from __future__ import annotations

from poise.run import Run

PAPER = "arXiv:2402.17747"
SHAPE = "comparisons of observations -> policies of three readings in four settings, one table"
COST = "about 1 minute on 2 CPU cores"
EXPECTED = None


def partial_observability(
    *,
    comparisons: int = 20_000,
    seeds: int = 10,
    workers: int = 2,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Learn from judges who see a log, and print what the learned policies are worth and what they seem to be.

    Args:
        comparisons: pairs of trajectories that are judged.
        seeds: seeds of each arm.
        workers: processes.
        page: a Markdown file to write the results to as well, its pictures beside it.
        folder: run folder; an unfinished run in it is continued.
        quick: two seeds and few comparisons: a smoke test, not a result.
    """
    from poise.recipes import _observability as observability
    from poise.recipes._arms import finish, measure

    seeds, comparisons, workers = (2, 500, 1) if quick else (seeds, comparisons, workers)
    arguments = {"comparisons": comparisons, "seeds": seeds, "quick": quick}
    with Run.open(folder, recipe="partial-observability", arguments=arguments) as run:
        arms = tuple(observability.LABELS)
        results = measure(run, observability.attempt, arms, seeds=seeds, workers=workers, comparisons=comparisons)
        page_found = observability.page(results, comparisons=comparisons)
        finish(run, page_found, results, target=page, is_quick=quick)
    return run
