"""Weights that make micro-batches add up, and PPO against numbers of the published code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.functional.masked import length_mask, masked_mean, sequence_mean
from poise.train.algorithms import (
    PPO,
    RLOO,
    kl_in_loss,
    sequence_weights,
    token_weights,
    unscaled,
)
from poise.train.estimators import Experience, gae_advantage
from poise.train.objectives import Lagrangian, Limit, ProjectedAscent, Unconstrained

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def weighted(values, mask, weights):
    return (values * weights(mask.double())).sum()


@given(lengths=LENGTHS)
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize(("weights", "mean"), [(token_weights, masked_mean), (sequence_weights, sequence_mean)])
def test_weights_sum_to_one_and_give_the_mean_of_their_name(weights, mean, lengths):
    mask = length_mask(torch.tensor(lengths), 6)
    values = torch.arange(mask.numel(), dtype=torch.float64).view_as(mask).sin()
    assert weights(mask.double()).sum().item() == pytest.approx(1.0)
    assert (weights(mask.double())[~mask] == 0).all()
    torch.testing.assert_close(weighted(values, mask, weights), mean(values, mask))


def test_ppo_counts_every_sequence_the_same():
    mask = length_mask(torch.tensor([4, 1]), 4)
    values = tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 99.0, 99.0, 99.0]])
    assert weighted(values, mask, PPO.weights).item() == 6.25
    assert weighted(values, mask, token_weights).item() == 4.0


def test_an_empty_mask_gives_weights_of_zero():
    empty = torch.zeros(2, 3)
    assert token_weights(empty).sum() == sequence_weights(empty).sum() == 0


@pytest.mark.parametrize("multiplier", [1.0, 2.5])
def test_the_mixed_policy_loss_is_that_of_the_published_code(goldens, multiplier):
    case = goldens[f"safe.ppo_lag.actor_loss.lambda_{multiplier}"]
    i = case["inputs"]
    objective = Lagrangian(Limit(), ProjectedAscent(multiplier=i["lambda_"]))
    mixed = objective.mix({"reward": tensor(i["reward_adv"]), "cost": tensor(i["cost_adv"])}, {})
    torch.testing.assert_close(mixed, tensor(case["expected"]["combined_adv"]))
    mask = torch.tensor(i["mask"])
    losses = PPO.policy_loss(tensor(i["log_probs"]), tensor(i["old_log_probs"]), unscaled(mixed, mask), mask)
    assert weighted(losses, mask, PPO.weights).item() == pytest.approx(case["expected"]["loss"], abs=1e-12)


@pytest.mark.parametrize(("multiplier", "plain"), [(0.0, "reward"), (1e9, "cost")])
def test_the_ends_of_the_multiplier_are_plain_ppo_on_one_channel(goldens, multiplier, plain):
    i = goldens["safe.ppo_lag.actor_loss.lambda_1.0"]["inputs"]
    advantages = {"reward": tensor(i["reward_adv"]), "cost": tensor(i["cost_adv"])}
    mixed = Lagrangian(Limit(), ProjectedAscent(multiplier=multiplier)).mix(advantages, {})
    alone = advantages["reward"] if plain == "reward" else -advantages["cost"]
    mask = torch.tensor(i["mask"])
    losses = [PPO.policy_loss(tensor(i["log_probs"]), tensor(i["old_log_probs"]), a, mask) for a in (mixed, alone)]
    found, expected = (weighted(each, mask, PPO.weights).item() for each in losses)
    assert found == pytest.approx(expected, abs=1e-8)
    if plain == "reward":
        assert found == pytest.approx(-0.152412830708959, abs=1e-12)


def test_the_value_loss_is_that_of_the_published_code(goldens):
    case = goldens["safe.critic_loss"]
    i = case["inputs"]
    losses = PPO.value_loss(tensor(i["values"]), tensor(i["old_values"]), tensor(i["returns"]))
    assert weighted(losses, torch.tensor(i["mask"]), PPO.weights).item() == pytest.approx(case["expected"]["loss"])


def test_leave_one_out_compares_each_return_with_the_other_samples_of_its_prompt():
    mask = length_mask(torch.tensor([2, 1, 2, 1]), 2)
    rewards = tensor([[1.0, 2.0], [5.0, 99.0], [0.0, 4.0], [7.0, 99.0]])
    group = torch.tensor([0, 0, 0, 1])
    found = RLOO.advantage(
        Experience(rewards=rewards, scores=rewards.sum(-1), values=torch.zeros(4, 2), mask=mask, group=group)
    )
    # returns 3, 5, 4 of prompt 0: minus the mean of the other two; the single sample of prompt 1 has no baseline
    assert found.advantages.tolist() == [[-1.5, -1.5], [1.5, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert found.returns.tolist() == [[3.0, 3.0], [5.0, 0.0], [4.0, 4.0], [7.0, 0.0]]


def test_a_trace_of_one_is_the_return_minus_the_value():
    mask = length_mask(torch.tensor([3]), 3)
    rewards, values = tensor([[1.0, 0.0, 2.0]]), tensor([[0.5, 4.0, -1.0]])
    found = gae_advantage(gae_lambda=1.0)(
        Experience(rewards=rewards, scores=rewards.sum(-1), values=values, mask=mask, group=torch.tensor([0]))
    )
    assert found.advantages.tolist() == [[2.5, -2.0, 3.0]]


def test_leave_one_out_trains_without_a_critic(make_trainer, weights_of):
    trainer = make_trainer(algorithm=RLOO)
    start = weights_of(trainer)
    metrics = trainer.step_at(0)
    after = weights_of(trainer)
    assert metrics["value_loss"] == 0.0
    assert all(torch.equal(after[name], start[name]) for name in trainer.critics.state_dict())
    assert any(not torch.equal(after[name], start[name]) for name in trainer.parameters)


def test_a_step_with_a_multiplier_of_zero_is_a_step_of_plain_ppo(make_trainer):
    constrained = make_trainer(objective=Lagrangian(Limit(), ProjectedAscent(multiplier=0.0)))
    plain = make_trainer(objective=Unconstrained())
    start = {name: p.detach().clone() for name, p in plain.parameters.items()}
    for trainer in (constrained, plain):
        trainer.step_at(0)
    assert any(not torch.equal(start[name], p) for name, p in plain.parameters.items())
    for name, parameter in plain.parameters.items():
        torch.testing.assert_close(constrained.parameters[name], parameter, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("base", [RLOO, PPO])
def test_kl_moved_to_the_loss_has_the_gradient_of_the_mean_kl_per_token_on_samples_of_the_policy(base):
    """All responses of two tokens, each as often as the policy says it: the expectation is exact."""
    logits = tensor([[0.3, -1.0, 0.5], [1.2, 0.0, -0.4]]).requires_grad_()
    reference = tensor([[0.0, 0.5, 0.1], [0.0, 0.0, 0.7]]).log_softmax(-1)
    policy = logits.log_softmax(-1)
    firsts, seconds = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    chosen = torch.stack([firsts.flatten(), seconds.flatten()], 1)  # [9, 2]
    of = lambda table: table.gather(1, chosen.T).T  # noqa: E731
    chances = of(policy).detach().sum(-1).exp()
    moved = kl_in_loss(base)
    assert moved.kl.in_reward is None
    weights = moved.weights(torch.ones(9, 2, dtype=torch.float64)) * 9 * chances[:, None]
    (moved.kl.in_loss(of(policy), of(reference)) * weights).sum().backward()
    found, logits.grad = logits.grad, None
    again = logits.log_softmax(-1)
    (again.exp() * (again - reference)).sum(-1).mean().backward()
    torch.testing.assert_close(found, logits.grad)


def test_a_short_answer_is_charged_as_much_kl_in_the_loss_as_a_long_one_that_strays_alike():
    mask = length_mask(torch.tensor([1, 8]), 8)
    logprobs, reference = torch.full((2, 8), -1.0), torch.full((2, 8), -2.0)
    moved = kl_in_loss(RLOO)
    charged = (moved.kl.in_loss(logprobs, reference) * moved.weights(mask.float())).sum(-1)
    assert charged[0] == charged[1] > 0
    in_reward = (RLOO.kl.in_reward(logprobs, reference) * mask).sum(-1)
    assert in_reward[1] == 8 * in_reward[0]
