"""Truncated importance weights: their definition, what they make unbiased, and what the cap does."""

import pytest
import torch

from poise.errors import ConfigError
from poise.functional.importance import logprob_gap, truncated_importance_weights


def test_weights_are_ratios_up_to_the_cap():
    ours, engine = torch.randn(3, 5), torch.randn(3, 5)
    mask = torch.rand(3, 5) > 0.3
    weights = truncated_importance_weights(ours, engine, mask, cap=1.5)
    expected = torch.minimum(ours.exp() / engine.exp(), torch.tensor(1.5))
    torch.testing.assert_close(weights[mask], expected[mask])
    assert bool((weights[~mask] == 0).all())


def test_of_the_same_distribution_every_weight_is_one_and_a_hidden_nan_does_no_harm():
    logprobs = torch.tensor([[-1.0, -2.0, float("nan")]])
    mask = torch.tensor([[True, True, False]])
    weights = truncated_importance_weights(logprobs, torch.tensor([[-1.0, -2.0, 0.0]]), mask)
    assert weights.tolist() == [[1.0, 1.0, 0.0]]


def test_weighted_samples_of_the_engine_have_the_mean_of_the_policy():
    """Exactly, by summing over the whole vocabulary: sum_y mu(y) w(y) f(y) = sum_y pi(y) f(y) below the cap."""
    policy, engine = torch.randn(64).log_softmax(-1), torch.randn(64).log_softmax(-1)
    values, everything = torch.randn(64), torch.ones(1, 64, dtype=torch.bool)
    weights = truncated_importance_weights(policy[None], engine[None], everything, cap=1e6)[0]
    torch.testing.assert_close((engine.exp() * weights * values).sum(), (policy.exp() * values).sum())
    capped = truncated_importance_weights(policy[None], engine[None], everything, cap=1.0)[0]
    overlap = torch.minimum(policy.exp(), engine.exp()).sum()  # 1 - total variation distance
    torch.testing.assert_close((engine.exp() * capped).sum(), overlap)


def test_log_ratios_of_five_hundred_leave_weights_within_the_cap():
    ours, mask = torch.tensor([[500.0, -500.0, 0.0]]), torch.ones(1, 3).bool()
    weights = truncated_importance_weights(ours, torch.zeros(1, 3), mask)
    assert weights.tolist() == [[2.0, pytest.approx(0.0, abs=1e-20), 1.0]]
    assert float(logprob_gap(ours, torch.zeros(1, 3), mask)) == pytest.approx(1000 / 3)


def test_a_response_has_the_same_weights_alone_as_in_any_batch():
    ours, engine = torch.randn(3, 4), torch.randn(3, 4)
    mask = torch.tensor([4, 0, 2])[:, None] > torch.arange(4)
    whole = truncated_importance_weights(ours, engine, mask)
    for rows in ([0], [2, 1], [1, 2, 0]):
        assert torch.equal(truncated_importance_weights(ours[rows], engine[rows], mask[rows]), whole[rows])


def test_no_gradient_flows_through_the_weights():
    logprobs = torch.randn(2, 3, requires_grad=True)
    assert not truncated_importance_weights(
        logprobs, torch.randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    ).requires_grad


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_a_cap_that_is_none_is_refused(cap):
    one = torch.ones(1, 1)
    with pytest.raises(ConfigError, match="the largest weight of a token is above 0"):
        truncated_importance_weights(one, one, one.bool(), cap=cap)


def test_the_gap_reads_real_tokens_alone():
    mask = torch.tensor([[True, True, False]])
    gap = logprob_gap(torch.tensor([[0.0, -1.0, 7.0]]), torch.tensor([[0.0, -2.0, float("nan")]]), mask)
    assert float(gap) == 0.5
