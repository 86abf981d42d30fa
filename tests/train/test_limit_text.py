"""Limits as users write them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import ConfigError
from poise.functional.statistics import PlattScale
from poise.train.limit_text import parse_limit, require_groups
from poise.types import Prompt


@pytest.mark.parametrize(
    ("text", "channel", "measure", "alpha", "group", "at_most", "unit"),
    [
        ("cost <= -0.5", "cost", "mean", None, "", -0.5, "mean cost"),
        ("mean(cost) <= 1e-2", "cost", "mean", None, "", 0.01, "mean cost"),
        ("rate(cost) <= 0.02", "cost", "rate", None, "", 0.02, "share"),
        ("rate(cost)<=2%", "cost", "rate", None, "", 0.02, "share"),
        (" cvar0.1( cost ) <= 0 ", "cost", "cvar", 0.1, "", 0.0, "mean cost"),
        ("refusal@benign <= 0.05", "refusal", "mean", None, "benign", 0.05, "mean refusal"),
        ("rate(cost@theft) <= 5 %", "cost", "rate", None, "theft", 0.05, "share"),
    ],
)
def test_a_limit_is_read_as_it_is_written(text, channel, measure, alpha, group, at_most, unit) -> None:  # type: ignore[no-untyped-def]
    read = parse_limit(text)
    assert (read.channel, read.measure, read.alpha, read.group, read.unit) == (channel, measure, alpha, group, unit)
    assert read.at_most == pytest.approx(at_most)
    limit = read.limit()
    assert limit.channel == channel
    assert limit.at_most == read.at_most
    assert (limit.measure.among.name if limit.measure.among else "") == group


@pytest.mark.parametrize(
    "text",
    [
        *("", "cost", "cost < 1", "cost >= 1", "cost <= x", "rate(cost <= 1", "cost) <= 1", "rate(cost) <= 2", "<= 1"),
        *("cvar(cost) <= 0", "cvar0(cost) <= 0", "cvar2(cost) <= 0", "cvar0.1.2(cost) <= 0", "cost@ <= 1"),
        "reward <= nan",
    ],
)
def test_what_is_no_limit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"write it as|share|cvar0\.1"):
        parse_limit(text)


@given(st.floats(min_value=-1e6, max_value=1e6, allow_nan=False))
def test_every_number_survives_being_written(number: float) -> None:
    assert parse_limit(f"cost <= {number!r}").at_most == number


def test_a_rate_uses_the_calibration_of_its_channel() -> None:
    plain = parse_limit("rate(cost) <= 0.5").limit()
    calibrated = parse_limit("rate(cost) <= 0.5").limit({"cost": PlattScale(slope=1.0, offset=0.0)})
    scores = torch.tensor([0.0, 3.0])
    assert plain.measure.costs(scores, scores).tolist() == [0.0, 1.0]
    assert calibrated.measure.costs(scores, scores)[0] == pytest.approx(0.5)


def test_a_group_without_prompts_is_an_error_that_lists_the_groups() -> None:
    prompts = [Prompt.of("a", kind="harmful", categories=("theft",)), Prompt.of("b", kind="benign")]
    limits = [parse_limit("cost@theft <= 0"), parse_limit("refusal@harmless <= 0.1")]
    require_groups(limits, prompts)
    with pytest.raises(ConfigError, match=r"'thefts'.*benign.*theft"):
        require_groups([parse_limit("cost@thefts <= 0")], prompts)
