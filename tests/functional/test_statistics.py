from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from poise.errors import DataError
from poise.functional import statistics
from poise.functional.intervals import student_mean
from poise.functional.statistics import (
    area_under_curve,
    arena_table,
    bootstrap_mean,
    bradley_terry_ratings,
    clopper_pearson,
    cohens_kappa,
    distinct_n,
    elo_difference,
    elo_estimate,
    elo_expected,
    expected_calibration_error,
    f1,
    fit_platt,
    paired_difference,
    ratio_of_sums,
    reliability_bins,
    share,
    wilson,
    win_rate,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (3, 17), (50, 100), (999, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_share_intervals_are_those_of_scipy(successes, n, level):
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        theirs = binomtest(successes, n).proportion_ci(level, method)
        estimate = ours(successes, n, level)
        assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert (estimate.value, estimate.n, estimate.unit, estimate.level) == (successes / n, n, "share", level)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_value_and_stays_inside_the_unit_interval(counts):
    estimate = wilson(*counts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_nothing_is_refused(successes, n):
    with pytest.raises(DataError, match="n >= 1"):
        wilson(successes, n)


def test_share_uses_wilson_for_single_samples_and_prompts_otherwise():
    flags = [True, False, True, False]
    assert share(flags, ["a", "b", "c", "d"]) == wilson(2, 4)
    assert "2 prompts" in share([True, True, False, True], ["a", "a", "b", "b"]).method


def test_bootstrap_of_a_mean_is_close_to_the_t_interval_and_repeats():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    estimate = bootstrap_mean(values, seed=3, unit="nats")
    half = 1.96 * values.std(ddof=1) / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)
    assert (estimate.method, estimate.unit, estimate.n) == ("BCa bootstrap", "nats", 400)
    assert estimate == bootstrap_mean(values, seed=3, unit="nats")


def test_copies_of_a_row_in_one_cluster_do_not_narrow_the_interval():
    values = np.random.default_rng(2).normal(size=60)
    single = bootstrap_mean(values)
    repeated, names = np.repeat(values, 10), np.repeat(np.arange(60), 10).tolist()
    clustered, naive = bootstrap_mean(repeated, clusters=names), bootstrap_mean(repeated)
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


def test_cluster_bootstrap_covers_the_truth_about_as_often_as_it_says():
    random, hits = np.random.default_rng(4), 0
    for trial in range(150):
        values = np.repeat(random.normal(size=40), 3) + random.normal(scale=0.3, size=120)
        estimate = bootstrap_mean(values, clusters=np.repeat(np.arange(40), 3).tolist(), resamples=300, seed=trial)
        hits += estimate.low <= 0 <= estimate.high
    assert hits / 150 > 0.87


def test_values_without_variation_claim_no_certainty():
    constant = bootstrap_mean([2.0, 2.0, 2.0])
    assert (constant.low, constant.high, constant.method) == (None, None, "no variation")
    sweep = win_rate([0.0] * 20, [1.0] * 20, [f"prompt {i // 2}" for i in range(20)])
    assert (sweep.low, sweep.high) == pytest.approx((wilson(10, 10).low, 1.0))
    assert sweep.method == "Wilson over 10 prompts"


def test_bootstrap_refuses_missing_scores_and_wrong_labels():
    with pytest.raises(DataError, match="finite"):
        bootstrap_mean([1.0, math.nan])
    with pytest.raises(DataError, match="finite"):
        bootstrap_mean([])
    with pytest.raises(DataError, match="1 cluster labels for 2 values"):
        bootstrap_mean([1.0, 2.0], clusters=["a"])


def test_paired_difference_sees_what_unpaired_intervals_hide():
    random = np.random.default_rng(5)
    before = random.normal(scale=10, size=100)
    after = before - 0.5 + random.normal(scale=0.1, size=100)
    estimate = paired_difference(before, after)
    assert estimate.value == pytest.approx((after - before).mean())
    assert estimate.high < -0.4
    assert bootstrap_mean(before).low < bootstrap_mean(after).high


def test_a_difference_of_shares_is_in_percentage_points():
    estimate = paired_difference([1, 1, 0, 0], [0, 0, 0, 0], unit="share")
    assert (estimate.value, estimate.unit) == (-50.0, "percentage points")


def test_paired_rows_must_match():
    with pytest.raises(DataError, match="1 before and 2 after"):
        paired_difference([1.0], [1.0, 2.0])


def test_win_rate_counts_ties_half_and_is_antisymmetric():
    before, after = [1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 5.0]
    assert win_rate(before, after).value == 0.625
    assert win_rate(after, before).value == 1 - 0.625


def test_elo_expected_gives_the_published_differences_of_beaver_v3():
    differences = [0.0, 244.91, 268.31, 363.86, 237.98]
    expected = [0.5, 0.8037368080386558, 0.8241203347808047, 0.89037199934157, 0.7973677129495772]
    assert [elo_expected(d) for d in differences] == pytest.approx(expected, abs=1e-12)


@given(st.floats(-1500, 1500))
def test_elo_difference_inverts_elo_expected(difference):
    assert elo_difference(elo_expected(difference)) == pytest.approx(difference, abs=1e-6)


def test_elo_stays_finite_with_half_a_win_added():
    assert elo_difference(1.0) == math.inf
    assert elo_difference(0.0) == -math.inf
    assert elo_difference(1.0, games=20) == pytest.approx(400 * math.log10(20.5 / 0.5))
    estimate = elo_estimate(wilson(20, 20))
    assert math.isfinite(estimate.high)
    assert estimate.unit == "Elo"
    with pytest.raises(DataError, match="win rate"):
        elo_difference(1.2)


def test_bradley_terry_of_two_players_is_the_elo_difference():
    ratings = bradley_terry_ratings([[0, 20], [80, 0]], anchor_rating=1000)
    assert ratings[0] == 1000
    assert ratings[1] - ratings[0] == pytest.approx(elo_difference(0.8))


def test_bradley_terry_solves_the_likelihood_equations():
    wins = np.array([[0, 7, 2], [3, 0, 6], [8, 4, 0]], dtype=float)
    ratings = bradley_terry_ratings(wins, anchor=1)
    games = wins + wins.T
    chance = np.array([[elo_expected(a - b) for b in ratings] for a in ratings])
    np.fill_diagonal(chance, 0)
    np.testing.assert_allclose((games * chance).sum(1), wins.sum(1), atol=1e-6)


def test_bradley_terry_arrives_where_players_are_joined_by_few_games():
    chain = np.zeros((20, 20))
    for i in range(19):  # each beats the next 200 times and loses once; no other two met
        chain[i, i + 1], chain[i + 1, i] = 200, 1
    step = elo_difference(200 / 201)
    np.testing.assert_allclose(bradley_terry_ratings(chain), 1000 - step * np.arange(20), atol=1e-6)
    leagues = np.kron(np.eye(2), 1000 * (1 - np.eye(3)))
    leagues[0, 3], leagues[3, 0] = 3, 1  # all that is known of how the leagues compare
    expected = np.repeat([1000.0, 1000 - elo_difference(0.75)], 3)
    np.testing.assert_allclose(bradley_terry_ratings(leagues), expected, atol=1e-6)


def test_ratings_know_neither_the_order_of_the_players_nor_the_number_of_games():
    wins, order = np.array([[0, 7, 2], [3, 0, 6], [8, 4, 0]], dtype=float), [2, 0, 1]
    ratings = bradley_terry_ratings(wins, anchor=1)
    np.testing.assert_allclose(bradley_terry_ratings(wins[order][:, order], anchor=2), ratings[order], atol=1e-9)
    np.testing.assert_allclose(bradley_terry_ratings(1000 * wins, anchor=1), ratings, atol=1e-9)


def test_the_anchor_moves_all_ratings_alike():
    wins = [[0, 7, 2], [3, 0, 6], [8, 4, 0]]
    first, last = bradley_terry_ratings(wins), bradley_terry_ratings(wins, anchor=-1, anchor_rating=0.0)
    np.testing.assert_allclose(last, first - first[2], atol=1e-9)
    assert last[2] == 0


def test_bradley_terry_names_the_way_out_when_a_player_never_loses():
    with pytest.raises(DataError, match=r"smoothing=0\.5"):
        bradley_terry_ratings([[0, 5], [0, 0]])
    assert np.isfinite(bradley_terry_ratings([[0, 5], [0, 0]], smoothing=0.5)).all()


def test_arena_table_counts_as_the_public_code_does():
    table = arena_table([1, 2, 3, 4, 5], [-1, 0, 0.5, 2, -3], [1, 3, 2, 6, 7], [-0.5, 1, -2, 0, 0.1])
    assert (table.better_safe, table.better_unsafe, table.worse_safe, table.worse_unsafe) == (1, 2, 2, 0)
    cells = (table.safe_to_safe, table.safe_to_unsafe, table.unsafe_to_safe, table.unsafe_to_unsafe)
    assert cells == (1, 2, 2, 0)
    assert table.win_rates["unsafe_to_unsafe"] is None
    assert table.win_rates["safe_to_unsafe"].value == 1.0
    assert table.win_rates["all"].value == 0.6


def test_calibration_error_by_hand():
    confidence, correct = [0.55, 0.62, 0.71, 0.88, 0.93, 0.97], [1, 0, 1, 1, 1, 0]
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.39666666666666667)
    assert expected_calibration_error([0.0, 1.0], [0, 1]) == 0
    assert sum(row.n for row in reliability_bins(confidence, correct, 4)) == 6
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        expected_calibration_error([1.2], [1])


def test_a_probability_on_an_edge_belongs_to_the_bin_below_it():
    edges = [i / 10 for i in range(11)]
    rows = reliability_bins(edges, [0] * 11)
    assert [row.n for row in rows] == [2] + [1] * 9  # 0 is in the first bin, with 0.1
    assert [row.high for row in rows] == pytest.approx(edges[1:])


def test_calibration_error_does_not_depend_on_the_order_of_the_rows():
    random = np.random.default_rng(8)
    chance, truth, order = random.random(50), random.random(50) < 0.4, random.permutation(50)
    error = expected_calibration_error(chance, truth)
    assert expected_calibration_error(chance[order], truth[order]) == pytest.approx(error, abs=1e-12)
    # constant forecasts have one bin: the gap between the promise and the share
    assert expected_calibration_error([0.3] * 4, [1, 1, 0, 1]) == pytest.approx(0.45)


def test_calibration_error_of_calibrated_forecasts_vanishes():
    random = np.random.default_rng(6)
    chance = random.random(200_000)
    assert expected_calibration_error(chance, random.random(200_000) < chance) < 0.01


def test_f1_by_hand():
    assert f1([True, True, False, False], [True, False, True, False]) == 0.5
    assert f1([False], [False]) is None


def test_kappa_by_hand():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, chance 0.5*0.6 + 0.5*0.4 = 0.5
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa(first, first) == 1
    assert cohens_kappa(["y"], ["y"]) is None


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["the cat sat on the mat now"] * 3, [2 / 7, 1 / 3, 1 / 3, 1 / 3, 1 / 3]),
        (["i am going", "i am going", "lets go i i"], [0.5, 5 / 7, 0.75, 1.0, 0.0]),
    ],
)
def test_distinct_n_pools_ngrams_over_the_texts(texts, expected):
    assert [distinct_n(texts, n) for n in range(1, 6)] == pytest.approx(expected)


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(9)
    scores, labels = random.integers(0, 5, 30).astype(float), random.random(30) < 0.4
    ahead = scores[labels][:, None] - scores[~labels]
    expected = ((ahead > 0) + 0.5 * (ahead == 0)).mean()
    found = area_under_curve(scores, labels, resamples=50)
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high
    stretched = area_under_curve(np.exp(scores), labels, resamples=50)
    assert (stretched.value, stretched.low, stretched.high) == (found.value, found.low, found.high)  # ranks alone count
    assert area_under_curve(-scores, labels, resamples=1).value == pytest.approx(1 - expected)


def test_the_area_under_the_curve_of_scores_that_say_nothing_is_a_half():
    assert area_under_curve([500.0] * 4, [0, 1, 1, 0], resamples=5).value == 0.5
    assert area_under_curve([-500.0, 500.0], [0, 1], resamples=5).value == 1.0
    with pytest.raises(DataError, match="both labels"):
        area_under_curve([1.0, 2.0], [1, 1])


def test_platt_recovers_the_slope_and_offset_that_made_the_labels():
    random = np.random.default_rng(7)
    scores = random.normal(scale=2, size=20_000)
    labels = random.random(20_000) < 1 / (1 + np.exp(-(1.5 * scores - 0.7)))
    scale = fit_platt(scores, labels)
    assert (scale.slope, scale.offset) == pytest.approx((1.5, -0.7), abs=0.06)
    assert scale.probability([0.7 / 1.5])[0] == pytest.approx(0.5, abs=0.02)


def test_platt_stays_finite_on_separable_scores_and_refuses_one_label():
    scale = fit_platt([-3.0, -1.0, 1.0, 3.0], [0, 0, 1, 1])
    assert 0 < scale.slope < 100
    with pytest.raises(DataError, match="both labels"):
        fit_platt([1.0, 2.0], [1, 1])


def test_every_public_name_exists():
    assert all(hasattr(statistics, name) for name in statistics.__all__)


def test_a_ratio_of_sums_weighs_rows_by_their_denominators():
    found = ratio_of_sums([1.0, 0.0, 3.0], [1.0, 1.0, 6.0])
    assert found.value == 0.5
    assert found.low <= 0.5 <= found.high
    assert ratio_of_sums([2.0] * 5, [4.0] * 5).low == 0.5  # nothing varies


def test_a_ratio_of_sums_over_clusters_resamples_them_whole():
    flags, clusters = [1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]
    found = ratio_of_sums(flags, [1.0] * 4, clusters)
    mean = bootstrap_mean(flags, clusters=clusters)
    assert (found.value, found.low, found.high) == (mean.value, mean.low, mean.high)


@pytest.mark.parametrize(
    ("above", "below"), [([1.0], [0.0]), ([1.0, 1.0], [1.0, -1.0]), ([1.0], [1.0, 2.0]), ([1.0], [math.nan])]
)
def test_a_ratio_without_a_denominator_is_refused(above, below):
    with pytest.raises(DataError):
        ratio_of_sums(above, below)


def test_the_mean_of_a_few_values_has_students_interval():
    from scipy.stats import t

    values = [1.0, 2.0, 4.0, 8.0, 9.0]
    found = student_mean(values)
    low, high = t.interval(0.95, 4, loc=np.mean(values), scale=np.std(values, ddof=1) / np.sqrt(5))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (student_mean([3.0]).value, student_mean([3.0]).low) == (3.0, None)
    assert (student_mean([3.0, 3.0]).low, student_mean([3.0, 3.0]).high) == (3.0, 3.0)
