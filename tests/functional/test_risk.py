import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.functional.advantages import gae, return_to_go
from poise.functional.divergences import adapt_kl_coefficient
from poise.functional.masked import masked_mean, standardise
from poise.functional.policy_losses import clipped_surrogate
from poise.functional.risk import (
    conditional_value_at_risk,
    evenly_of_rest,
    first_return,
    harm_probability,
    is_harm,
    reference_soft_risk_count,
    soft_risk_count,
    tail_costs,
    value_at_risk,
    worst,
    worst_count,
)
from poise.functional.statistics import PlattScale, fit_platt
from poise.functional.value_losses import clipped_value_loss

PATH = Path(__file__).parent / "goldens" / "risk_averse.json"
CASES = {case["name"].removeprefix("ra."): case for case in json.loads(PATH.read_text())}
NUMBERS = st.lists(st.floats(-100, 100), min_size=1, max_size=30)
SHARES = st.floats(0.01, 1)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=tolerance)


def schedule(given, count=soft_risk_count):
    settings = {"steps": given["M"], "episodes": given["B"], "alpha": given["alpha"], "warm_up": given["n"]}
    return [count(step, **settings, end=given["rho"]) for step in given.get("iterations", range(given["M"]))]


@pytest.mark.parametrize("name", ["imdb", "jigsaw"])
@pytest.mark.parametrize("count", [soft_risk_count, reference_soft_risk_count])
def test_the_schedule_keeps_as_many_as_the_published_code(name, count):
    case = CASES[f"schedule.{name}"]
    assert schedule(case["inputs"], count) == case["expected"]["keep"]


def test_the_schedule_of_the_first_task_learns_from_three_quarters_of_what_is_generated():
    case = CASES["schedule.imdb_total_used"]
    trained, generated = sum(schedule(case["inputs"])), case["inputs"]["M"] * case["inputs"]["B"]
    assert (trained, generated) == (case["expected"]["total_episodes_trained"], case["expected"]["total_generated"])
    assert trained / generated == case["expected"]["fraction"]


def test_ceilings_are_exact_and_the_authors_are_not():
    case = CASES["schedule.ceil_float_trap"]
    assert schedule(case["inputs"]) == case["expected"]["exact"]
    assert schedule(case["inputs"], reference_soft_risk_count) == case["expected"]["naive_float64"]


@given(st.integers(1, 100), st.integers(1, 500))
def test_a_share_in_per_cent_is_counted_without_rounding(per_cent, episodes):
    assert worst_count(per_cent / 100, episodes) == max(1, math.ceil(Fraction(per_cent, 100) * episodes))


@given(SHARES, st.integers(0, 80), st.floats(0.05, 1), st.integers(1, 64))
def test_the_schedule_never_rises_and_runs_from_all_to_the_worst_share(alpha, warm_up, end, episodes):
    settings = {"steps": 60, "episodes": episodes, "alpha": alpha, "warm_up": warm_up, "end": end}
    counts = [soft_risk_count(step, **settings) for step in range(60)]
    assert counts[: warm_up + 1] == [episodes] * min(60, warm_up + 1)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= worst_count(alpha, episodes)
    if warm_up < math.ceil(end * 60) < 60:
        assert counts[-1] == worst_count(alpha, episodes)


def test_the_share_one_keeps_all_at_every_step():
    settings = {"steps": 50, "episodes": 7, "alpha": 1.0, "warm_up": 3, "end": 0.9}
    assert {soft_risk_count(step, **settings) for step in range(50)} == {7}


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, 40, math.nan])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match="share of"):
        worst_count(share, 10)
    with pytest.raises(ConfigError, match="share of"):
        soft_risk_count(0, steps=10, episodes=4, alpha=share, warm_up=1, end=0.9)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_worst_are_those_of_the_published_code_ties_included(k):
    case = CASES[f"select.k_{k}"]
    returns = tensor(case["inputs"]["returns"])
    kept = worst(returns, k)
    assert kept.tolist() == case["expected"]["keep"]
    assert kept.sum() == case["expected"]["num_kept"]
    assert returns[kept].max() == -value_at_risk(-returns, k / 8) == case["expected"]["quantile"]


@given(NUMBERS, st.randoms(use_true_random=False))
def test_the_worst_do_not_depend_on_the_order_of_the_batch(values, random):
    order = random.sample(range(len(values)), len(values))
    count = random.randint(1, len(values))
    assert torch.equal(worst(tensor(values), count)[order], worst(tensor(values)[order], count))
    assert worst(tensor(values), len(values)).all()


@pytest.mark.parametrize("count", [0, 4])
def test_a_count_that_the_batch_does_not_have_is_refused(count):
    with pytest.raises(ConfigError, match=f"worst {count} of 3"):
        worst(tensor([1.0, 2.0, 3.0]), count)


@given(NUMBERS, st.floats(0, 1), st.data())
def test_of_the_rest_a_share_is_marked_and_never_what_is_kept(values, share, data):
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    marked = evenly_of_rest(tensor(values), kept, share)
    assert not (marked & kept).any()
    assert int(marked.sum()) == math.floor(int((~kept).sum()) * share)


def test_the_rest_is_taken_evenly_over_its_ranks():
    returns = tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0])
    kept = returns < 0.5
    assert returns[evenly_of_rest(returns, kept, 0.5)].sort().values.tolist() == [2, 4]
    assert returns[evenly_of_rest(returns, kept, 0.2)].tolist() == [5]
    assert not evenly_of_rest(returns, kept, 0.0).any()
    assert torch.equal(evenly_of_rest(returns, kept, 1.0), ~kept)
    shuffled = torch.tensor([3, 0, 5, 1, 2, 4])
    found = evenly_of_rest(returns[shuffled], kept[shuffled], 0.5)
    assert torch.equal(found, evenly_of_rest(returns, kept, 0.5)[shuffled])


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_of_the_rest_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match="share of the rest"):
        evenly_of_rest(tensor([1.0]), torch.tensor([False]), share)


def test_value_at_risk_and_its_tail_mean_equal_the_definition_on_the_low_end_of_returns():
    case = CASES["cvar.empirical"]
    losses, alpha = -tensor(case["inputs"]["returns"]), case["inputs"]["alpha"]
    assert -value_at_risk(losses, alpha).item() == case["expected"]["var"]
    assert -conditional_value_at_risk(losses, alpha).item() == case["expected"]["cvar"]


def test_the_mean_of_the_worst_with_their_ties_is_the_mean_below_the_quantile():
    returns = tensor(CASES["cvar.empirical"]["inputs"]["returns"])
    quantile = -value_at_risk(-returns, 0.375)  # the third worst of eight, and the fourth ties with it
    below = returns[worst(returns, worst_count(0.375, 8))].mean()
    assert below.item() == returns[returns <= quantile].mean().item() == pytest.approx((-2 - 2 - 0.3 - 0.3) / 4)
    assert -conditional_value_at_risk(-returns, 0.375).item() == pytest.approx((-2 - 2 - 0.3) / 3)


def test_a_part_of_an_episode_counts_in_part():
    # the worst 1.2 of three costs: all of 6 and a fifth of 3, over 1.2
    assert conditional_value_at_risk(tensor([1.0, 6.0, 3.0]), 0.4).item() == pytest.approx((6 + 0.2 * 3) / 1.2)


@given(NUMBERS)
def test_the_whole_tail_is_the_mean(values):
    costs = tensor(values)
    torch.testing.assert_close(conditional_value_at_risk(costs, 1.0), costs.mean())
    torch.testing.assert_close(tail_costs(costs, costs, 1.0), costs)


@given(NUMBERS, SHARES)
def test_the_quantile_attains_the_minimum_that_defines_the_tail_mean(values, alpha):
    costs = tensor(values)
    found = conditional_value_at_risk(costs, alpha).item()
    bounds = [(t + (costs - t).clamp(min=0).mean() / alpha).item() for t in values]  # the minimum lies at a cost
    assert found == pytest.approx(min(bounds), abs=1e-8)
    assert costs.mean().item() - 1e-9 <= found <= costs.max().item() + 1e-9


@given(NUMBERS, SHARES, st.floats(0.1, 3), st.floats(-5, 5))
def test_the_tail_mean_moves_with_shift_and_scale(values, alpha, scale, shift):
    costs = tensor(values)
    found = conditional_value_at_risk(scale * costs + shift, alpha)
    torch.testing.assert_close(found, scale * conditional_value_at_risk(costs, alpha) + shift, rtol=1e-9, atol=1e-8)


def test_the_tail_mean_of_few_episodes_is_too_low_on_average():
    costs = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = conditional_value_at_risk(costs, 0.1)
    small = torch.stack([conditional_value_at_risk(batch, 0.1) for batch in costs.view(400, 10)]).mean()
    large = torch.stack([conditional_value_at_risk(batch, 0.1) for batch in costs.view(20, 200)]).mean()
    assert small < whole - 0.1
    assert (large - whole).abs() < 0.05


def test_no_costs_have_no_quantile():
    with pytest.raises(ConfigError, match="at least one cost"):
        value_at_risk(tensor([]), 0.5)


PROBABILITIES = tensor([0.35, 0.2, 0.15, 0.15, 0.1, 0.05])  # of six responses, so that 20 episodes have them exactly
SIX_COSTS = tensor([-1.0, 0.2, 0.5, 1.5, 3.0, 7.0])
ACTIONS = torch.repeat_interleave(torch.arange(6), (20 * PROBABILITIES).round().long())


def exact_cvar(logits, alpha):
    """The minimum over t of t + E[(c - t)+] / alpha, by its definition."""
    probabilities = logits.softmax(-1)
    bounds = SIX_COSTS + (probabilities * (SIX_COSTS[None] - SIX_COSTS[:, None]).clamp(min=0)).sum(-1) / alpha
    return bounds.min()


def policy_gradient(costs):
    """The score-function estimate from episodes that hold each response exactly as often as its probability says."""
    logits = PROBABILITIES.log().requires_grad_()
    (costs * logits.log_softmax(-1)[ACTIONS]).mean().backward()
    return logits.grad


@pytest.mark.parametrize("alpha", [0.07, 0.12, 0.28, 0.5, 0.77, 1.0])
def test_the_policy_gradient_of_tail_costs_is_the_gradient_of_the_tail_mean(alpha):
    logits = PROBABILITIES.log().requires_grad_()
    exact_cvar(logits, alpha).backward()
    costs = SIX_COSTS[ACTIONS]
    found = policy_gradient(tail_costs(costs, costs, alpha))
    torch.testing.assert_close(found, logits.grad, rtol=0, atol=1e-12)
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(tail_costs(costs, costs, alpha).mean(), exact_cvar(PROBABILITIES.log(), alpha))
    assert torch.autograd.gradcheck(lambda x: exact_cvar(x, alpha), logits)


def test_a_tail_in_which_all_costs_are_the_highest_pushes_nowhere():
    costs = tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    assert policy_gradient(tail_costs(SIX_COSTS[ACTIONS], SIX_COSTS[ACTIONS], 0.03)).abs().max() < 1e-12
    assert tail_costs(costs, costs, 0.5).tolist() == [1.0] * 5


@pytest.mark.parametrize("harm", [is_harm, lambda costs: harm_probability(costs, 1.7, -0.4)])
def test_the_policy_gradient_of_a_rate_is_the_gradient_of_the_share_of_harm(harm):
    logits = PROBABILITIES.log().requires_grad_()
    (logits.softmax(-1) * harm(SIX_COSTS)).sum().backward()
    torch.testing.assert_close(policy_gradient(harm(SIX_COSTS[ACTIONS])), logits.grad, rtol=0, atol=1e-12)


def test_costs_far_out_neither_overflow_nor_lose_the_tail():
    costs = torch.tensor([-500.0, 500.0, 0.0])
    assert conditional_value_at_risk(costs, 1 / 3).item() == pytest.approx(500.0)
    assert tail_costs(costs, costs, 0.01).isfinite().all()
    assert harm_probability(costs, 3.0, 0.0).tolist() == [0.0, 1.0, 0.5]
    assert worst(costs, 1).tolist() == [True, False, False]


def test_a_probability_of_harm_is_that_of_its_calibration():
    scale = fit_platt([-2.0, -1.0, 0.5, 2.0, 0.1], [0, 0, 1, 1, 0])
    scores = [-1.5, 0.0, 3.0]
    assert isinstance(scale, PlattScale)
    close(harm_probability(tensor(scores), scale.slope, scale.offset), scale.probability(scores).tolist())


def test_the_lambda_return_of_the_first_token_ranks_as_the_published_code():
    case = CASES["return.lambda_return_compat"]
    i = case["inputs"]
    mask = torch.tensor(i["mask"]).bool()
    result = gae(tensor(i["token_rewards"]), tensor(i["values"]), mask, discount=i["gamma"], trace=i["gae_lambda"])
    found = first_return(result.returns, mask)
    close(found, case["expected"]["lambda_return"])
    assert found.argsort().tolist() == case["expected"]["worst_first"]


def test_the_monte_carlo_return_is_the_lambda_return_at_trace_one_whatever_the_critic_says():
    i = CASES["return.lambda_return_compat"]["inputs"]
    mask, rewards, values = torch.tensor(i["mask"]).bool(), tensor(i["token_rewards"]), tensor(i["values"])
    close(first_return(gae(rewards, values, mask, trace=1.0).returns, mask), rewards.sum(-1).tolist())
    assert torch.equal(first_return(return_to_go(rewards, mask), mask).argsort(), rewards.sum(-1).argsort())


def test_advantages_are_standardised_over_kept_episodes_alone():
    case = CASES["whiten_after_mask"]
    mask = torch.tensor(case["inputs"]["mask"]).bool()
    found = standardise(tensor(case["inputs"]["advantages"]), mask, correction=1)
    assert masked_mean(found, mask).abs() < 1e-12
    for row in (0, 2):
        close(found[row, 3:], case["expected"]["whitened_response"][row])
    assert (found[1] == 0).all()


def test_episodes_that_are_not_kept_give_no_gradient_to_policy_or_critic():
    torch.manual_seed(0)
    mask = torch.ones(4, 3, dtype=torch.bool) & worst(tensor([3.0, -1.0, 0.0, 2.0]), 2)[:, None]
    logprobs, values = torch.randn(4, 3).requires_grad_(), torch.randn(4, 3).requires_grad_()
    weights = mask / mask.sum()
    advantages = standardise(torch.randn(4, 3), mask)
    (clipped_surrogate(logprobs, logprobs.detach(), advantages) * weights).sum().backward()
    (clipped_value_loss(values, values.detach(), torch.randn(4, 3)) * weights).sum().backward()
    for gradient in (logprobs.grad, values.grad):
        assert (gradient[[0, 3]] == 0).all()
        assert (gradient[[1, 2]] != 0).all()


def test_the_kl_of_kept_episodes_moves_the_coefficient_up_where_dividing_by_all_moves_it_down():
    case = CASES["kl_divisor"]
    i, expected = case["inputs"], case["expected"]
    kl, keep = tensor(i["sequence_kl"]), torch.tensor(i["keep"]).bool()
    assert masked_mean(kl, keep).item() == expected["paper_mean_over_kept"]
    share = keep.double().mean()
    assert (masked_mean(kl, keep) * share).item() == expected["repo_mean_over_all"]
    moved = [
        adapt_kl_coefficient(i["beta"], mean, i["target"], i["K_beta"])
        for mean in (expected["paper_mean_over_kept"], expected["repo_mean_over_all"])
    ]
    assert moved == pytest.approx([expected["beta_paper"], expected["beta_repo"]], abs=1e-12)
    assert moved[0] > i["beta"] > moved[1]
