"""When feedback cannot replace a teacher: imitation of strong answers against comparisons of weak ones.

    teacher's answers -> imitation;   student's answers -> true comparisons -> reward -> tilted student;   gold of both

Archit Sharma et al., "A Critical Evaluation of AI Feedback for Aligning Large Language Models", arXiv:2402.12366: the
bandit by which the paper explains its findings, with the sizes of its public code. We add students at other distances.
"""

from __future__ import annotations

from poise.run import Run

PAPER = "arXiv:2402.12366"
SHAPE = "teacher's and students' answers -> gold of imitation and of feedback, one table"
COST = "about 1 minute on 2 CPU cores"
EXPECTED = None


def critical_evaluation(
    *,
    answers: int = 250_000,
    beta: float = 0.1,
    seeds: int = 5,
    workers: int = 2,
    page: str = "",
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Compare imitation of the teacher with feedback on students' answers, and print the table.

    Args:
        answers: demonstrations of the teacher, and pairs of a student's answers.
        beta: weight of the KL to the student when it is tilted by the fitted reward.
        seeds: seeds of each arm.
        workers: processes.
        page: a Markdown file to write the results to as well, its pictures beside it.
        folder: run folder; an unfinished run in it is continued.
        quick: two seeds and few answers: a smoke test, not a result.
    """
    from poise.recipes import _critical as critical
    from poise.recipes._arms import finish, measure

    seeds, answers, workers = (2, 2_000, 1) if quick else (seeds, answers, workers)
    settings = {"answers": answers, "beta": beta}
    with Run.open(folder, recipe="critical-evaluation", arguments={**settings, "seeds": seeds, "quick": quick}) as run:
        results = measure(run, critical.attempt, tuple(critical.LABELS), seeds=seeds, workers=workers, **settings)
        finish(run, critical.page(results, **settings), results, target=page, is_quick=quick)
    return run
