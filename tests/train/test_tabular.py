"""The tabular trainer is the trainer: its steps follow from the seed, and it finds optima that are known."""

from dataclasses import replace

import pytest
import torch

from poise.functional.advantages import group_normalised
from poise.functional.constraints import PIDGains
from poise.models.shared_rows import SharedRows
from poise.train.algorithms import DAPO, GRPO, PPO, REMAX, RLOO, risk_averse
from poise.train.estimators import compared_returns
from poise.train.objectives import PID, Lagrangian, Limit, Unconstrained, among
from poise.train.tabular import QUICK, TablePolicy, TabularTrainer
from poise.worlds import optimum as exact
from poise.worlds.addition import Addition, AdditionByDigits
from poise.worlds.bandit import three_limits


def train(algorithm, objective=None, *, steps=60, seed=0, world=None, **settings):
    trainer = TabularTrainer(
        world=world or three_limits(),
        algorithm=algorithm,
        objective=objective or Unconstrained(),
        optimisation=replace(QUICK, steps=steps),
        seed=seed,
        **settings,
    )
    return trainer, [trainer.step_at(index) for index in range(steps)]


def share_of_optimum(algorithm, *, steps=200):
    """What the mean policy of the last steps earns under a limit on the mean cost, as a share of the best."""
    bandit, gains = three_limits(stakes=(0.5, 1.0, 2.0)), PIDGains(proportional=1.0, integral=0.05, derivative=1.0)
    trainer, _ = train(algorithm, Lagrangian(Limit("cost", 0.1), PID(gains=gains)), steps=120, world=bandit)
    tables = []
    for index in range(120, steps):
        trainer.step_at(index)
        tables.append(trainer.probabilities.double())
    policy = torch.stack(tables).mean(0).numpy()
    rows = exact.mean_rows(bandit.costs)
    assert abs(exact.risk_of(bandit, policy, rows) - 0.1) < 0.05
    return bandit.reward_of(policy) / exact.best_under_limit(bandit, rows, 0.1).reward


def test_the_same_seed_gives_the_same_table_and_another_seed_another():
    tables = [train(RLOO, steps=5, seed=seed)[0].probabilities for seed in (3, 3, 4)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_every_context_comes_equally_often_with_the_samples_that_the_record_asks_for():
    trainer, _ = train(replace(RLOO, samples_per_prompt=8), steps=1, samples_per_step=96)
    batch = trainer.collect(trainer.prompts)
    assert batch.token_ids[:, 0].bincount().tolist() == [32, 32, 32]
    assert batch.group.bincount().tolist() == [8] * 12


def test_log_probabilities_and_entropies_are_those_of_the_table():
    policy = TablePolicy(torch.tensor([[0.0, 0.0], [1.0, 3.0]]))
    rows = SharedRows.of(torch.tensor([[1, 0], [0, 1]]), torch.tensor([1, 1]), torch.ones(2, 1, dtype=torch.bool))
    prompts = torch.tensor([[0], [1]])[rows.prompt_ids[:, 0]]  # a prompt's token is its context
    logprobs, entropies = policy.logprobs(replace(rows, prompt_ids=prompts))
    assert logprobs[:, 0].exp().tolist() == pytest.approx([1 / (1 + torch.tensor(2.0).exp().item()), 0.5])
    assert entropies[1, 0].item() == pytest.approx(torch.tensor(2.0).log().item())
    with torch.no_grad():
        policy.logits.zero_()
    assert torch.equal(policy.logprobs(rows, reference=True)[0], logprobs)  # the reference stays where it began


@pytest.mark.parametrize("algorithm", [PPO, RLOO, REMAX], ids=["ppo", "rloo", "remax"])
def test_without_a_limit_the_best_arm_of_every_context_is_found(algorithm):
    trainer, history = train(algorithm, steps=80)
    found = three_limits().reward_of(trainer.probabilities.double().numpy())
    assert found > 0.97 * exact.best(three_limits()).reward > history[0]["reward"] * 1.2


def test_a_start_is_where_training_begins_and_its_reference():
    world = Addition()
    trainer, history = train(replace(RLOO, kl_coef=1e3), world=world, start=world.start, steps=20, samples_per_step=128)
    assert history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert history[0]["reward"] == pytest.approx(0.5, abs=0.15)
    held = world.reward_of(trainer.probabilities.double().numpy())
    free = world.reward_of(
        train(replace(RLOO, kl_coef=1e-3), world=world, start=world.start, steps=20)[0].probabilities.double().numpy()
    )
    assert held < 0.6 < free


def test_a_record_that_learns_from_the_worst_all_is_its_base():
    alike = [train(algorithm, steps=5)[0].probabilities for algorithm in (PPO, risk_averse(1.0))]
    assert torch.equal(*alike)


def test_a_limit_is_spent_where_it_buys_most_only_if_channels_share_the_spread_of_a_group():
    together = replace(GRPO, kl_coef=0.01)
    apart = replace(together, advantage=compared_returns(group_normalised))
    assert share_of_optimum(together) > 0.97
    assert share_of_optimum(apart) < 0.95  # a unit of cost has another price in every group


def test_a_response_may_have_several_tokens():
    world = AdditionByDigits(problems=Addition(easy=0, fair=3, hard=0))
    before = world.success_of(world.start.softmax(-1)).mean()
    trainer, _ = train(GRPO, steps=40, world=world, start=world.start, samples_per_step=48)
    assert trainer.probabilities.shape == world.start.shape
    assert float(world.success_of(trainer.probabilities).mean()) > float(before) + 0.3


def test_prompts_that_are_not_kept_are_drawn_again_and_every_response_counts():
    world = Addition(easy=4, fair=2, hard=0)
    played = {}
    for draws in (1, 3):
        algorithm = replace(DAPO, samples_per_prompt=8, collection=replace(DAPO.collection, draws=draws))
        trainer = TabularTrainer(world=world, algorithm=algorithm, objective=Unconstrained(), start=world.start)
        batch = trainer.collect(trainer.prompts)
        played[draws] = trainer.played
        assert len(batch.scores["reward"]) == trainer.played == 8 * len(batch.group.unique())
        assert batch.group.bincount().tolist() == [8] * len(batch.group.unique())
    assert played[1] == 96 < played[3] <= 3 * 96


def test_what_is_learned_in_one_context_is_done_in_all_if_the_table_is_shared():
    trainer, _ = train(RLOO, steps=5, is_shared=True)
    table = trainer.probabilities
    assert torch.equal(table[0], table[1])
    assert not torch.equal(table[0], torch.full((5,), 0.2))


def test_a_limit_of_a_group_sees_its_prompts_alone():
    objective = Lagrangian(Limit("cost", 0.0, measure=among("first", lambda prompt: prompt.tags["context"] == 0)))
    trainer, _ = train(RLOO, objective, steps=2)
    batch = trainer.collect(trainer.prompts)
    assert torch.equal(batch.groups["first"], batch.token_ids[:, 0] == 0)
    assert set(batch.scores) == set(trainer.collect(trainer.prompts).scores) <= {"reward", "cost"}
