from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from poise.errors import DataError
from poise.functional import statistics
from poise.functional.statistics import (
    area_under_curve,
    arena_table,
    bradley_terry_ratings,
    clopper_pearson,
    distinct_n,
    elo_difference,
    elo_estimate,
    elo_expected,
    expected_calibration_error,
    f1,
    fit_platt,
    mean,
    paired_difference,
    ratio_of_sums,
    reliability_bins,
    share,
    student_mean,
    win_rate,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (3, 17), (50, 100), (999, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_share_intervals_are_those_of_scipy(successes, n, level):
    theirs = binomtest(successes, n).proportion_ci(level, "exact")
    flags = [True] * successes + [False] * (n - successes)
    for estimate in (clopper_pearson(successes, n, level), share(flags, level=level)):
        assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert (estimate.value, estimate.n, estimate.unit, estimate.level) == (successes / n, n, "share", level)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6)), min_size=1, max_size=60))
def test_a_share_holds_its_value_and_stays_inside_the_unit_interval_with_some_width(rows):
    values, prompts = zip(*rows, strict=True)
    estimate = share(values, prompts)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.high - estimate.low > 0.05


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_nothing_is_refused(successes, n):
    with pytest.raises(DataError, match="n >= 1"):
        clopper_pearson(successes, n)


def test_a_share_counts_rows_of_single_prompts_and_no_more_than_prompts_whose_rows_are_all_alike():
    flags = [True, False, True, False]
    assert share(flags, ["a", "b", "c", "d"]) == clopper_pearson(2, 4)
    alike = share([True, True, False, False] * 5, [i // 2 for i in range(20)])
    assert (alike.low, alike.high) == pytest.approx((clopper_pearson(5, 10).low, clopper_pearson(5, 10).high))
    assert "10 prompts" in alike.method


@pytest.mark.parametrize("bad", [[1.5, 0.0], [-0.1, 0.2], [], [math.nan]])
def test_a_share_of_what_is_no_share_is_refused(bad):
    with pytest.raises(DataError):
        share(bad)


def test_the_interval_of_a_mean_of_many_values_is_close_to_students():
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    estimate = mean(values, unit="nats")
    half = 1.96 * values.std(ddof=1) / 20
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)
    assert estimate.method.startswith("t over 400 rows")
    assert (estimate.unit, estimate.n) == ("nats", 400)


def test_one_prompt_that_outweighs_the_rest_carries_no_interval():
    random = np.random.default_rng(3)
    lopsided = mean(random.normal(size=104), [0] * 100 + [1, 2, 3, 4])
    assert (lopsided.low, lopsided.high) == (None, None)
    assert "outweighs" in lopsided.method
    assert mean(random.normal(size=15), [i // 3 for i in range(15)]).low is not None
    assert mean([1.0, 2.0]).low is None


def test_copies_of_a_row_in_one_cluster_do_not_narrow_the_interval():
    values = np.random.default_rng(2).normal(size=60)
    single = mean(values)
    repeated, names = np.repeat(values, 10), np.repeat(np.arange(60), 10).tolist()
    clustered, naive = mean(repeated, names), mean(repeated)
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


def test_values_without_variation_claim_no_certainty():
    for constant in (mean([2.0, 2.0, 2.0]), student_mean([3.0, 3.0]), paired_difference([1.0] * 9, [2.0] * 9)):
        assert (constant.low, constant.high, constant.method) == (None, None, "no interval: nothing varies")
    sweep = win_rate([0.0] * 20, [1.0] * 20, [f"prompt {i // 2}" for i in range(20)])
    assert (sweep.low, sweep.high) == pytest.approx((clopper_pearson(10, 10).low, 1.0))


@pytest.mark.parametrize("clusters", [None, [i // 3 for i in range(30)]])
@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 1), (0, 0), (1, 1), (0.5, 0.5)])
def test_a_difference_of_shares_that_is_the_same_in_all_rows_has_an_interval_with_some_width(before, after, clusters):
    found = paired_difference([before] * 30, [after] * 30, clusters, unit="share")
    assert found.value == 100 * (after - before)
    assert -100 <= found.low <= found.value <= found.high <= 100
    assert found.high - found.low > 10


def test_a_difference_of_shares_is_no_surer_than_its_parts_and_turns_with_its_sides():
    random = np.random.default_rng(11)
    before, after = random.random(60) < 0.7, random.random(60) < 0.3
    found, turned = (paired_difference(a, b, unit="share") for a, b in ((before, after), (after, before)))
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
    copied = paired_difference(
        np.repeat(before, 4), np.repeat(after, 4), np.repeat(range(60), 4).tolist(), unit="share"
    )
    assert (copied.low, copied.high) == pytest.approx((found.low, found.high), abs=0.5)


def test_a_mean_refuses_missing_scores_and_wrong_labels():
    with pytest.raises(DataError, match="finite"):
        mean([1.0, math.nan])
    with pytest.raises(DataError, match="finite"):
        mean([])
    with pytest.raises(DataError, match="1 cluster labels for 2 values"):
        mean([1.0, 2.0], ["a"])


def test_paired_difference_sees_what_unpaired_intervals_hide():
    random = np.random.default_rng(5)
    before = random.normal(scale=10, size=100)
    after = before - 0.5 + random.normal(scale=0.1, size=100)
    estimate = paired_difference(before, after)
    assert estimate.value == pytest.approx((after - before).mean())
    assert estimate.high < -0.4
    assert mean(before).low < mean(after).high


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


def test_elo_is_smoothed_once_and_has_no_end_where_a_clean_sweep_may_be_the_truth():
    assert elo_difference(1.0) == math.inf
    assert elo_difference(0.0) == -math.inf
    assert elo_difference(1.0, games=20) == pytest.approx(400 * math.log10(20.5 / 0.5))
    won, lost = elo_estimate(clopper_pearson(20, 20)), elo_estimate(clopper_pearson(0, 20))
    assert (won.low, won.high) == (pytest.approx(elo_difference(clopper_pearson(20, 20).low)), None)
    assert (lost.low, lost.high) == (None, pytest.approx(-won.low))
    assert str(won) == "645.1 Elo [277.4 or more] (n=20)"
    assert str(lost) == "-645.1 Elo [-277.4 or less] (n=20)"
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
    found = area_under_curve(scores, labels)
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high
    stretched = area_under_curve(np.exp(scores), labels)
    assert (stretched.value, stretched.low, stretched.high) == (found.value, found.low, found.high)  # ranks alone count
    turned = area_under_curve(-scores, labels)
    assert (turned.value, turned.low, turned.high) == pytest.approx((1 - expected, 1 - found.high, 1 - found.low))


def test_the_area_under_the_curve_of_scores_that_say_nothing_is_a_half():
    assert area_under_curve([500.0] * 4, [0, 1, 1, 0]).value == 0.5
    with pytest.raises(DataError, match="both labels"):
        area_under_curve([1.0, 2.0], [1, 1])


def test_scores_that_part_the_labels_are_known_no_better_than_their_rarer_label():
    perfect = area_under_curve([0.0] * 50 + [1.0] * 5, [0] * 50 + [1] * 5)
    assert (perfect.value, perfect.low) == (1.0, pytest.approx(clopper_pearson(5, 5).low))
    in_prompts = area_under_curve([0.0] * 50 + [1.0] * 50, [0] * 50 + [1] * 50, [i // 10 for i in range(100)])
    assert in_prompts.low == pytest.approx(clopper_pearson(5, 5).low)


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
    assert ratio_of_sums([2.0] * 5, [4.0] * 5).low < 0.1  # five rows say little, and alike ones no more


@pytest.mark.parametrize(("above", "below"), [([0.0] * 20, [1.0] * 20), ([1.0] * 3, [1.0] * 3), ([0.0] * 5, [2.0] * 5)])
@pytest.mark.parametrize("unit", ["share", "ratio"])
def test_a_ratio_of_nothing_or_of_all_is_not_certain(above, below, unit):
    found = ratio_of_sums(above, below, unit=unit)
    if found.low is None:
        assert found.method.startswith("no interval")
    else:
        assert found.low <= found.value <= found.high
        assert found.high - found.low > 0.1


def test_a_ratio_of_two_shares_has_no_upper_end_where_the_one_below_may_vanish():
    found = ratio_of_sums([0.0] * 20 + [1.0] * 20, [0.0] * 39 + [1.0], [i // 20 for i in range(40)], unit="ratio")
    assert found.value == 20
    assert found.high is None or found.high > 100
    with pytest.raises(DataError, match="another unit"):
        ratio_of_sums([2.0], [1.0])


def test_a_ratio_to_the_number_of_rows_is_a_share_over_clusters():
    flags, clusters = [1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]
    found, same = ratio_of_sums(flags, [1.0] * 4, clusters), share(flags, clusters)
    assert (found.value, found.low, found.high) == (same.value, same.low, same.high)


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
    assert student_mean([0.99, 1.0, 0.97], unit="share").high == 1.0
    assert str(student_mean([0.99, 1.0, 0.9], unit="share")).count("100.0") == 1
