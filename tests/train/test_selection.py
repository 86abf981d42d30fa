"""Learning from the worst episodes: which they are, that the others have no say, and that the share one is PPO."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from poise.errors import ConfigError
from poise.functional.masked import standardise
from poise.functional.risk import reference_soft_risk_count
from poise.train.algorithms import (
    PPO,
    RISK_AVERSE,
    RISK_AVERSE_UNDER_LIMITS,
    RLOO,
    KLPenalty,
    risk_averse,
    token_weights,
)
from poise.train.controllers import adaptive_kl, reference_adaptive_kl
from poise.train.experience import experiences
from poise.train.objectives import Lagrangian, Limit, Penalty, ProjectedAscent, Unconstrained
from poise.train.on_policy import OptimizerSettings
from poise.train.selection import Episodes, by_channel, by_first_target, by_prompt, by_return, worst_share
from poise.types import Scores

QUARTER = replace(PPO, selection=worst_share(0.25))
HALF = replace(PPO, selection=worst_share(0.5))
RETURNS = {"reward": torch.tensor([3.0, 1.0, 2.0, 0.0]), "cost": torch.tensor([5.0, 0.0, -1.0, 0.5])}


def episodes(objective, step=0, steps=10):
    return Episodes(
        returns=RETURNS,
        first_targets={name: -values for name, values in RETURNS.items()},
        signs=objective.signs,
        group=torch.tensor([7, 2, 2, 7]),
        mix=lambda channels: objective.mix(channels, {}),
        step=step,
        steps=steps,
    )


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("objective", [Unconstrained, Penalty, Lagrangian])
@pytest.mark.parametrize("base", [PPO, replace(PPO, epochs=2), RLOO])
def test_the_share_one_is_the_base_algorithm_bit_for_bit(make_trainer, weights_of, objective, base):
    averse, plain = (
        make_trainer(algorithm=each, objective=objective(), optimisation={"steps": 3})
        for each in (risk_averse(1.0, base=base, warm_up=0, end=0.5), base)
    )
    start = weights_of(plain)
    for index in range(3):
        found, expected = averse.step_at(index), plain.step_at(index)
        assert {**found, "tokens_per_s": 0} == {**expected, "tokens_per_s": 0}
    assert_same_weights(weights_of(averse), weights_of(plain))
    assert any(not torch.equal(start[name], tensor) for name, tensor in weights_of(plain).items())


def test_the_record_has_the_numbers_of_the_paper():
    kept = [RISK_AVERSE.selection(replace(episodes(Unconstrained(), step, 194))).sum() for step in (0, 30, 108, 185)]
    assert kept == [4, 4, 3, 2]  # of four: all, all, 1 - 0.6 * 78 / 155 and 0.4 of them
    assert replace(RISK_AVERSE, selection=None) == PPO


def test_some_of_the_others_are_learned_from_under_limits():
    late = episodes(Unconstrained(), 185, 194)
    worst_two, others = RISK_AVERSE.selection(late), RISK_AVERSE_UNDER_LIMITS.selection(late)
    assert worst_two.sum() == 2 and others.sum() == 3
    assert others[worst_two].all()
    assert risk_averse(1.0, rest=0.5).selection(late).all()
    assert replace(RISK_AVERSE_UNDER_LIMITS, selection=None) == PPO


def test_prompts_are_kept_whole_where_the_risk_is_theirs():
    given = episodes(Unconstrained())  # prompt 7 has episodes 0 and 3, prompt 2 the others
    assert by_prompt()(given).tolist() == [1.5] * 4
    priced = episodes(Lagrangian(Limit(), ProjectedAscent()))
    assert by_prompt(by_channel("cost"))(priced).tolist() == [-2.75, 0.5, 0.5, -2.75]
    assert worst_share(0.25, by_prompt(by_channel("cost")))(priced).tolist() == [True, False, False, True]


def test_episodes_are_ranked_by_the_objective_or_by_one_channel():
    priced = Lagrangian(Limit(), ProjectedAscent(multiplier=1.0))
    assert by_return(episodes(Unconstrained())).argsort().tolist() == [3, 1, 2, 0]
    assert by_return(episodes(priced)).argsort().tolist() == [0, 3, 1, 2]  # by (r - c) / 2
    assert by_channel("cost")(episodes(priced)).argsort().tolist() == [0, 3, 1, 2]  # the costliest first
    assert by_channel("reward")(episodes(priced)).argsort().tolist() == [3, 1, 2, 0]
    assert by_first_target(episodes(Unconstrained())).argsort().tolist() == [0, 2, 1, 3]


def test_a_ranking_by_a_channel_that_is_not_trained_is_refused():
    with pytest.raises(ConfigError, match="the ranking needs channel 'length'"):
        by_channel("length")(episodes(Unconstrained()))


def test_the_kl_penalty_decides_between_equal_scores(make_trainer, prompts):
    """Ranking by the shaped return is not ranking by the score."""
    seen = []

    def look(given):
        seen.append(given.returns["reward"])
        return torch.ones(len(given.returns["reward"]), dtype=torch.bool)

    trainer = make_trainer(algorithm=replace(PPO, selection=look, kl_coef=0.5), objective=Unconstrained())
    batch = trainer.collect(prompts)
    trainer.select(batch, trainer.estimate(batch)[1])
    penalty = ((batch.old_logprobs - batch.ref_logprobs) * batch.response_mask).sum(-1)
    torch.testing.assert_close(seen[0], batch.scores["reward"] - 0.5 * penalty)
    assert penalty.abs().max() > 0.01


def test_only_the_worst_episodes_move_policy_and_critics(make_trainer, weights_of, prompts):
    """A step that selects is a step on a batch that never held the others."""
    trainer, alone = (make_trainer(sgd=True, algorithm=a, objective=Unconstrained()) for a in (HALF, PPO))
    start = weights_of(trainer)
    batch = trainer.collect(prompts)
    advantages, targets = trainer.estimate(batch)
    selected = trainer.select(batch, targets)
    kept = selected.response_mask.any(-1)
    returns = experiences(batch, trainer.algorithm, trainer.objective)["reward"].rewards.sum(-1)
    assert kept.sum() == 2
    assert returns[kept].max() < returns[~kept].min()
    metrics = trainer.update(selected, advantages["reward"], targets)
    assert metrics["kept"] == 0.5

    chosen = [prompt for prompt, flag in zip(prompts, kept, strict=True) if flag]
    few = alone.collect(chosen)  # each prompt has its own random stream: the same responses
    targets_of_few = alone.estimate(few)
    expected = alone.update(few, targets_of_few[0]["reward"], targets_of_few[1])
    found = weights_of(trainer)
    assert any((found[name] - start[name]).abs().max() > 1e-4 for name in found)
    for name, tensor in weights_of(alone).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    for name in ("sequence_kl", "kl", "entropy", "response_tokens", "logprob_gap", "value_loss"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_episodes_that_were_left_out_before_are_not_among_the_worst(make_trainer, prompts):
    trainer = make_trainer(algorithm=HALF, objective=Unconstrained(), scorers=[FourRewards()])
    batch = trainer.collect(prompts)
    mask = batch.response_mask.clone()
    mask[1] = False  # the worst of all
    kept = trainer.select(replace(batch, response_mask=mask), trainer.estimate(batch)[1]).response_mask.any(-1)
    assert kept.tolist() == [False, False, True, True]  # half of three, rounded up


class FourRewards:
    """Rewards far apart, so that the KL penalty does not decide."""

    def score(self, prompts, completions):
        return [Scores(values={"reward": reward}) for reward in (40.0, -40.0, 20.0, -20.0)]


@pytest.mark.parametrize("tokens", [1, 100_000])
def test_micro_batches_without_a_kept_episode_change_nothing(make_trainer, weights_of, tokens):
    trainers = [
        make_trainer(sgd=True, algorithm=QUARTER, optimisation={"tokens_per_micro_batch": size})
        for size in (tokens, 120)
    ]
    for trainer in trainers:
        assert trainer.step_at(0)["kept"] == 0.25
    for name, tensor in weights_of(trainers[0]).items():
        torch.testing.assert_close(weights_of(trainers[1])[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_multiplier_sees_all_episodes_and_not_the_worst_alone(make_trainer):
    trainer = make_trainer(algorithm=QUARTER, objective=Lagrangian(Limit("cost", 0.0)))
    metrics = trainer.step_at(0)
    costs = [rollout.scores.values["cost"] for rollout in trainer.rollouts]
    assert metrics["excess"] == metrics["cost"] == pytest.approx(sum(costs) / 4)


def test_the_costliest_episodes_may_be_what_is_learned_from(make_trainer, prompts):
    algorithm = replace(PPO, selection=worst_share(0.25, by_channel("cost")), kl_coef=0.0)
    trainer = make_trainer(algorithm=algorithm)
    batch = trainer.collect(prompts)
    kept = trainer.select(batch, trainer.estimate(batch)[1]).response_mask.any(-1)
    assert torch.equal(kept, batch.scores["cost"] == batch.scores["cost"].max())


def test_the_authors_way_is_a_record_of_its_own(make_trainer):
    base = replace(
        PPO,
        weights=token_weights,
        scale=partial(standardise, correction=1),
        kl=KLPenalty(control=reference_adaptive_kl(target=1.0)),
    )
    settings = {"warm_up": 0, "end": 0.9, "ranking": by_first_target, "count": reference_soft_risk_count}
    trainer = make_trainer(algorithm=risk_averse(0.5, base=base, **settings), optimisation={"steps": 2})
    assert [trainer.step_at(index)["kept"] for index in range(2)] == [1.0, 0.75]
    assert trainer.algorithm.kl_coef != PPO.kl_coef


def test_the_kl_of_kept_episodes_moves_the_coefficient_where_the_authors_moves_it_the_other_way():
    ours, theirs = adaptive_kl()(0.2, 6.5, 0.5), reference_adaptive_kl()(0.2, 6.5, 0.5)
    assert ours == pytest.approx(0.20021333333333335, abs=1e-12)
    assert theirs == pytest.approx(0.199488, abs=1e-12)


def test_the_kl_coefficient_follows_its_controller_and_survives_a_restart(make_trainer):
    algorithm = replace(PPO, kl=KLPenalty(control=adaptive_kl(target=0.001, gain=0.5)))
    trainer, resumed = (make_trainer(algorithm=algorithm, optimisation={"steps": 4}) for _ in range(2))
    used = [trainer.step_at(index)["kl_coef"] for index in range(2)]
    assert used[0] == PPO.kl_coef
    assert used[1] in (pytest.approx(1.1 * PPO.kl_coef), pytest.approx(0.9 * PPO.kl_coef))
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.algorithm.kl_coef == trainer.algorithm.kl_coef != used[1]
    assert resumed.step_at(2)["kl_coef"] == trainer.step_at(2)["kl_coef"]


def test_the_schedule_ends_with_the_training_that_the_optimisation_states(make_trainer):
    trainer = make_trainer(
        algorithm=risk_averse(0.25, warm_up=0, end=1.0), optimisation={"steps": 5, "lr": OptimizerSettings().lr}
    )
    assert [trainer.step_at(index)["kept"] for index in range(5)] == [1.0, 1.0, 0.75, 0.75, 0.5]
