"""Every algorithm under every objective, held against a best policy that is known.

    bandit -> each record x each objective x seeds -> table

A bandit whose best policy follows from a linear programme (`poise.worlds`) is learned by each record of
`train/algorithms.py` under each objective of `train/objectives.py`, by the trainer's own code on a table of logits. A
cell holds what the worst seed reached of the optimum and by how much the worst seed missed its limit.
"""

from __future__ import annotations

from poise.run import Run

PAPER = "none: the optima are exact"
SHAPE = "known optima -> table of every algorithm under every objective"
COST = "5 minutes of CPU time: 2.7 minutes on 2 busy cores"
EXPECTED = {
    "paper": "none: the optima are exact",
    "ours": "88 of 91 cells reach the optimum in all of 5 seeds; RISK_AVERSE misses three, its form for limits none",
    "hardware": "2 CPU cores, shared",
    "date": "2026-11-28",
}


def contract(
    *,
    algorithms: str = "all",
    seeds: int = 5,
    steps: int = 200,
    workers: int = 2,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Train every algorithm under every objective where the optimum is known, and print the table.

    Args:
        algorithms: names of records joined by +, such as PPO+GRPO; all of them by default.
        seeds: seeds per cell.
        steps: updates per run.
        workers: processes.
        page: a Markdown file to write the table to as well.
        folder: run folder; an unfinished run in it is continued.
        quick: one seed and few steps: a smoke test, not a result.
    """
    from poise.recipes import _contract as suite
    from poise.recipes._arms import publish

    seeds, steps = (1, 20) if quick else (seeds, steps)
    chosen = suite.records_named(algorithms)
    arguments = {"algorithms": algorithms, "seeds": seeds, "steps": steps, "workers": workers, "quick": quick}
    with Run.open(folder, recipe="contract", arguments=arguments) as run:
        cells = suite.measure(run, chosen, seeds=seeds, steps=steps, workers=workers)
        text = suite.page(cells, seeds=seeds, steps=steps)
        publish(run, text, run.path / "contract.md", page)
        run.finish(suite.summary(cells))
    return run
