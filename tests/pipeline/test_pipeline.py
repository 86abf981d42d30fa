"""The public stages take objects of one's own, do their work once, and say what they would take instead of doing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from poise.data import load, select
from poise.evaluate.suite import Suite
from poise.feedback.annotators import RuleAnnotator
from poise.feedback.demonstrations import preferred_demonstrations
from poise.files import read_json
from poise.functional.policy_losses import clipped_surrogate
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.pipeline import (
    ScoreModelSpec,
    align,
    collect_comparisons,
    evaluate,
    fine_tune,
    fit_scores,
    merged,
    optimise_preferences,
    start_model,
)
from poise.plan.compute import Compute
from poise.plan.machines import named_machine
from poise.plan.model_sizes import MODEL_SIZES
from poise.plan.work import Planner, planning
from poise.rollout.native import NativeEngine
from poise.run import Run
from poise.train.algorithms import RLOO
from poise.train.averaging import MeanOfLast
from poise.train.checkpoint import latest_checkpoint
from poise.train.objectives import Lagrangian, Limit
from poise.train.on_policy import OptimizerSettings
from poise.train.preference_methods import dpo
from poise.train.validation import Validation
from poise.types import Completion, Dataset, Prompt, Sampling, Scores

TINY = "random:llama?layers=2"
SHORT = Sampling(max_tokens=6)


class Lengths:
    """A scorer of one's own: long answers are good, and vowels cost something."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        return [
            Scores(values={"reward": float(len(c.text)), "vowels": sum(c.text.count(v) for v in "aeiou") / 10})
            for c in completions
        ]


class Narrowed(Lagrangian):
    """An objective of one's own: it counts how often it was asked."""

    asked = 0

    def update(self, scores, groups):  # type: ignore[no-untyped-def]
        self.asked += 1
        return super().update(scores, groups)


OWN_ALGORITHM = replace(RLOO, policy_loss=clipped_surrogate, samples_per_prompt=2, kl_coef=0.1)


@pytest.fixture(scope="module")
def few() -> Dataset:
    """A few prompts of each kind with their rows."""
    from poise.data import first_prompts

    return first_prompts(select(load("starter"), split="train"), 9)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", recipe="own", arguments={}) as opened:
        yield opened


def test_objective_scorer_and_algorithm_of_ones_own_go_into_policy_optimisation(run: Run, few: Dataset) -> None:
    policy = Policy(start_model(run, TINY), Lora(rank=2))
    objective = Narrowed(Limit("vowels", 0.05))
    options = {"objective": objective, "algorithm": OWN_ALGORITHM, "sampling": SHORT, "samples_per_step": 4}
    align(run, policy, [Lengths()], few.prompts, optimisation=OptimizerSettings(steps=2), **options)
    assert objective.asked == 2
    assert [row["step"] for row in run.metrics("policy")] == [1, 2]
    assert (run.path / "policy" / "model" / "adapter_config.json").exists()
    align(run, policy, [Lengths()], few.prompts, optimisation=OptimizerSettings(steps=2), **options)
    assert objective.asked == 2  # what is done is read back


def test_the_policy_that_is_kept_is_the_average_of_the_weights_where_one_is_asked_for(run: Run, few: Dataset) -> None:
    options = {"algorithm": OWN_ALGORITHM, "sampling": SHORT, "samples_per_step": 4}

    def trained(name: str, **settings: Any) -> dict[str, Tensor]:
        policy = Policy(start_model(run, TINY), Lora(rank=2), adapter=name)
        objective = Lagrangian(Limit("vowels", 9.0))  # always met: without an average a single step's policy is kept
        optimisation = OptimizerSettings(steps=4, lr=1e-2, **settings)
        align(
            run, policy, [Lengths()], few.prompts, objective=objective, optimisation=optimisation, name=name, **options
        )
        return {key.replace(name, ""): weight.detach().clone() for key, weight in policy.parameters().items()}

    kept, again = trained("averaged", average=MeanOfLast(2)), trained("averaged", average=MeanOfLast(2))
    state = latest_checkpoint(run.path / "averaged" / "checkpoints")
    assert state is not None
    two = [{key.replace("averaged", ""): w for key, w in row.items()} for row in state[1]["average"]["kept"]]
    last = Policy(start_model(run, TINY), Lora(rank=2), adapter="other")
    last.copy_from(run.path / "averaged" / "last")
    after = {key.replace("other", ""): weight for key, weight in last.parameters().items()}
    for key, weight in kept.items():
        assert torch.equal(weight, (two[0][key] + two[1][key]) / 2), key
        assert torch.equal(again[key], weight), key
        assert torch.equal(after[key], two[1][key]), key
    assert run.stage("averaged").result["kept"] == "average"
    trained("best")
    assert run.stage("best").result["kept"] == "best feasible"
    assert not (run.path / "best" / "last").exists()


@pytest.mark.parametrize("at_most", [9.0, -1.0])
def test_with_validation_prompts_the_policy_that_is_kept_is_the_best_on_them_and_the_run_says_whether_limits_are_met(
    run: Run, few: Dataset, capsys: pytest.CaptureFixture[str], at_most: float
) -> None:
    policy, unseen = Policy(start_model(run, TINY), Lora(rank=2)), [Prompt.of(f"Unseen {i}") for i in range(3)]
    options = {"algorithm": OWN_ALGORITHM, "sampling": SHORT, "samples_per_step": 4}
    options |= {"optimisation": OptimizerSettings(steps=3, lr=1e-2, average=0.5)}
    objective, chosen = Lagrangian(Limit("vowels", at_most)), Validation(prompts=unseen, every=2)
    align(run, policy, [Lengths()], few.prompts, objective=objective, validate=chosen, **options)
    said = read_json(run.path / "policy" / "validation.json")
    assert [row["step"] for row in said["checks"]] == [2, 3]
    best = max(said["checks"], key=lambda row: (row["feasible"], row["reward"]["value"] if row["feasible"] else 0))
    if at_most > 0:
        assert said["chosen"] == best
    result = run.stage("policy").result
    assert result["validation"] == said["chosen"]
    assert (result["kept"], result["kept_step"]) == ("best on validation", said["chosen"]["step"])
    assert result["feasible"] == said["chosen"]["feasible"] == (at_most > 0)
    (limit,) = said["chosen"]["limits"]
    assert (limit["limit"], limit["at_most"], limit["value"]["n"]) == ("vowels", at_most, 3)
    assert ("no policy met every limit" in capsys.readouterr().err) == (at_most < 0)
    assert (run.path / "policy" / "last" / "adapter_config.json").exists()


def test_a_stage_that_is_read_back_gives_the_weights_it_was_finished_with(run: Run, few: Dataset) -> None:
    rows = preferred_demonstrations(few)
    policy = fine_tune(run, Policy(start_model(run, TINY), Lora(rank=2)), rows, steps=2)
    trained = {name: weight.detach().clone() for name, weight in policy.parameters().items()}
    again = fine_tune(run, Policy(start_model(run, TINY), Lora(rank=2)), rows, steps=2)
    assert all(torch.equal(weight, trained[name]) for name, weight in again.parameters().items())


def test_answers_of_a_policy_that_is_read_back_name_the_version_they_would_have_named(run: Run, few: Dataset) -> None:
    method = dpo(beta=0.1)
    options = {"objective": Lagrangian(Limit("vowels", 0.05)), "algorithm": OWN_ALGORITHM, "sampling": SHORT}

    def trained(stage: str) -> Policy:
        policy = Policy(start_model(run, TINY), Lora(rank=2))
        if stage == "supervised":
            return fine_tune(run, policy, preferred_demonstrations(few), steps=2)
        if stage == "preferences":
            feedback = method.feedback(policy, few.comparisons)
            return optimise_preferences(run, policy, method, feedback, steps=2, name="preferences")
        optimisation = OptimizerSettings(steps=2)
        return align(run, policy, [Lengths()], few.prompts, optimisation=optimisation, samples_per_step=4, **options)

    for stage in ("supervised", "preferences", "policy"):
        versions = {NativeEngine(trained(stage)).generate(few.prompts[:1], SHORT)[0].policy_version for _ in range(2)}
        assert versions == {2}, stage


def test_a_merged_policy_is_the_reference_of_the_next(run: Run, few: Dataset) -> None:
    policy = fine_tune(run, Policy(start_model(run, TINY), Lora(rank=2)), preferred_demonstrations(few), steps=2)
    after = Policy(merged(run, policy), Lora(rank=2))
    asked = few.prompts[:3]
    engine_before, engine_after = (_greedy(p, asked) for p in (policy, after))
    assert engine_before == engine_after


def _greedy(policy: Policy, prompts: Sequence[Prompt]) -> list[str]:
    from poise.rollout.native import NativeEngine

    return [c.text for c in NativeEngine(policy).generate(prompts, Sampling(max_tokens=8, temperature=0.0))]


def test_preferences_feedback_rounds_and_evaluation_run_on_the_same_objects(run: Run, few: Dataset) -> None:
    backbone = start_model(run, TINY)
    policy, method = Policy(backbone, Lora(rank=2)), dpo(beta=0.1)
    optimise_preferences(run, policy, method, method.feedback(policy, few.comparisons), steps=1, name="preferences")
    scores = fit_scores(run, backbone, few, ScoreModelSpec(max_steps=2), measure=lambda model: {})
    found = collect_comparisons(run, policy, few.prompts[:4], [RuleAnnotator("safe")], sampling=SHORT)
    assert {row.criterion for row in found.comparisons} <= {"safe"}
    suite = Suite(name="few", prompts=few.prompts)
    result = evaluate(run, policy, suite, {"judge": scores.model}, sampling=SHORT)
    assert result.evaluation.metrics["mean_cost"].n > 0
    assert (run.path / "evaluate" / "rollouts.jsonl").exists()


def test_a_plan_counts_checks_on_validation_prompts_a_dual_start_and_what_later_rounds_learn(
    run: Run, few: Dataset
) -> None:
    plans = []
    for more in ({}, {"validate": Validation(prompts=few.prompts, every=2), "start": "dual"}):
        planner = Planner(compute=Compute(model=MODEL_SIZES["7b"], machine=named_machine("h100x8")), folder=run.path)
        with planning(planner):
            policy = Policy(start_model(run, "owner/seven-billion"), Lora(rank=2))
            options: dict[str, Any] = {"objective": Lagrangian(), "optimisation": OptimizerSettings(steps=5), **more}
            align(run, policy, [], few.prompts, sampling=SHORT, **options)
            asked = collect_comparisons(run, policy, few.prompts, [], sampling=SHORT, answers=4)
        plans.append(planner.stages)
        assert len(asked.labels) == 4 * len(few.prompts)
    assert plans[1]["policy"].seconds > plans[0]["policy"].seconds
    assert f"3 checks on {len(few.prompts)} prompts" in plans[1]["policy"].work
    assert plans[1]["policy-start"].seconds > 0
    assert "policy-start" not in plans[0]


def test_a_planned_stage_says_what_it_takes_and_trains_nothing(run: Run, few: Dataset) -> None:
    planner = Planner(compute=Compute(model=MODEL_SIZES["7b"], machine=named_machine("h100x8")), folder=run.path)
    with planning(planner):
        backbone = start_model(run, "owner/seven-billion")
        policy = fine_tune(run, Policy(backbone, Lora(rank=2)), preferred_demonstrations(few), steps=10)
        scores = fit_scores(run, merged(run, policy), few)
        options = {"objective": Lagrangian(), "sampling": SHORT, "optimisation": OptimizerSettings(steps=5)}
        align(run, policy, [scores.model], few.prompts, **options)
        method = dpo(beta=0.1)
        optimise_preferences(run, policy, method, method.feedback(policy, few.comparisons), name="preferences")
        collect_comparisons(run, policy, few.prompts, [RuleAnnotator("safe")], sampling=SHORT)
        suite = Suite(name="few", prompts=few.prompts)
        result = evaluate(run, policy, suite, {"judge": scores.model}, sampling=SHORT)
    assert list(planner.stages) == [
        *("model", "supervised", "scores", "policy", "preferences", "annotations", "evaluate"),
    ]
    assert all(stage.seconds > 0 and stage.memory > 0 and stage.work for stage in planner.stages.values())
    assert run.metrics() == []  # no step of any loop
    assert "mean_cost" in result.evaluation.metrics  # a recipe that goes on with the result can
