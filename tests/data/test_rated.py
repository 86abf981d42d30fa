"""Rated pairs: margins and winners that agree, sides by prompt, targets from margins."""

import math
from dataclasses import replace

import pytest

from poise.data.rated import rated_pairs, split_rated_pairs, with_margin_targets, without_margins
from poise.errors import ConfigError
from poise.train.responses import ranked_pairs
from poise.types import Comparison, Dataset, Prompt


@pytest.fixture(scope="module")
def rated():
    return rated_pairs("starter", pairs_per_prompt=2)


def test_pairs_of_rated_responses_have_margins_and_winners_that_agree(rated):
    assert all(each.margin > 0 for each in rated.comparisons)
    per_prompt = {}
    for each in rated.comparisons:
        per_prompt[each.prompt.id] = per_prompt.get(each.prompt.id, 0) + 1
    assert max(per_prompt.values()) == 2
    assert {each.winner for each in rated.comparisons} == {0, 1}


def test_no_prompt_is_on_two_sides_and_a_limit_holds_for_all_sides_together(rated):
    sides = split_rated_pairs(rated, most_prompts=30)
    asked = [{each.prompt.id for each in side.comparisons} for side in sides.values()]
    assert sum(map(len, asked)) == len(set.union(*asked)) == 30
    assert {each.prompt.id for each in rated.comparisons[:1]} <= set.union(*asked)


@pytest.mark.parametrize("winner", [0, 1])
def test_the_soft_target_favours_the_winner_by_its_margin(winner):
    pair = Comparison(prompt=Prompt.of("p"), responses=("a", "b"), winner=winner, margin=2.0)
    data = with_margin_targets(Dataset(name="one", comparisons=(pair,)), gamma=0.5)
    ((best, other, probability),) = ranked_pairs(data.comparisons[0])
    assert (best, other) == (winner, 1 - winner)
    assert probability == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert without_margins(data).comparisons[0] == replace(data.comparisons[0], margin=0.0)


def test_a_set_without_margins_is_an_error_that_names_sets_with_some(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(ConfigError, match=r"no comparisons with margins.*odpo-sentiment"):
        rated_pairs(str(tmp_path / "pairs.jsonl"), pairs_per_prompt=1)
