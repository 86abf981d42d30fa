"""Limits as objectives: what their controllers start from, and how strongly they answer."""

import pytest

from poise.errors import ConfigError
from poise.pipeline.limits import CALM_GAINS, GAINS, START, read_limits, under_limits

TWO = read_limits(["cost <= -0.5", "refusal@harmless <= 5 %"])


def test_gains_and_first_multipliers_are_settings_with_defaults():
    assert under_limits(TWO).multipliers == {"cost": START, "refusal_harmless": START}
    assert under_limits(TWO, start=1.5).multipliers == {"cost": 1.5, "refusal_harmless": 1.5}
    for gains in (GAINS, CALM_GAINS):
        watch = under_limits(TWO, gains=gains, start={"cost": 1.0, "refusal_harmless": 2.0}).watches[1]
        watch.controller.update(0.1, 0.0)
        assert watch.controller.multiplier == pytest.approx(2.0 + 0.1 * (gains.proportional + gains.integral))


@pytest.mark.parametrize("start", [{}, {"cost": 1.0}, {"cost": 1.0, "refusal": 1.0}])
def test_first_multipliers_that_name_other_limits_than_there_are_are_refused(start):
    with pytest.raises(ConfigError, match="refusal_harmless"):
        under_limits(TWO, start=start)
