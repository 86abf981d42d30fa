"""Which rows a step sees: every epoch all of them, in an order that the seed and the step alone decide."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.data.batching import epoch_order, num_steps
from poise.errors import ConfigError

SIZES = st.integers(1, 30)


@settings(deadline=None)
@given(SIZES, SIZES, st.integers(0, 100))
def test_each_epoch_sees_every_row_once(size: int, per_step: int, seed: int) -> None:
    steps = -(-3 * size // per_step)
    seen = [index for step in range(steps) for index in epoch_order(size, per_step, step, seed=seed)]
    assert len(seen) == steps * per_step
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


@settings(deadline=None)
@given(SIZES, SIZES, st.integers(0, 50))
def test_a_step_is_the_same_whether_or_not_the_steps_before_it_were_asked_for(size: int, per_step: int, step: int):
    alone = epoch_order(size, per_step, step, seed=1)
    for earlier in range(step):
        epoch_order(size, per_step, earlier, seed=1)
    assert epoch_order(size, per_step, step, seed=1) == alone


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(0, 100))
def test_every_stretch_of_an_epoch_holds_the_strata_in_their_proportions(strata: list[str], seed: int) -> None:
    size = len(strata)
    order = epoch_order(size, size, 0, seed=seed, strata=strata)
    assert sorted(order) == list(range(size))
    for name in set(strata):
        share = strata.count(name) / size
        for length in range(1, size + 1):
            found = sum(strata[row] == name for row in order[:length])
            assert abs(found - share * length) < 2


def test_strata_leave_each_epoch_an_order_of_its_own():
    strata = ["a"] * 10 + ["b"] * 10
    assert len({tuple(epoch_order(20, 20, step, seed=0, strata=strata)) for step in range(4)}) == 4


def test_another_seed_and_another_epoch_give_another_order():
    orders = {tuple(epoch_order(20, 20, step, seed=seed)) for step in range(3) for seed in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize(
    ("size", "per_step", "epochs", "expected"),
    [(10, 5, 1, 2), (10, 3, 1, 4), (10, 3, 2, 7), (10, 4, 0.5, 2), (1, 64, 1, 1), (10, 5, 0.0, 1)],
)
def test_the_number_of_steps_covers_the_epochs(size: int, per_step: int, epochs: float, expected: int):
    assert num_steps(size, per_step, epochs) == expected


@pytest.mark.parametrize(("size", "per_step"), [(0, 4), (4, 0)])
def test_nothing_to_draw_from_is_an_error_that_says_so(size: int, per_step: int):
    with pytest.raises(ConfigError, match="at least 1"):
        epoch_order(size, per_step, 0, seed=0)
