"""Multipliers that are estimated from responses of the start model before the first update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.errors import ConfigError, FeedbackError
from poise.functional.dual import solve_dual
from poise.models.adapters import Lora
from poise.models.policy import Policy
from poise.pipeline import align, start_model
from poise.pipeline.dual_start import SAMPLES, limited_samples, start_from_dual
from poise.run import Run
from poise.train.algorithms import RLOO
from poise.train.controllers import PID, ProjectedAscent, ReferenceAscent
from poise.train.limits import Limit, LimitTracker, among, group_masks
from poise.train.objectives import Lagrangian, Unconstrained
from poise.train.on_policy import OptimizerSettings
from poise.types import Completion, Prompt, Rollout, Sampling, Scores

PROMPTS = [Prompt.of(f"Question {i}", kind="harmful" if i % 3 == 0 else "benign") for i in range(9)]
HARMFUL = among("harmful", lambda prompt: prompt.tags.get("kind") == "harmful")


class Letters:
    """What vowels earn they also cost."""

    asked = 0

    def score(self, prompts, completions):
        Letters.asked += 1
        vowels = [float(sum(map(completion.text.count, "aeiou"))) for completion in completions]
        return [Scores(values={"reward": number, "cost": number}) for number in vowels]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.open(tmp_path / "run", recipe="own", arguments={}) as opened:
        yield opened


def scored(costs, rewards=(1.0, 0.0, 0.5, 2.0)):
    return [
        Rollout(
            prompt=prompt,
            completion=Completion(prompt_id=prompt.id, text="x", sample=k),
            scores=Scores(values={"reward": rewards[k], "cost": costs[k] + i / 10}),
        )
        for i, prompt in enumerate(PROMPTS)
        for k in range(SAMPLES)
    ]


def test_costs_and_limits_are_those_that_training_weighs_in_units_of_reward():
    limit, rollouts = Limit("cost", 0.3, measure=HARMFUL, scale=2.0), scored((0.0, 1.0, 2.0, 3.0))
    samples, prompts = limited_samples(rollouts, [limit])
    scores = {"cost": torch.tensor([r.scores.values["cost"] for r in rollouts], dtype=torch.float64)}
    trained = LimitTracker(limit, PID()).costs(scores, group_masks([HARMFUL.among], [r.prompt for r in rollouts]))
    np.testing.assert_allclose(samples.weighed_costs[0].ravel(), trained.numpy())
    assert samples.at_most.tolist() == [0.6]
    assert [prompt.id for prompt in prompts] == [prompt.id for prompt in PROMPTS]


def test_prompts_that_lack_a_score_are_left_out_and_a_limit_that_loses_all_of_its_own_is_an_error():
    limit, rollouts = Limit("cost", 0.3, measure=HARMFUL), scored((0.0, 1.0, 2.0, 3.0))
    samples, _ = limited_samples(rollouts[1:], [limit])
    assert samples.rewards.shape == (len(PROMPTS) - 1, SAMPLES)
    harmless = [rollout for rollout in rollouts if rollout.prompt.tags["kind"] != "harmful"]
    with pytest.raises(FeedbackError, match="cost_harmful"):
        limited_samples(harmless, [limit])


def test_training_starts_from_multipliers_that_the_start_models_own_responses_ask_for(run):
    policy = Policy(start_model(run, "random:llama?layers=2"), Lora(rank=2))
    algorithm, sampling = replace(RLOO, kl_coef=0.5), Sampling(max_tokens=8)
    settings = {"algorithm": algorithm, "sampling": sampling, "samples_per_step": 4}
    objective = Lagrangian(Limit("cost", 0.7), PID(multiplier=3.0))
    align(
        run, policy, [Letters()], PROMPTS, objective=objective, start="dual", optimisation=OptimizerSettings(steps=1),
        **settings,
    )  # fmt: skip
    result = run.stage("policy-start").result
    (row,) = result["multipliers"].values()
    assert 0 < row["value"] < 10
    assert row["low"] <= row["value"] <= row["high"]
    assert result["is_met"] == {"cost": True}
    assert 0.5 * SAMPLES <= result["effective_samples"] <= SAMPLES
    assert (result["kl_coef"], result["prompts_asked"], result["prompts_scored"]) == (0.5, 9, 9)
    first = run.metrics("policy")[0]
    by_hand = PID(multiplier=row["value"])
    by_hand.update(0.7 + first["excess"], 0.7)
    assert first["multiplier"] == pytest.approx(by_hand.multiplier, abs=1e-6)

    asked, again = Letters.asked, Lagrangian(Limit("cost", 0.7), PID(multiplier=3.0))
    known = {"objective": again, "algorithm": algorithm, "sampling": sampling, "name": "policy-start"}
    assert start_from_dual(run, policy, [Letters()], PROMPTS, **known) == {"cost": row["value"]}
    assert Letters.asked == asked  # what is done is read back
    assert again.multipliers == {"cost": row["value"]}


@pytest.mark.parametrize(
    "controller", [PID(multiplier=3.0), ProjectedAscent(multiplier=3.0), ReferenceAscent(multiplier=3.0)]
)
def test_a_controller_that_starts_elsewhere_forgets_what_it_saw_and_keeps_its_settings(controller):
    fresh = type(controller)(multiplier=1.25)
    controller.update(4.0, 0.0)
    assert controller.starting_at(1.25) == fresh


def test_a_start_from_the_dual_needs_multipliers_and_a_price_of_the_kl(run):
    policy = Policy(start_model(run, "random:llama?layers=2"), Lora(rank=2))
    known = {"sampling": Sampling(max_tokens=4)}
    with pytest.raises(ConfigError, match="Unconstrained has none"):
        start_from_dual(run, policy, [Letters()], PROMPTS, objective=Unconstrained(), algorithm=RLOO, **known)
    with pytest.raises(ConfigError, match="kl_coef above 0"):
        free = replace(RLOO, kl_coef=0.0)
        start_from_dual(run, policy, [Letters()], PROMPTS, objective=Lagrangian(), algorithm=free, **known)


def test_more_samples_of_the_same_scores_give_the_same_price():
    samples, _ = limited_samples(scored((0.0, 1.0, 2.0, 3.0)), [Limit("cost", 0.8)])
    twice = samples.rows(np.repeat(np.arange(len(PROMPTS)), 2))
    prices = [solve_dual(each, kl=0.5, mixed=True).multipliers[0] for each in (samples, twice)]
    assert prices[0] == pytest.approx(prices[1], abs=1e-4) and prices[0] > 0
