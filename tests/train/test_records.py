"""Every record of an algorithm in the trainer: it trains, and what must not change its step does not."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace

import pytest
import torch

from poise.errors import ConfigError, NonFiniteError
from poise.functional.divergences import kl_k1, kl_k2, kl_k3
from poise.functional.groups import batch_deviation, population_deviation, sample_deviation
from poise.functional.policy_losses import detached_ratio, dual_clipped_surrogate
from poise.functional.statistics import PlattScale
from poise.rollout.scripted import ScriptedEngine
from poise.train import algorithms
from poise.train.algorithms import (
    DAPO,
    DR_GRPO,
    GROUP_INVARIANT,
    GRPO,
    GSPO,
    REINFORCE_PP,
    REINFORCE_PP_BASELINE,
    REMAX,
    ZVP,
    Algorithm,
    Collection,
    KLPenalty,
    group_invariance,
    zvp,
)
from poise.train.estimators import GROUP_HEAD, group_logits, group_normalised_advantage
from poise.train.objectives import MEAN, Lagrangian, Limit, Unconstrained, cvar, rate
from poise.types import Sampling, Scores

RECORDS = {name: value for name, value in vars(algorithms).items() if isinstance(value, Algorithm)}
VARIANTS = {
    "CISPO": replace(GRPO, policy_loss=detached_ratio),
    "DUAL": replace(GRPO, policy_loss=dual_clipped_surrogate),
    "ZVP_OF_DAPO": zvp(base=DAPO),
    "GROUP_INVARIANT_GRPO": group_invariance(base=GRPO),
    "REMAX_K3": replace(REMAX, kl=KLPenalty(in_reward=kl_k3)),
}


class FirstLetter:
    """A rule: reward 1 for a first letter of an even code, 0 for any other; many prompts have equal samples."""

    def score(self, prompts, completions):
        codes = [ord((completion.text or "a")[0]) for completion in completions]
        return [Scores(values={"reward": float(code % 2 == 0), "cost": code / 64 - 1.0}) for code in codes]


class Same:
    """The same reward for every answer."""

    def __init__(self, reward):
        self.reward = reward

    def score(self, prompts, completions):
        return [Scores(values={"reward": self.reward, "cost": 0.0}) for _ in completions]


def moved(trainer, start, weights_of):
    return {name: after - start[name] for name, after in weights_of(trainer).items()}


def assert_same(found, expected, share=1e-4):
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= share * tensor.abs().max(), name


def test_the_records_are_those_of_the_papers():
    assert {"PPO", "RLOO", "GRPO", "DR_GRPO", "DAPO", "GSPO", "REMAX", "REINFORCE_PP", "ZVP", "GROUP_INVARIANT"} <= set(
        RECORDS
    )
    assert len(fields(Algorithm)) <= 13


def test_every_record_has_a_name_and_a_wrong_name_is_an_error_that_says_which_are_close():
    assert {id(record) for record in algorithms.ALGORITHMS.values()} == {id(record) for record in RECORDS.values()}
    assert algorithms.algorithm_named("dr-grpo") is DR_GRPO
    with pytest.raises(ConfigError, match=r"no algorithm 'DR_GRPO': did you mean 'dr-grpo'\? Choose from ppo, rloo"):
        algorithms.algorithm_named("DR_GRPO")


@pytest.mark.parametrize("name", [*RECORDS, *VARIANTS])
def test_every_record_runs_two_steps_and_moves_the_policy(make_trainer, weights_of, name):
    trainer = make_trainer(algorithm=(RECORDS | VARIANTS)[name], sampling=Sampling(max_tokens=4))
    start = weights_of(trainer)
    for index in range(2):
        metrics = trainer.step_at(index)
        assert all(torch.tensor(value).isfinite() for value in metrics.values())
    assert any(not torch.equal(weights_of(trainer)[path], start[path]) for path in trainer.parameters)


@pytest.mark.parametrize("record", [GSPO, REMAX, DAPO, ZVP, DR_GRPO, REINFORCE_PP_BASELINE, GROUP_INVARIANT])
def test_the_size_of_micro_batches_changes_neither_loss_nor_gradient(make_trainer, weights_of, record):
    whole, cut = (
        make_trainer(
            algorithm=record,
            sgd=True,
            scorers=[FirstLetter()],
            objective=Unconstrained(),
            sampling=Sampling(max_tokens=4),
            optimisation={"tokens_per_micro_batch": size},
        )
        for size in (100_000, 1)
    )
    start = weights_of(whole)
    metrics = [trainer.step_at(0) for trainer in (whole, cut)]
    assert metrics[0]["gradient_norm"] == pytest.approx(metrics[1]["gradient_norm"], rel=1e-4)
    assert metrics[0]["gradient_norm"] > 0
    assert_same(moved(cut, start, weights_of), moved(whole, start, weights_of))


def test_zvp_with_alpha_zero_is_grpo_bit_for_bit(make_trainer, weights_of):
    weights = []
    for record in (zvp(0.0), GRPO, ZVP):
        trainer = make_trainer(algorithm=record, scorers=[FirstLetter()], objective=Unconstrained())
        for index in range(2):
            trainer.step_at(index)
        weights.append(weights_of(trainer))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.parametrize(("record", "moves"), [(GRPO, False), (DAPO, False), (ZVP, True)])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_of_equal_samples_zvp_alone_learns(make_trainer, record, moves, reward):
    trainer = make_trainer(
        algorithm=replace(record, kl_coef=0.0), scorers=[Same(reward)], objective=Unconstrained(), sgd=True
    )
    assert (trainer.step_at(0)["gradient_norm"] > 0) is moves


def test_the_entropies_of_a_batch_are_those_of_the_policy_that_samples(make_trainer, prompts):
    trainer = make_trainer(algorithm=ZVP)
    batch = trainer.collect(prompts)
    _, expected = trainer.policy.logprobs(trainer._own_rows(batch).rows)
    torch.testing.assert_close(batch.entropies, expected.detach())
    assert (batch.entropies[batch.response_mask] > 0).all()
    assert make_trainer(algorithm=GRPO).collect(prompts).entropies is None


def test_prompts_without_spread_are_not_learned_from_and_still_count_for_limits_and_metrics(make_trainer, prompts):
    trainer = make_trainer(
        algorithm=replace(DAPO, collection=replace(DAPO.collection, draws=1)),
        scorers=[FirstLetter()],
        objective=Unconstrained(),
    )
    trainer.prompts_per_step = 4
    batch = trainer.collect(prompts)
    varied = [len(set(batch.scores["reward"][batch.group == g].tolist())) > 1 for g in range(4)]
    assert 0 < sum(varied) < 4
    assert batch.response_mask.any(-1).tolist() == [v for v in varied for _ in range(4)]
    metrics = trainer.step_at(0)
    assert len(trainer.rollouts) == 16
    assert metrics["reward"] == pytest.approx(sum(r.scores.values["reward"] for r in trainer.rollouts) / 16)
    assert metrics["kept"] < 1


def test_what_is_not_kept_has_no_influence_on_the_step(make_trainer, weights_of, prompts):
    changes = []
    for junk in (None, 7.0):
        trainer = make_trainer(algorithm=DAPO, scorers=[FirstLetter()], objective=Unconstrained(), sgd=True)
        start = weights_of(trainer)
        batch = trainer.collect(prompts[:3])
        out = ~batch.response_mask.any(-1)
        assert out.any()
        if junk is not None:
            batch = replace(batch, old_logprobs=batch.old_logprobs.masked_fill(out[:, None], junk))
        advantages, targets = trainer.estimate(batch)
        trainer.update(batch, trainer.objective.mix(advantages, batch.groups), targets)
        changes.append(moved(trainer, start, weights_of))
    assert_same(changes[1], changes[0], share=0)


def test_greedy_scores_are_those_of_greedy_answers_by_the_same_scorers(make_trainer, prompts):
    trainer = make_trainer(algorithm=replace(REMAX, samples_per_prompt=2))
    batch = trainer.collect(prompts)
    greedy = trainer.engine.generate(prompts, Sampling(max_tokens=8, temperature=0.0))
    scored = trainer.scorers[0].score(prompts, greedy)
    for channel in ("reward", "cost"):
        expected = [scores.values[channel] for scores in scored for _ in range(2)]
        assert batch.greedy_scores[channel].tolist() == expected


def test_a_greedy_score_that_is_not_finite_stops_and_names_itself(make_trainer, prompts):
    class Second:
        """Infinite from the second call on."""

        calls = 0

        def score(self, prompts, completions):
            self.calls += 1
            return [
                Scores(values={"reward": 1.0, "cost": float("inf") if self.calls > 1 else 0.0}) for _ in completions
            ]

    with pytest.raises(NonFiniteError, match="cost has 4 of 4 values"):
        make_trainer(algorithm=REMAX, scorers=[Second()]).collect(prompts)


@pytest.mark.parametrize("estimator", [kl_k2, kl_k3])
def test_the_penalty_in_the_loss_adds_exactly_its_own_gradient(make_trainer, weights_of, prompts, estimator):
    changes, record = [], replace(GRPO, epochs=1, kl=KLPenalty(in_reward=None, in_loss=estimator))
    for coefficient in (0.0, 0.7):
        trainer = make_trainer(algorithm=replace(record, kl_coef=coefficient), objective=Unconstrained(), sgd=True)
        start = weights_of(trainer)
        trainer.step(prompts)
        changes.append(moved(trainer, start, weights_of))
    trainer = make_trainer(algorithm=record, objective=Unconstrained())
    batch = trainer.collect(prompts)
    logprobs, _ = trainer.policy.logprobs(trainer._own_rows(batch).rows)
    losses = estimator(logprobs, batch.ref_logprobs) * record.weights(batch.response_mask.float())
    gradients = torch.autograd.grad(losses.sum(), list(trainer.parameters.values()))
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for name, expected in zip(trainer.parameters, gradients, strict=True):
        torch.testing.assert_close(changes[0][name] - changes[1][name], 0.1 * 0.7 * expected, rtol=1e-3, atol=1e-6)


def test_a_penalty_in_the_loss_is_not_in_the_reward_as_well(make_trainer, prompts):
    trainer = make_trainer(algorithm=replace(GRPO, kl_coef=5.0), scorers=[Same(1.0)], objective=Unconstrained())
    assert not trainer.estimate(trainer.collect(prompts))[0]["reward"].any()
    charged = make_trainer(
        algorithm=replace(GRPO, kl_coef=5.0, kl=KLPenalty(in_reward=kl_k1)),
        scorers=[Same(1.0)],
        objective=Unconstrained(),
    )
    assert charged.estimate(charged.collect(prompts))[0]["reward"].any()


def test_the_group_head_learns_which_responses_have_the_higher_return(make_trainer):
    class TwoDomains:
        """Short prompts are rewarded, long ones are not."""

        def score(self, prompts, completions):
            return [Scores(values={"reward": 2.0 * (len(prompt.text) < 8), "cost": 0.0}) for prompt in prompts]

    trainer = make_trainer(algorithm=GROUP_INVARIANT, scorers=[TwoDomains()], objective=Unconstrained())
    for index in range(6):
        trainer.step_at(index)
    batch = trainer.collect(trainer.prompts)
    membership = group_logits(batch.values, batch.response_mask).sigmoid()
    better = batch.scores["reward"] > 1
    assert 0 < better.sum() < len(better)
    assert (membership[better] > 0.7).all()
    assert (membership[~better] < 0.3).all()
    assert GROUP_HEAD in trainer.critics.names


def test_reinforce_plus_plus_of_equal_scores_and_no_penalty_stands_still(make_trainer):
    trainer = make_trainer(
        algorithm=replace(REINFORCE_PP, kl_coef=0.0), scorers=[Same(0.1)], objective=Unconstrained(), sgd=True
    )
    assert trainer.step_at(0)["gradient_norm"] < 1e-3


def test_a_resumed_run_keeps_the_group_head(make_trainer, weights_of):
    trainer, resumed = make_trainer(algorithm=GROUP_INVARIANT), make_trainer(algorithm=GROUP_INVARIANT)
    trainer.step_at(0)
    resumed.load_state_dict(deepcopy(trainer.state_dict()))
    for each in (trainer, resumed):
        each.step_at(1)
    assert all(torch.equal(weights_of(resumed)[name], x) for name, x in weights_of(trainer).items())


def test_collecting_nothing_more_is_the_default():
    assert Collection() == Collection(greedy=False, entropies=False, keep=None, draws=1, infer_groups=None)
    assert all(record.collection == Collection() for record in (GRPO, GSPO, DR_GRPO, REINFORCE_PP))


@pytest.mark.parametrize("name", [*RECORDS, *VARIANTS])
def test_every_record_survives_equal_rewards_a_single_sample_and_an_empty_response(make_trainer, weights_of, name):
    record = (RECORDS | VARIANTS)[name]
    silent = ScriptedEngine(lambda prompt, sample: "")
    for changes in (
        {"scorers": [Same(1.0)], "prompts_per_step": 2},
        {"engine": silent, "algorithm": replace(record, samples_per_prompt=1), "prompts_per_step": 1},
    ):
        common = {"algorithm": record, "scorers": [Same(0.0)], "sampling": Sampling(max_tokens=4)}
        trainer = make_trainer(**(common | changes))
        metrics = trainer.step_at(0)
        assert all(torch.tensor(value).isfinite() for value in metrics.values()), metrics
        assert all(weight.isfinite().all() for weight in weights_of(trainer).values())


@pytest.mark.parametrize("deviation", [sample_deviation, population_deviation, batch_deviation])
def test_equal_rewards_are_no_advantage_without_an_epsilon_either(make_trainer, deviation):
    record = replace(GRPO, advantage=group_normalised_advantage(deviation=deviation, epsilon=0.0), kl_coef=0.0)
    trainer = make_trainer(algorithm=record, scorers=[Same(1.0)], sgd=True)
    assert trainer.step_at(0)["gradient_norm"] == 0


@pytest.mark.parametrize("cost", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize(
    "measure",
    [MEAN, rate(), rate(PlattScale(slope=2.0, offset=-0.5)), cvar(0.5)],
    ids=["mean", "rate", "platt", "cvar"],
)
def test_zvp_takes_a_cost_of_zero_for_right_under_every_measure(make_trainer, prompts, measure, cost):
    class Costs:
        def score(self, prompts, completions):
            return [Scores(values={"reward": 1.0, "cost": cost}) for _ in completions]

    limit = Limit("cost", 0.4, measure=measure)
    trainer = make_trainer(algorithm=ZVP, scorers=[Costs()], objective=Lagrangian(limit))
    batch = trainer.collect(prompts)
    found = trainer.estimate(batch)[0][limit.name][batch.response_mask]
    is_right = cost <= 0
    assert (found <= 0).all() if is_right else (found >= 0).all()  # of a cost, down is better
    assert found.any()
