"""What studies on rated pairs report: accuracy and calibration on held-out pairs, and answers that a judge compares.

All differences of rewards `h` are those of the winner of a pair and the other response.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from poise.evaluate.calibration import pair_calibration
from poise.evaluate.divergence import forward_sequence_kl, sequence_kl
from poise.evaluate.diversity import distinct_estimate
from poise.experiment.parts import common_part
from poise.experiment.study import Metric, Trial
from poise.models.heads import ScoreModel
from poise.models.policy import Policy
from poise.pipeline.answers import read_answers
from poise.pipeline.rated import RatedMaterial
from poise.plan.work import current_planner
from poise.run import Run
from poise.train.preference import preference_values
from poise.train.preference_feedback import PairFeedback
from poise.train.preference_methods import PreferenceMethod
from poise.types import Comparison, Prompt, Rollout, Sampling

SAMPLES = 2  # answers to each test prompt
_MATERIAL = "The pairs and the judge, which are the same for all"
METRICS = {
    each.name: each
    for each in (
        Metric(name="reward", label="judge's reward"),
        Metric(name="win_rate", label="wins against the start", unit="share"),
        Metric(name="reverse_kl", label="KL(policy, start)", unit="nats/sequence"),
        Metric(name="forward_kl", label="KL(start, policy)", unit="nats/sequence"),
        Metric(name="entropy", label="entropy", unit="nats/token"),
        Metric(name="distinct_2", label="distinct word pairs", unit="share"),
        Metric(name="accuracy", label="accuracy, held-out pairs", unit="share"),
        Metric(name="ece", label="calibration error", unit="share"),
        Metric(name="confidence", label="mean confidence", unit="share"),
        Metric(name="train_accuracy", label="accuracy, training pairs", unit="share"),
        Metric(name="train_ece", label="calibration error, training pairs", unit="share"),
        Metric(name="chosen_drift", label="chosen", unit="nats"),
        Metric(name="rejected_drift", label="rejected", unit="nats"),
    )
}
MATERIAL_METRICS = (
    Metric(name="train_pairs", label="pairs to learn from", table=_MATERIAL),
    Metric(name="test_prompts", label="prompts to answer", table=_MATERIAL),
    Metric(
        name="judge_accuracy", label="test pairs that the judge orders as rated", unit="share", over="prompts",
        table=_MATERIAL,
    ),
)  # fmt: skip
ABOUT_METRICS = """The judge is a Bradley-Terry reward model on frozen features that learned from pairs of other
prompts. The calibration error is that of the probability `sigmoid(|h|)`, in ten bins, where h is the difference of the
scores, or of the rewards that the policy implies, of the better response and the other. Chosen and rejected are
log-ratios to the start of the responses of held-out pairs."""


def policy_trial(
    part: Run, policy: Policy, method: PreferenceMethod, material: RatedMaterial, *, name: str, seed: int, tokens: int
) -> Trial:
    """What a trained policy implies of held-out and of training pairs, and what it answers.

    name    of the folder that all policies of a seed share: the start's answers are sampled once
    tokens  longest answer
    """
    sampling = Sampling(max_tokens=tokens, samples=SAMPLES, seed=90_001 + seed)
    prompts = material.splits["test"].prompts
    readers = {"reward": lambda asked, texts: judged(material, asked, texts)}
    said = read_answers(part, policy, prompts, readers, sampling=sampling)
    with common_part(part, name) as common:
        before = read_answers(common, policy, prompts, readers, sampling=sampling, name="start", reference=True)
    if current_planner() is not None:
        return Trial()
    metrics = implied_metrics(policy, method, material) | answer_metrics(policy, said, before)
    return Trial(metrics=metrics, paths={"policy": f"{part.path.name}/policy/model"})


def reward_model_trial(model: ScoreModel, material: RatedMaterial) -> Trial:
    """What a reward model says of held-out and of training pairs."""
    if current_planner() is not None:
        return Trial()
    found = pair_calibration(score_margins(model, material.splits["test"].comparisons))
    of_train = pair_calibration(score_margins(model, material.splits["train"].comparisons))
    return Trial(metrics=found | {f"train_{name}": value for name, value in of_train.items()})


def with_material(trial: Trial, material: RatedMaterial, **facts: float) -> Trial:
    """The trial with what its set has, the judge's accuracy prompt by prompt, and further facts of the set."""
    if current_planner() is not None:
        return trial
    test = material.splits["test"]
    right: dict[str, list[bool]] = defaultdict(list)
    margins = score_margins(material.judge.model, test.comparisons)
    for comparison, margin in zip(test.comparisons, margins, strict=True):
        right[comparison.prompt.id].append(margin > 0)
    sizes = {"train_pairs": len(material.splits["train"].comparisons), "test_prompts": len(test.prompts)}
    return Trial(
        metrics={**trial.metrics, **sizes, **facts},
        by_prompt={**trial.by_prompt, "judge_accuracy": {p: float(np.mean(hits)) for p, hits in right.items()}},
        curves=trial.curves,
        paths=trial.paths,
    )


def implied_metrics(policy: Policy, method: PreferenceMethod, material: RatedMaterial) -> dict[str, float]:
    """Accuracy and calibration of the reward that a policy implies, on held-out and on training pairs."""
    found: dict[str, float] = {}
    for side, prefix in (("test", ""), ("train", "train_")):
        feedback = PairFeedback(policy, material.splits[side].comparisons)
        values, _ = preference_values(policy, method, feedback, cache=material.reference(side))
        found |= {prefix + name: value for name, value in pair_calibration(values["reward_margin"]).items()}
        if side == "test":
            found |= {name: float(np.mean(values[name])) for name in ("chosen_drift", "rejected_drift")}
    return found


def answer_metrics(policy: Policy, said: Sequence[Rollout], before: Sequence[Rollout]) -> dict[str, float]:
    """The judge's reward, wins against the start's answers, divergences both ways and diversity.

    said, before  [N] of the same prompts in the same order, by the policy and by its start
    """
    ours, theirs = (np.array([rollout.scores.values["reward"] for rollout in side]) for side in (said, before))
    completions = [rollout.completion for rollout in said]
    texts, owners = [each.text for each in completions], [rollout.prompt.id for rollout in said]
    return {
        "reward": float(ours.mean()),
        "win_rate": float(((np.sign(ours - theirs) + 1) / 2).mean()),
        "reverse_kl": sequence_kl(policy, said, 1.0).value,
        "forward_kl": forward_sequence_kl(policy, before).value,
        "entropy": -float(np.mean([value for each in completions for value in each.token_logprobs])),
        "distinct_2": distinct_estimate(texts, 2, owners).value,
        "tokens": float(np.mean([len(each.token_ids) for each in completions])),
    }


def score_margins(model: ScoreModel, comparisons: Sequence[Comparison]) -> list[float]:
    """By how much the model scores the winner of each pair above the other [N]."""
    prompts = [each.prompt for each in comparisons]
    winners = [each.winner or 0 for each in comparisons]
    won = [each.responses[winner] for each, winner in zip(comparisons, winners, strict=True)]
    lost = [each.responses[1 - winner] for each, winner in zip(comparisons, winners, strict=True)]
    sides = [model.values(prompts, texts)[:, 0] for texts in (won, lost)]
    return [float(value) for value in sides[0] - sides[1]]


def judged(material: RatedMaterial, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
    """The judge's reward of responses to prompts."""
    return material.judge.model.values(prompts, texts)[:, 0].double().tolist()
