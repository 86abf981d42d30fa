"""A recipe's signature as its command line."""

from __future__ import annotations

import pytest
from typer import BadParameter

from poise.cli.options import parse_options


def recipe(
    *,
    limit: float | tuple[str, ...] = -0.5,
    limits: tuple[str, ...] = (),
    betas: tuple[float, ...] | None = (0.1,),
    names: list[str] | None = None,
    seed: int = 0,
    seeds: int | tuple[int, ...] = 5,
):
    """A recipe with options that hold lists."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--limits", "cost <= -0.5"], {"limits": ("cost <= -0.5",)}),
        (
            ["--limits", "cost <= -0.5", "--seed", "3", "--limits", "refusal@benign <= 5 %"],
            {"limits": ("cost <= -0.5", "refusal@benign <= 5 %"), "seed": 3},
        ),
        (["--betas", "0.1,0.5", "--betas=1"], {"betas": (0.1, 0.5, 1.0)}),
        (["--names", "a, b", "--names", "c"], {"names": ["a", "b", "c"]}),
        (["--betas", "none"], {"betas": None}),
        (["--limit", "-0.6"], {"limit": -0.6}),
        (["--limit", "cost <= -0.5"], {"limit": ("cost <= -0.5",)}),
        (["--limit", "-0.6", "--limit", "cost <= 0"], {"limit": (-0.6, "cost <= 0")}),
    ],
)
def test_an_option_that_holds_a_list_may_be_given_several_times_or_with_commas(words, expected):
    assert parse_options(recipe, words, program="poise run it") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("3", 3), ("0,1,2", (0, 1, 2)), ("0-2", (0, 1, 2)), ("0..2,7", (0, 1, 2, 7)), ("4-4", (4,))]
)
def test_whole_numbers_may_be_given_as_ranges(text, expected):
    assert parse_options(recipe, ["--seeds", text], program="poise run it") == {"seeds": expected}


def test_a_range_that_counts_down_is_refused():
    with pytest.raises(BadParameter, match="counts down"):
        parse_options(recipe, ["--seeds", "3-1"], program="poise run it")
