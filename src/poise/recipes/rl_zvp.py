"""RL-ZVP at equal rollouts: learn also from prompts whose samples are all right, or all wrong.

    sums, most too easy or too hard -> GRPO, dynamic sampling, RL-ZVP, seeds each -> right answers over rollouts

"No Prompt Left Behind: Exploiting Zero-Variance Prompts in LLM Reinforcement Learning via Entropy-Guided Advantage
Shaping", arXiv:2509.21880. The paper trains models of 1.7B and 8B parameters on mathematics; here a table of digits is
trained on additions, whose success is known exactly.
"""

from __future__ import annotations

from poise.run import Run

PAPER = "arXiv:2509.21880"
SHAPE = "sums -> five algorithms at equal rollouts, one table"
COST = "about 2 minutes on 2 CPU cores"
EXPECTED = None


def rl_zvp(
    *,
    alpha: float = 0.1,
    rollouts: int = 12_800,
    seeds: int = 10,
    workers: int = 2,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Train on additions by GRPO, dynamic sampling and RL-ZVP, and print the table.

    Args:
        alpha: weight of the entropy in the advantages of prompts without spread; the paper's best is 0.1.
        rollouts: answers that each arm may sample in all.
        seeds: seeds of each arm.
        workers: processes.
        page: a Markdown file to write the results to as well, its pictures beside it.
        folder: run folder; an unfinished run in it is continued.
        quick: two seeds and few rollouts: a smoke test, not a result.
    """
    from poise.recipes import _zvp as zvp
    from poise.recipes._arms import finish, measure

    seeds, rollouts, workers = (2, 640, 1) if quick else (seeds, rollouts, workers)
    settings = {"alpha": alpha, "rollouts": rollouts}
    with Run.open(folder, recipe="rl-zvp", arguments={**settings, "seeds": seeds, "quick": quick}) as run:
        results = measure(run, zvp.attempt, tuple(zvp.arms(alpha)), seeds=seeds, workers=workers, **settings)
        finish(run, zvp.page(results, **settings), results, target=page, is_quick=quick)
    return run
