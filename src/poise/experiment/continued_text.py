"""What studies of continuing text report: rewards by a held-out judge, their tails, and what the classifiers are worth.

The hardest prompts are those with the lowest reward before they are continued: the same in every arm and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from poise.data.continuations import ContinuationTask
from poise.evaluate.divergence import sequence_kl
from poise.evaluate.diversity import distinct_estimate
from poise.evaluate.figures import Series
from poise.evaluate.perplexity import perplexity, sample_perplexity
from poise.evaluate.tails import hardest, lower_tail, quantile_curve
from poise.experiment.results import Results
from poise.experiment.study import Claim, Metric, Plot, Trial
from poise.feedback.words import TextScorer
from poise.models.policy import Policy
from poise.pipeline.answers import Reader, read_answers
from poise.pipeline.text_classifiers import TextClassifiers
from poise.run import Run
from poise.types import Prompt, Rollout, Sampling

HARD, WORST = 0.2, (0.1, 0.05)  # share of prompts that are the hardest; shares of the lowest rewards
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 21))  # of the quantile curve
_PERPLEXITY_TEXTS = 96
_BY_PROMPT = "The same prompts in every arm: what the judge says"
_CLASSIFIERS = "What the classifiers of each task are worth, on labelled texts that neither saw"
_READERS = {"signal": "the signal", "judge": "the judge"}
_PLACES = {"": "rows like those it learned from", "_on_texts_to_continue": "texts to continue"}
_TESTED = {
    "hard_reward": "reward on the hardest prompts",
    "worst_10": "lowest 10 % of rewards",
    "reward": "mean reward",
    "hard_signal": "signal on the hardest prompts",
    "signal": "mean signal",
    "reward_of_hardest_prompts": "in these runs, reward on the hardest prompts",
    "reward_of_prompts": "in these runs, reward on all prompts",
}
ABOUT_METRICS = """Rewards in the tables are logits of the good label by the judge, which learned from other rows
and is never trained against. Perplexity of good texts is the policy's on real ones, that of samples is the start's on
the policy's. What intervals over prompts show holds for these runs; how much another seed of training would change is
what those over seeds say."""
METRICS = (
    Metric(name="reward", label="mean reward"),
    Metric(name="hard_reward", label=f"on the hardest {HARD:.0%} of prompts"),
    *(Metric(name=f"worst_{round(100 * share)}", label=f"lowest {share:.0%} of rewards") for share in WORST),
    Metric(name="signal", label="mean of the signal"),
    Metric(name="hard_signal", label="signal on the hardest"),
    Metric(name="perplexity_of_good_texts", label="perplexity of good texts"),
    Metric(name="perplexity_of_samples", label="perplexity of samples"),
    Metric(name="distinct_2", label="distinct word pairs", unit="share"),
    Metric(name="kl", label="KL to the start", unit="nats/sequence"),
    Metric(name="reward_of_hardest_prompts", label="hardest prompts", over="prompts", table=_BY_PROMPT),
    Metric(name="reward_of_other_prompts", label="the other prompts", over="prompts", table=_BY_PROMPT),
    Metric(name="reward_of_prompts", label="all prompts", over="prompts", table=_BY_PROMPT),
    *(
        metric
        for place, where in _PLACES.items()
        for reader, who in _READERS.items()
        for metric in (
            Metric(name=f"{reader}_auc{place}", label=f"AUC of {who}, {where}", over="facts", table=_CLASSIFIERS),
            Metric(
                name=f"{reader}_accuracy{place}", label="accuracy", unit="share", over="prompts", table=_CLASSIFIERS
            ),
        )
    ),
)


def continuation_trial(
    part: Run,
    policy: Policy,
    task: ContinuationTask,
    classifiers: TextClassifiers,
    *,
    most_prompts: int,
    sampling: Sampling,
    reports_classifiers: bool = False,
) -> Trial:
    """Continue the test prompts, have the judge and the signal read the whole texts, and measure.

    reports_classifiers  what they are worth stands beside this trial: that of one arm, since it is the same for all
    """
    prompts = task.prompts("test")[:most_prompts]
    readers = {"reward": whole_texts(classifiers.judge), "signal": whole_texts(classifiers.signal)}
    rollouts = read_answers(part, policy, prompts, readers, sampling=sampling)
    if not rollouts:  # the run is only planned
        return Trial()
    difficulty = list(classifiers.judge.value([prompt.text for prompt in prompts]))
    is_hard = hardest(difficulty, HARD)
    rewards = [rollout.scores.values["reward"] for rollout in rollouts]
    aucs = {name: each for name, each in classifiers.validation_metrics.items() if "_auc" in name}
    hits = {
        name: {str(i): float(hit) for i, hit in enumerate(every)} for name, every in classifiers.validation_hits.items()
    }
    said = [rollout.completion for rollout in rollouts]
    return Trial(
        metrics={
            **_means(rollouts, is_hard),
            **{f"worst_{round(100 * share)}": lower_tail(rewards, share).value for share in WORST},
            "perplexity_of_good_texts": perplexity(policy, task.good_texts("test")[:_PERPLEXITY_TEXTS]),
            "perplexity_of_samples": sample_perplexity(policy, rollouts),
            "distinct_2": distinct_estimate([each.text for each in said], 2).value,
            "tokens": float(np.mean([len(each.token_ids) for each in said])),
            "kl": sequence_kl(policy, rollouts, 1.0).value,
        },
        facts=aucs if reports_classifiers else {},
        by_prompt=_by_prompt(rollouts, is_hard) | (hits if reports_classifiers else {}),
        curves={
            "hardest share": [100 * share for share in SHARES],
            "reward of the hardest": quantile_curve(difficulty, rewards, SHARES),
        },
        paths={"rollouts": f"{part.path.name}/answers/rollouts.jsonl"},
    )


def tail_claims(task: str, higher: str, lower: str, other: str) -> list[Claim]:
    """That one arm of a task is above another, called `other`, in the tail and in the mean: over seeds and prompts."""
    return [
        Claim(text=f"{task}: {what} above {other}'s", metric=metric, higher=higher, lower=lower)
        for metric, what in _TESTED.items()
    ]


def quantile_plot(groups: Mapping[str, Sequence[str]]) -> Plot:
    """A panel for each group of arms: mean reward over the hardest share of the prompts, with bands over seeds.

    groups  title -> arms; those that were not run are left out
    """

    def draw(results: Results) -> dict[str, list[Series]]:
        there = {title: [arm for arm in arms if arm in results.trials] for title, arms in groups.items()}
        return {
            title: [results.series(arm, "hardest share", "reward of the hardest") for arm in arms]
            for title, arms in there.items()
            if arms
        }

    title, across = "Mean reward on the hardest share of the prompts", "hardest share of the prompts, %"
    return Plot(title=title, across=across, up="mean reward", draw=draw)


def whole_texts(scorer: TextScorer) -> Reader:
    """What a scorer says of each continuation together with its beginning; of an empty one, of the beginning alone."""

    def read(prompts: Sequence[Prompt], responses: Sequence[str]) -> Sequence[float]:
        return scorer.value([prompt.text + text for prompt, text in zip(prompts, responses, strict=True)])

    return read


def _means(rollouts: Sequence[Rollout], is_hard: Sequence[bool]) -> dict[str, float]:
    """Judge and signal on all prompts and on the hardest."""
    found: dict[str, float] = {}
    for channel in ("reward", "signal"):
        values = np.array([rollout.scores.values[channel] for rollout in rollouts])
        found |= {channel: float(values.mean()), f"hard_{channel}": float(values[np.array(is_hard)].mean())}
    return found


def _by_prompt(rollouts: Sequence[Rollout], is_hard: Sequence[bool]) -> dict[str, dict[str, float]]:
    every = {rollout.prompt.id: rollout.scores.values["reward"] for rollout in rollouts}
    hard = {rollout.prompt.id for rollout, chosen in zip(rollouts, is_hard, strict=True) if chosen}
    parts = {
        "reward_of_prompts": every,
        "reward_of_hardest_prompts": {prompt: value for prompt, value in every.items() if prompt in hard},
        "reward_of_other_prompts": {prompt: value for prompt, value in every.items() if prompt not in hard},
    }
    return {name: values for name, values in parts.items() if values}
