"""The page of risk-averse RLHF: table, claims, what the readers are worth, quantile curves and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from poise.evaluate.figures import Series, charts
from poise.functional.intervals import paired_difference, student_mean
from poise.recipes._arms import Claim, Column, Outcome, Page, Results, finish
from poise.recipes._real_report import estimate_text, markdown_table
from poise.recipes._risk import ARMS, HARD, RiskSettings
from poise.run import Run
from poise.types import Estimate

Outcomes = Mapping[tuple[str, str], Sequence[Outcome]]
COLUMNS = (
    Column(figure="reward", label="mean reward", digits=2),
    Column(figure="hard_reward", label=f"on the hardest {HARD:.0%} of prompts", digits=2),
    Column(figure="worst_10", label="lowest 10 % of rewards", digits=2),
    Column(figure="worst_5", label="lowest 5 %", digits=2),
    Column(figure="signal", label="mean of the signal", digits=2),
    Column(figure="hard_signal", label="signal on the hardest", digits=2),
    Column(figure="perplexity_of_good_texts", label="perplexity of good texts", digits=1),
    Column(figure="perplexity_of_samples", label="perplexity of samples", digits=1),
    Column(figure="distinct_2", label="distinct word pairs", is_share=True),
    Column(figure="kl", label="KL, nats a sequence", digits=1),
)
_CLAIMS = {
    "hard_reward": "reward on the hardest prompts",
    "worst_10": "lowest 10 % of rewards",
    "reward": "mean reward",
    "hard_signal": "signal on the hardest prompts",
    "signal": "mean signal",
}
_READERS = {"the judge": ("hard_reward", "reward"), "the signal, as in the paper": ("hard_signal", "signal")}
_INTRO = """
Tasks: `--tasks {tasks}`.

{model} continues beginnings of real texts. The start of both policies is supervised learning of good texts (SFT).
RLHF and RA-RLHF are the same {algorithm} for {steps} steps of {samples} samples of up to {tokens} tokens, with
`kl_coef` {kl}; RA-RLHF learns from all samples up to step {warm_up} and from the worst {alpha:.0%} of them from
{end:.0%} of the steps on, chosen by {ranked}. Both sample equally many texts, so RA-RLHF learns from fewer.

The signal that both are trained on is {signal}; the reward is its {reward}. Rewards in the table are the logits of the
good label by the judge, which learned from other rows and is never trained against. The same {prompts} test prompts a
task for all; the hardest are those with the lowest reward before they are continued. Perplexity of good texts is the
policy's on real ones, that of samples is the start's on the policy's.
"""
_SIGNALS = {
    "words": "a linear classifier on words and word pairs",
    "features": "a linear head on the start model's features",
}


def report(
    run: Run, settings: RiskSettings, outcomes: Outcomes, worth: Mapping[str, Mapping[str, Estimate]], *, target: str
) -> None:
    """Print the page, write it with its picture, and sum up."""
    results = Results(outcomes={f"{task}-{arm}": found for (task, arm), found in outcomes.items()})
    first = next(iter(outcomes.values()))[0].figures
    page = Page(
        name="ra-rlhf",
        title="Risk-averse RLHF on text",
        intro=_INTRO.format(
            tasks=",".join(settings.tasks), model=settings.model, algorithm=settings.algorithm,
            steps=settings.steps, samples=settings.samples_per_step,
            tokens=settings.response_tokens, kl=settings.kl_coef, warm_up=settings.warm_up, alpha=settings.alpha,
            signal=_SIGNALS[settings.signal],
            reward="log-probability of the good label" if settings.reward == "log-probability" else settings.reward,
            ranked="the return of each" if settings.ranked == "episode" else "the mean return of their prompt",
            end=settings.end, prompts=f"up to {settings.evaluated}" if first["prompts"] else "",
        ),
        columns=COLUMNS,
        rows={f"{task}-{arm}": f"{task}, {ARMS[arm]}" for task, arm in outcomes},
        claims=claims(settings.tasks, results),
        pictures={"Mean reward on the hardest share of the prompts": quantile_curves(settings.tasks, results)},
        extra="\n\n".join([verdict(settings.tasks, results), by_prompt(settings.tasks, results), readers_table(worth)]),
    )  # fmt: skip
    finish(run, page, results, target=target, is_quick=settings.quick)


def claims(tasks: Sequence[str], results: Results) -> list[Claim]:
    """RA-RLHF above RLHF in tails and in the mean, per task, and in the tail over all tasks and seeds."""
    found = [
        Claim(
            text=f"{task}: {what} above RLHF's",
            difference=results.difference(f"{task}-ra-rlhf", f"{task}-rlhf", figure),
        )
        for task in tasks
        for figure, what in _CLAIMS.items()
    ]
    for figure in ("hard_reward", "hard_signal"):
        gaps = [results.values(f"{task}-ra-rlhf", figure) - results.values(f"{task}-rlhf", figure) for task in tasks]
        difference = student_mean(np.concatenate(gaps))
        found.append(Claim(text=f"all tasks: {_CLAIMS[figure]} above RLHF's", difference=difference))
    return found


def verdict(tasks: Sequence[str], results: Results) -> str:
    """In how many tasks the tail is higher while the mean is not lower, by the means over seeds."""

    def gap(task: str, figure: str) -> float:
        return results.difference(f"{task}-ra-rlhf", f"{task}-rlhf", figure).value

    lines = []
    for reader, (tail, mean) in _READERS.items():
        good = [task for task in tasks if gap(task, tail) > 0 and gap(task, mean) >= 0]
        lines.append(
            f"In direction, by the means over seeds and by {reader}, RA-RLHF is above RLHF on the hardest prompts and "
            f"not below it on average in {len(good)} of {len(tasks)} tasks{': ' + ', '.join(good) if good else ''}."
        )
    return "\n\n".join(lines)


def by_prompt(tasks: Sequence[str], results: Results) -> str:
    """RA-RLHF's reward minus RLHF's for the same prompt and seed, with intervals over prompts."""
    rows = []
    for task in tasks:
        averse, plain = (results.outcomes[f"{task}-{arm}"] for arm in ("ra-rlhf", "rlhf"))
        after, before = (np.array([found.curves["rewards"] for found in arm]) for arm in (averse, plain))
        hard = np.array(averse[0].curves["hard"]) > 0  # the same prompts in all arms and seeds
        rows += [
            [task, place, estimate_text(gap), str(gap.n)]
            for place, gap in (
                ("hardest prompts", _paired(before[:, hard], after[:, hard])),
                ("the other prompts", _paired(before[:, ~hard], after[:, ~hard])),
                ("all prompts", _paired(before, after)),
            )
        ]
    return (
        "## The same prompts, with and without risk\n\nRA-RLHF's reward minus RLHF's, paired by prompt and seed; "
        "95 % intervals over prompts. They hold for these runs: how much another seed of training would "
        "change is what the intervals over seeds above say. n is prompts times seeds.\n\n"
        + markdown_table(["task", "on", "difference", "n"], rows)
    )


def _paired(before: np.ndarray, after: np.ndarray) -> Estimate:
    """The mean difference of rewards [seeds, prompts], each prompt with all of its seeds."""
    prompts = [i for _ in before for i in range(before.shape[1])]
    return paired_difference(before.ravel(), after.ravel(), prompts)


def readers_table(worth: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Signal and judge against labels of rows that neither of them saw."""
    names = ("auc", "accuracy", "auc_on_texts_to_continue", "accuracy_on_texts_to_continue")
    rows = [
        [task, reader, *(estimate_text(found[f"{reader}_{name}"]) for name in names), str(found["judge_auc"].n)]
        for task, found in worth.items()
        for reader in ("signal", "judge")
    ]
    head = ["task", "reader", "AUC", "accuracy", "AUC, texts to continue", "accuracy, texts to continue", "n"]
    return (
        "## What the readers are worth\n\nOn labelled rows that neither saw, with 95 % intervals: rows like those they "
        "learned from (n), and the texts whose beginnings are continued, with their own continuations.\n\n"
        + markdown_table(head, rows)
    )


def quantile_curves(tasks: Sequence[str], results: Results) -> str:
    """One panel per task: reward on the hardest share of the prompts, with the band over seeds."""
    panels: dict[str, Sequence[Series]] = {
        task: [results.series(f"{task}-{arm}", "share", "reward", label) for arm, label in ARMS.items()]
        for task in tasks
    }
    return charts(panels, across="hardest share of the prompts, %", up="mean reward")
