"""The bandit of "A Critical Evaluation of AI Feedback": the arms, one run of an arm, and the page."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np

from poise.evaluate.figures import Series, charts
from poise.recipes._arms import Claim, Column, Outcome, Page, Results
from poise.worlds.teacher_student import TeacherStudent

CENTRES = (20, 40, 60, 80)  # of the student's answers; the paper's is 40, the teacher's 80
PAPERS = "feedback-40"
COVERED = 1e-4  # an arm that the student plays as often as this counts as one that it answers with

LABELS = {"teacher": "imitation of the teacher"} | {
    f"feedback-{centre}": f"feedback, student around {centre}" for centre in CENTRES
}

COLUMNS = (
    Column(figure="gold", label="mean gold", digits=2),
    Column(figure="start", label="before", digits=2),
    Column(figure="gain", label="gained", digits=2),
    Column(figure="order_seen", label="pairs that the reward orders rightly, where the student answers", is_share=True),
    Column(figure="order_unseen", label="elsewhere", is_share=True),
)


def attempt(arm: str, seed: int, *, answers: int, beta: float, steps: int) -> Outcome:
    """Imitate the teacher, or learn from true comparisons of a student's answers; gold is computed exactly."""
    if arm == "teacher":
        return Outcome(figures=_imitated(seed, answers, 2 * steps))
    world = TeacherStudent(student_centre=float(arm.removeprefix("feedback-")))
    reward = world.fitted_reward(world.compare(pairs=answers, seed=seed), steps=steps)
    gold, start = world.reward_of(world.feedback(reward, beta=beta)), world.reward_of(world.student)
    seen = world.student > COVERED
    figures = {
        "gold": gold,
        "start": start,
        "gain": gold - start,
        "order_seen": ordered_rightly(reward[seen]),
        "order_unseen": ordered_rightly(reward[~seen]),
    }
    return Outcome(figures=figures, curves={"reward": (reward - reward[seen].mean()).tolist()})


def _imitated(seed: int, answers: int, steps: int) -> dict[str, float]:
    world = TeacherStudent()
    gold, uniform = world.reward_of(world.imitation(world.demonstrate(answers=answers, seed=seed), steps=steps)), 49.5
    return {"gold": gold, "start": uniform, "gain": gold - uniform}


def ordered_rightly(reward: np.ndarray) -> float:
    """The share of pairs of arms, whose gold rises along `reward` [A], that a fitted reward orders as gold does.

    Equal rewards count one half.

    >>> ordered_rightly(np.array([0.0, 2.0, 2.0]))
    0.8333333333333334
    """
    differences = reward[None] - reward[:, None]
    above = differences[np.triu_indices(len(reward), k=1)]
    return float(((np.sign(above) + 1) / 2).mean())


@cache
def teacher_gold() -> float:
    """The teacher's mean gold, exactly."""
    return TeacherStudent().reward_of(TeacherStudent().teacher)


def page(results: Results, *, answers: int, beta: float, steps: int) -> Page:
    """What was found."""
    claims = [
        Claim(
            text="Imitating the teacher is worth more than feedback on a weak student's answers (around 40)",
            difference=results.difference("teacher", PAPERS, "gold"),
        ),
        Claim(
            text="The reward is worse where the student does not answer (pairs ordered rightly, student around 40)",
            difference=results.contrast(PAPERS, "order_seen", "order_unseen"),
        ),
        *(
            Claim(
                text=f"What imitation is ahead by shrinks as the student comes near (around {near} against {far})",
                difference=results.difference(f"feedback-{near}", f"feedback-{far}", "gold"),
            )
            for far, near in pairwise(CENTRES)
        ),
        Claim(
            text="A student as good as the teacher gains from feedback what imitation cannot give (around 80)",
            difference=results.difference("feedback-80", "teacher", "gold"),
        ),
    ]
    return Page(
        name="critical-evaluation",
        title="What feedback can teach a weak student, and what a strong teacher's answers can",
        intro=_INTRO.format(answers=answers, beta=beta, steps=steps, teacher=teacher_gold()),
        columns=COLUMNS,
        rows=LABELS,
        claims=claims,
        pictures={"Fitted reward by arm, and where the student answers": _picture(results)},
        extra=_EXTRA,
    )


def _picture(results: Results) -> str:
    panels = {}
    for centre in CENTRES:
        world, arm = TeacherStudent(student_centre=centre), f"feedback-{centre}"
        seen = world.student > COVERED
        reward = results.mean_curve(arm, "reward")
        gold = (world.rewards - world.rewards[seen].mean()) * np.ptp(reward) / max(1.0, np.ptp(world.rewards))
        arms = world.rewards.tolist()
        panels[f"student around {centre}"] = [
            Series(label="fitted reward", x=arms, y=reward.tolist()),
            Series(label="gold, to scale", x=arms, y=gold.tolist(), is_dashed=True),
            Series(
                label="student's answers", x=arms, y=(world.student / world.student.max() * np.ptp(reward) / 2).tolist()
            ),
        ]
    return charts(panels, across="arm", up="reward, log odds")


_INTRO = """
The bandit of [arXiv:2402.12366](https://arxiv.org/abs/2402.12366), section 5 ([worlds](../worlds.md)): of a hundred
arms, arm i is worth i. The teacher's answers lie around arm 80 (mean gold {teacher:.2f}). Imitation fits {answers:,} of
them. Feedback compares {answers:,} pairs of a student's own answers without a single wrong label, fits a reward by
Bradley-Terry ({steps:,} steps of descent) and tilts the student by it (beta {beta:g}). The paper's student lies around
40.
"""

_EXTRA = """
No label is wrong in any arm: what feedback lacks is not judgement but answers to judge. The paper's language models
show both signs (LLaMA-7B: 57.4 against 47.6 % wins for imitation of GPT-4; DeepSeek-7B: 55.5 against 57.5), so that
"feedback never helps" is not what it says, nor what stands here.
"""
