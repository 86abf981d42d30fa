"""Advantages, divergences and groups against numbers computed apart from this package, in float64, to 1e-9."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from poise.functional.advantages import (
    group_centred,
    group_normalised,
    leave_one_out,
    return_to_go,
    zero_variance_shaping,
)
from poise.functional.divergences import kl_k1, kl_k2, kl_k3
from poise.functional.group_invariance import better_group, soft_group_means, variance_between_groups
from poise.functional.groups import (
    batch_deviation,
    group_mean,
    in_undecided_group,
    in_varied_group,
    sample_deviation,
)
from poise.functional.masked import masked_mean, standardise
from poise.functional.policy_losses import clipped_surrogate
from poise.functional.rewards import shape_rewards

CASES = {case["name"]: case for case in json.loads((Path(__file__).parent / "goldens" / "estimators.json").read_text())}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def groups_of(i):
    return torch.arange(len(i["rewards"])) // i["group_size"]


def ragged(rows):
    """Rows of unequal length as a padded tensor, with nonsense behind their ends, and its mask."""
    width = max(map(len, rows))
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    return torch.stack([F.pad(tensor(row), (0, width - len(row)), value=99.0) for row in rows]), mask


def group_normalisation(i):
    rewards, group = tensor(i["rewards"]), groups_of(i)
    return {
        "advantages": group_normalised(rewards, group, epsilon=i["eps"]),
        "std_per_group": sample_deviation(rewards, group)[:: i["group_size"]],
    }


def batch_scale(i):
    rewards, group = tensor(i["rewards"]), groups_of(i)
    return {
        "advantages": group_normalised(rewards, group, deviation=batch_deviation, epsilon=i["eps"]),
        "batch_std": batch_deviation(rewards, group)[0],
    }


def rloo(i):
    rewards = tensor(i["rewards"])
    advantages = leave_one_out(rewards, groups_of(i))
    return {"advantages": advantages, "baseline": rewards - advantages}


def reinforce_plus_plus(i):
    kl, mask, scores = tensor(i["token_kl_k1"]), torch.tensor(i["mask"]).bool(), tensor(i["rewards"])
    rewards = shape_rewards(scores, kl, torch.zeros_like(kl), mask, kl_coef=i["kl_coef"], sign=1)
    returns = return_to_go(rewards, mask, i["gamma"])
    if i["group_size"]:
        returns = (returns - group_mean(scores, groups_of(i))[:, None]) * mask
    return {
        "returns": returns,
        "advantages_masked": standardise(returns, mask, epsilon=0.0, floor=1e-8),
        "mean": masked_mean(returns, mask),
        "var_population": returns[mask].var(correction=0),
    }


def divergences(i):
    pair = tensor(i["logp_policy"]), tensor(i["logp_ref"])
    return {name: estimate(*pair) for name, estimate in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3))}


def dynamic_filter(i):
    rewards, group, (low, high) = tensor(i["rewards"]), groups_of(i), i["range"]
    varied = in_varied_group(rewards, group)
    assert torch.equal(varied, in_undecided_group(rewards, group, low=low, high=high))
    return {"keep_group": varied[:: i["group_size"]]}


def zero_variance(i):
    entropies, mask = ragged(i["token_entropy"])
    scores, group = tensor(i["rewards"]), torch.zeros(len(i["rewards"]), dtype=torch.int64)
    normal = group_normalised(scores, group, epsilon=i["grpo_eps"])[:, None] * mask
    shaped = normal + zero_variance_shaping(scores, group, entropies, mask, alpha=i["alpha"])
    return {"token_advantages": shaped[mask]}


def zero_variance_loss(i):
    ratios, mask = ragged(i["ratio"])
    advantages = torch.zeros_like(ratios)
    advantages[mask] = zero_variance({**i, "grpo_eps": 1e-6})["token_advantages"]
    losses = clipped_surrogate(
        ratios.log(), torch.zeros_like(ratios), advantages, clip=i["eps_low"], clip_high=i["eps_high"]
    )
    return {"loss": masked_mean(losses, mask), "loss_per_token": losses[mask]}


def group_invariance(i):
    returns, membership = tensor(i["returns"]), tensor(i["p_group1"])
    held = better_group(returns, membership)
    token = torch.ones(len(returns), 1, dtype=torch.bool)
    kl = tensor(i["kl"])[:, None]
    shaped = shape_rewards(returns, kl * held[:, None], torch.zeros_like(kl), token, kl_coef=i["eta"], sign=1)
    return {
        "group_means": torch.stack(soft_group_means(returns, membership)),
        "variance_of_group_means": variance_between_groups(returns, membership),
        "p_high": held,
        "shaped_reward": shaped[:, 0],
    }


CHECKS = {
    "grpo_": group_normalisation,
    "grpo_trl_batch_std": batch_scale,
    "rloo": rloo,
    "reinforce_pp": reinforce_plus_plus,
    "kl_estimators": divergences,
    "dapo_dynamic_filter": dynamic_filter,
    "rl_zvp_": zero_variance,
    "rl_zvp_clipped_loss": zero_variance_loss,
    "gil_": group_invariance,
}


def check_for(name):
    """The check with the longest matching prefix."""
    return CHECKS[max((prefix for prefix in CHECKS if name.startswith(prefix)), key=len)]


def flat(values):
    """Nested lists, ragged ones too, as one row of numbers."""
    if isinstance(values, list):
        return [number for value in values for number in flat(value)]
    return [float(values)]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name):
    case = CASES[name]
    found = check_for(name)(case["inputs"])
    assert case["expected"].keys() <= found.keys()
    for key in case["expected"]:
        expected = tensor(flat(case["expected"][key]))
        torch.testing.assert_close(found[key].double().reshape(-1), expected, rtol=0, atol=1e-9)


def test_every_check_has_a_reference_value():
    assert {check_for(name) for name in CASES} == set(CHECKS.values())


def test_dr_grpo_is_grpo_without_its_scale():
    i = CASES["rloo"]["inputs"]
    rewards, group = tensor(i["rewards"]), groups_of(i)
    unscaled = group_normalised(rewards, group, deviation=lambda x, g: torch.ones_like(x), epsilon=0.0)
    assert torch.equal(group_centred(rewards, group), unscaled)
    torch.testing.assert_close(leave_one_out(rewards, group), unscaled * 4 / 3)


def test_a_golden_of_the_wrong_convention_is_noticed():
    case = CASES["grpo_trl_group_std_ddof1_eps1e-4"]
    rewards, group = tensor(case["inputs"]["rewards"]), groups_of(case["inputs"])
    population = partial(group_normalised, deviation=lambda x, g: sample_deviation(x, g) * 0.75**0.5)
    assert (population(rewards, group)[:4].abs() - 1.0).abs().max() < 1e-3  # +-1 with n, +-0.866 with n - 1
