"""When feedback cannot replace a teacher: imitation of strong answers against comparisons of weak ones.

    teacher's answers -> imitation;   student's answers -> true comparisons -> reward -> tilted student;   gold of both

Archit Sharma et al., "A Critical Evaluation of AI Feedback for Aligning Large Language Models", arXiv:2402.12366: the
bandit by which the paper explains its findings, with the sizes of its public code. We add students at other distances.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from poise.evaluate.figures import Series
from poise.experiment import Claim, MethodCard, Metric, Plot, Study, Trial, recipe
from poise.experiment.results import Results
from poise.worlds.teacher_student import TeacherStudent, ordered_rightly

CARD = MethodCard(
    title="What feedback can teach a weak student, and what a strong teacher's answers can",
    paper="arXiv:2402.12366",
    reported="imitation of GPT-4 wins 57.4 %, feedback 47.6 % (LLaMA-7B); 55.5 against 57.5 % (DeepSeek-7B)",
    feedback="exact gold",
    form="comparisons of a student's answers",
    signal="a reward fitted by Bradley-Terry",
    optimiser="exact tilting",
    regulariser="KL to the student",
    model="a softmax over a hundred arms",
    data="sampled answers of a teacher and of students",
)
CENTRES = (20, 40, 60, 80)  # of the students' answers; the paper's is 40, the teacher's 80
COVERED = 1e-4  # an arm that the student plays as often as this counts as one that it answers with


@recipe(CARD, quick={"answers": 2_000, "steps": 200}, seeds=5)
def critical_evaluation(*, answers: int = 250_000, beta: float = 0.1, steps: int = 7_500) -> Study:
    """Compare imitation of the teacher with feedback on students' answers, and print the table.

    Args:
        answers: demonstrations of the teacher, and pairs of a student's answers.
        beta: weight of the KL to the student when it is tilted by the fitted reward.
        steps: descent steps of the reward; the imitation takes twice as many.
    """

    def trial(student: int | None, seed: int) -> Trial:
        if student is None:
            return imitate(answers, seed, 2 * steps)
        world = TeacherStudent(student_centre=float(student))
        reward = world.fitted_reward(world.compare(pairs=answers, seed=seed), steps=steps)
        gold, start = world.reward_of(world.feedback(reward, beta=beta)), world.reward_of(world.student)
        seen = world.student > COVERED
        orders = {"order_seen": ordered_rightly(reward[seen]), "order_unseen": ordered_rightly(reward[~seen])}
        return Trial(
            metrics={"gold": gold, "start": start, "gain": gold - start, **orders},
            curves={"reward": (reward - reward[seen].mean()).tolist()},
        )

    teacher = TeacherStudent().reward_of(TeacherStudent().teacher)
    return Study(
        arms={"teacher": None} | {f"feedback-{centre}": centre for centre in CENTRES},
        trial=trial,
        labels={f"feedback-{centre}": f"feedback, student around {centre}" for centre in CENTRES},
        metrics=[
            Metric(name="gold", label="mean gold"),
            Metric(name="start", label="before"),
            Metric(name="gain", label="gained"),
            Metric(name="order_seen", label="pairs of arms ordered rightly, where the student answers", unit="share"),
            Metric(name="order_unseen", label="elsewhere", unit="share"),
        ],
        claims=[
            Claim(
                text="Imitation is worth more than feedback on a weak student's answers (around 40)",
                metric="gold", higher="teacher", lower="feedback-40",
            ),
            Claim(
                text="The reward is worse where the student does not answer (around 40)",
                metric="order_seen", higher="feedback-40", lower="feedback-40", lower_metric="order_unseen",
            ),
            *(
                Claim(
                    text=f"Imitation's lead shrinks as the student comes near (around {near} against {far})",
                    metric="gold", higher=f"feedback-{near}", lower=f"feedback-{far}",
                )
                for far, near in pairwise(CENTRES)
            ),
            Claim(
                text="A student as good as the teacher gains from feedback what imitation cannot give (around 80)",
                metric="gold", higher="feedback-80", lower="teacher",
            ),
        ],
        plots=[Plot(title="Fitted reward by arm, and where the student answers", across="arm", up="reward, log odds",
                    draw=rewards)],
        notes=f"""
A bandit ([worlds](../worlds.md)): of a hundred arms, arm i is worth i. The teacher's answers lie around arm 80 (mean
gold {teacher:.2f}). Imitation fits {answers:,} of them. Feedback compares {answers:,} pairs of a student's own answers
without a single wrong label, fits a reward ({steps:,} steps of descent) and tilts the student by it (beta {beta:g}).
""",
        discussion="""
No label is wrong in any arm: what feedback lacks is not judgement but answers to judge. The paper's language models
show both signs, so that "feedback never helps" is not what it says, nor what stands here.
""",
    )  # fmt: skip


def imitate(answers: int, seed: int, steps: int) -> Trial:
    """Fit a softmax to the teacher's answers, from a uniform start."""
    world, uniform = TeacherStudent(), 49.5
    gold = world.reward_of(world.imitation(world.demonstrate(answers=answers, seed=seed), steps=steps))
    return Trial(metrics={"gold": gold, "start": uniform, "gain": gold - uniform})


def rewards(results: Results) -> dict[str, list[Series]]:
    """For each student the fitted reward, gold to scale, and where it answers."""
    panels = {}
    for centre in (each for each in CENTRES if f"feedback-{each}" in results.trials):
        world = TeacherStudent(student_centre=centre)
        arms, seen = world.rewards.tolist(), world.student > COVERED
        reward = results.mean_curve(f"feedback-{centre}", "reward")
        height = np.ptp(reward)
        gold = (world.rewards - world.rewards[seen].mean()) * height / max(1.0, np.ptp(world.rewards))
        answered = world.student / world.student.max() * height / 2
        panels[f"student around {centre}"] = [
            Series(label="fitted reward", x=arms, y=reward.tolist()),
            Series(label="gold, to scale", x=arms, y=gold.tolist(), is_dashed=True),
            Series(label="student's answers", x=arms, y=answered.tolist()),
        ]
    return panels
