"""Preference optimisation without sampling: any loss of the DPO family on any feedback, as one resumable stage."""

from __future__ import annotations

from poise.models.policy import Policy
from poise.pipeline.kept import keep, taken_back
from poise.pipeline.supervised import update_seconds
from poise.plan.work import Planner, current_planner
from poise.run import Run
from poise.train.loop import fit
from poise.train.preference import PreferenceTrainer
from poise.train.preference_feedback import Feedback
from poise.train.preference_methods import Labels, PreferenceMethod

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
) -> Policy:
    """Fit a policy to preferences by a loss, and return it trained.

    feedback  what `method.feedback(policy, comparisons, labels, verdicts)` made of the data
    labels    how sure each comparison is; as judged, where not given

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
            cache=stage.path / "reference.json",
        )
        fit(trainer, run=run, stage=stage.name, steps=steps, save_every=4, shown=_SHOWN)
        result = {"steps": steps, "responses": len(feedback.rows), "beyond_window": feedback.beyond_window}
        keep(policy, stage, result)
    return taken_back(policy, stage)


def _plan(planner: Planner, name: str, feedback: Feedback, steps: int, prompts_per_step: int) -> None:
    """The reference's log-probabilities once, then updates."""
    costs = planner.costs
    tokens = float(sum(len(row.ids) for row in feedback.rows))
    positions = float(sum(len(row.ids) - row.prompt_length for row in feedback.rows))
    share = min(1.0, prompts_per_step / max(1, len(feedback.groups)))
    seconds = costs.forward(tokens, positions=positions)
    seconds += steps * update_seconds(costs, tokens * share, positions * share)
    work = f"{steps} updates of {tokens * share:,.0f} tokens"
    planner.add(name, seconds=seconds, memory=costs.updating(), work=work)
