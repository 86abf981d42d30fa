"""Preference optimisation without sampling: any loss of the DPO family on any feedback, as one resumable stage.

preference_feedback -> optimise_preferences -> measure_preferences
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from poise.data import select
from poise.data.batching import epoch_order
from poise.errors import DataError
from poise.models.policy import Policy
from poise.pipeline.kept import keep, taken_back
from poise.pipeline.supervised import update_seconds
from poise.plan.work import Planner, current_planner
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.loop import fit
from poise.train.objectives import Controller, Limit
from poise.train.preference import PreferenceTrainer, preference_values
from poise.train.preference_feedback import Feedback, PairFeedback
from poise.train.preference_methods import ConstrainedLabels, Labels, PreferenceMethod
from poise.train.rollout_batch import score_all
from poise.train.sharding import shard_engine
from poise.types import Comparison, Dataset, Prompt, SafetyLabel, Sampling, Scorer, Verdict

PromptValues = dict[str, dict[str, list[float]]]  # metric -> prompt id -> values of its pairs or responses

_SHOWN = ("loss", "reward_accuracy", "reward_margin", "multiplier")


def optimise_preferences(
    run: Run,
    policy: Policy,
    method: PreferenceMethod,
    feedback: Feedback,
    *,
    labels: Labels | None = None,
    steps: int = 60,
    prompts_per_step: int = 8,
    lr: float = 2e-4,
    seed: int = 0,
    name: str = "policy",
    reference_cache: Path | None = None,
) -> Policy:
    """Fit a policy to preferences by a loss, and return it trained.

    feedback         what `method.feedback(policy, comparisons, labels, verdicts)` made of the data
    labels           how sure each comparison is; as judged, where not given
    reference_cache  the file that keeps the reference's log-probabilities, for policies of one start and one feedback;
                     the stage has one of its own where none is given

    The stage's folder holds the policy, in a form that peft (or transformers, trained whole) loads as it is.
    """
    if (planner := current_planner()) is not None:
        _plan(planner, planner.named(run, name), feedback, steps, prompts_per_step)
        return policy
    stage = run.stage(name)
    if not stage.finished:
        trainer = PreferenceTrainer(
            policy=policy,
            method=method,
            feedback=feedback,
            labels=labels,
            prompts_per_step=prompts_per_step,
            lr=lr,
            steps=steps,
            seed=seed,
            cache=reference_cache or stage.path / "reference.json",
        )
        fit(trainer, run=run, stage=stage.name, steps=steps, save_every=4, shown=_SHOWN)
        result = {"steps": steps, "responses": len(feedback.rows), "beyond_window": feedback.beyond_window}
        keep(policy, stage, result)
    return taken_back(policy, stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRows:
    """The rows of a data set that a preference method can learn from."""

    comparisons: tuple[Comparison, ...]
    labels: tuple[SafetyLabel, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @classmethod
    def of(cls, data: Dataset, method: PreferenceMethod, criteria: Sequence[str]) -> PreferenceRows:
        """Comparisons under the criteria.

        A method of single responses reads verdicts too, and safety labels where there are no comparisons.
        """
        comparisons = select(data, criterion=criteria).comparisons
        if method.feedback is PairFeedback:
            return cls(comparisons=comparisons)
        labels = () if data.comparisons or "safe" not in criteria else data.labels
        return cls(comparisons=comparisons, labels=labels, verdicts=data.verdicts)

    @property
    def num_prompts(self) -> int:
        """Prompts with any of them."""
        return len({row.prompt.id for rows in (self.comparisons, self.labels, self.verdicts) for row in rows})


def preference_feedback(
    policy: Policy,
    method: PreferenceMethod,
    data: Dataset,
    *,
    criteria: Sequence[str] = ("helpful", "safe"),
    scorer: Scorer | None = None,
) -> Feedback:
    """What a method reads of the data: comparisons under some criteria, or responses that are judged one by one.

    Raises DataError that says what there is instead, if the method can read nothing of it.
    """
    rows = PreferenceRows.of(data, method, criteria)
    if not rows.num_prompts:
        alone = len(data.verdicts) + len(data.labels)
        hint = f"; {alone} responses are judged one by one, which only --loss kto can learn from" if alone else ""
        raise DataError(
            f"no comparisons under {' or '.join(criteria)} in {data.name!r}"
            + (hint if method.feedback is PairFeedback else "")
        )
    asked = None if current_planner() is not None else scorer  # a plan scores nothing
    return method.feedback(policy, rows.comparisons, rows.labels, rows.verdicts, scorer=asked)


def constrained_labels(
    policy: Policy,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    limit: Limit,
    *,
    controller: Controller,
    sampling: Sampling = Sampling(),
    every: int = 1,
    answers: int = 16,
    seed: int = 0,
) -> ConstrainedLabels:
    """Labels by reward less the price of cost, which moves by the mean cost of fresh answers to some of the prompts.

    every    updates between two looks at the mean cost
    answers  to as many prompts, at each look
    """
    engine, count = shard_engine(NativeEngine(policy)), min(answers, len(prompts))

    def mean_cost(index: int) -> float:
        asked = [prompts[i] for i in epoch_order(len(prompts), count, index, seed=seed)]
        found = score_all([scorer], asked, engine.generate(asked, replace(sampling, seed=index)), 1)
        return sum(rollout.scores.values[limit.channel] for rollout in found) / len(found)

    return ConstrainedLabels(limit, controller, mean_cost, every=every)


def measure_preferences(
    run: Run,
    policy: Policy,
    method: PreferenceMethod,
    data: Dataset,
    *,
    criteria: Mapping[str, Sequence[str]],
    scorer: Scorer | None = None,
    name: str = "held-out-pairs",
) -> dict[str, PromptValues]:
    """The method's own view of feedback that it did not learn from, under the criteria of each name.

    Names under which the data hold too little are left out; of values, each metric's by the prompt of their pairs.
    """
    stage, views = run.stage(name), {}
    for view, each in () if stage.finished else criteria.items():
        rows = PreferenceRows.of(data, method, each)
        if rows.num_prompts >= (1 if method.feedback is PairFeedback else 2):
            views[view] = preference_feedback(policy, method, data, criteria=each, scorer=scorer)
    if (planner := current_planner()) is not None:
        _plan_reading(planner, planner.named(run, name), list(views.values()))
        return {}
    if not stage.finished:
        stage.finish({view: _by_prompt(policy, method, feedback) for view, feedback in views.items()})
    return dict(stage.result)


def _by_prompt(policy: Policy, method: PreferenceMethod, feedback: Feedback) -> PromptValues:
    values, owners = preference_values(policy, method, feedback)
    prompts = [feedback.responses.prompts[feedback.numbers(group[:1])[0]].id for group in feedback.groups]
    rows: PromptValues = {metric: {} for metric, found in values.items() if found}
    for metric, by_id in rows.items():
        for value, owner in zip(values[metric], owners[metric], strict=True):
            by_id.setdefault(prompts[owner], []).append(value)
    return rows


def _plan_reading(planner: Planner, name: str, views: Sequence[Feedback]) -> None:
    """Every response once, by the policy and by its reference."""
    rows = [row for feedback in views for row in feedback.rows]
    positions = float(sum(len(row.ids) - row.prompt_length for row in rows))
    seconds = 2 * planner.compute.forward(float(sum(len(row.ids) for row in rows)), positions=positions)
    planner.add(name, seconds=seconds, memory=planner.compute.scoring(), work=f"{len(rows)} responses, read twice")


def _plan(planner: Planner, name: str, feedback: Feedback, steps: int, prompts_per_step: int) -> None:
    """The reference's log-probabilities once, then updates."""
    compute = planner.compute
    tokens = float(sum(len(row.ids) for row in feedback.rows))
    positions = float(sum(len(row.ids) - row.prompt_length for row in feedback.rows))
    share = min(1.0, prompts_per_step / max(1, len(feedback.groups)))
    seconds = compute.forward(tokens, positions=positions)
    seconds += steps * update_seconds(compute, tokens * share, positions * share)
    work = f"{steps} updates of {tokens * share:,.0f} tokens"
    planner.add(name, seconds=seconds, memory=compute.updating(), work=work)
