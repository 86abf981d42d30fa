"""Prompts to rollouts: more prompts where too few are of use, greedy answers, and what failed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from poise.errors import FeedbackError
from poise.functional.groups import in_varied_group
from poise.rollout.scripted import ScriptedEngine
from poise.train.algorithms import Collection
from poise.train.collection import Collector, kept_rows
from poise.types import Prompt, Sampling, Scores

PROMPTS = [Prompt.of(letter) for letter in "abcdefgh"]
FILTER = Collection(keep=in_varied_group, draws=3)


def itself(scores, groups):
    return scores


class LengthScorer:
    """The reward is the length of the text; a text of question marks has no score."""

    def score(self, prompts, completions):
        return [
            Scores(values={}, unscorable="no verdict")
            if "?" in completion.text
            else Scores(values={"reward": float(len(completion.text))})
            for completion in completions
        ]


def collector(answer, collection=FILTER, seed=0, engine=ScriptedEngine):
    scripted = engine(answer)
    return scripted, Collector(
        engine=scripted,
        scorers=[LengthScorer()],
        sampling=Sampling(samples=2, seed=seed),
        collection=collection,
        shape_scores=lambda scores, groups: scores,
        pool=PROMPTS,
    )


def asked(engine):
    """The texts of the prompts of each request."""
    return [[prompt.text for prompt in prompts] for prompts, _ in engine.requests]


def varied(*letters):
    """Two samples of unequal length for these prompts, of equal length for all others."""
    return lambda prompt, sample: "x" * (1 + sample * (prompt.text in letters))


def test_without_a_rule_every_prompt_is_asked_once_and_all_samples_are_kept():
    engine, collect = collector(varied(), Collection())
    found = collect.collect(PROMPTS[:3])
    assert asked(engine) == [["a", "b", "c"]]
    assert (len(found.rollouts), found.num_asked, found.greedy_scores) == (6, 6, {})


def test_prompts_without_spread_are_made_up_for_by_others_and_stay_in_the_rollouts():
    engine, collect = collector(varied("a", "d", "e", "f", "g", "h"))
    found = collect.collect(PROMPTS[:3])  # b and c have no spread, every other prompt of the pool has
    assert asked(engine)[0] == ["a", "b", "c"]
    assert len(asked(engine)) == 2
    assert len(asked(engine)[1]) == 2
    assert set(asked(engine)[1]) < set("defgh")
    assert found.num_asked == len(found.rollouts) == 10


def test_draws_are_bounded_and_no_prompt_is_asked_twice():
    engine, collect = collector(varied())
    found = collect.collect(PROMPTS[:2])
    assert [len(texts) for texts in asked(engine)] == [2, 2, 2]
    texts = [text for request in asked(engine) for text in request]
    assert len(set(texts)) == len(texts) == 6
    assert len(found.rollouts) == 12


def test_a_pool_that_is_used_up_ends_the_draws():
    engine, collect = collector(varied())
    collect.collect(PROMPTS[:6])
    assert [len(texts) for texts in asked(engine)] == [6, 2]


def test_the_prompts_that_are_drawn_follow_from_the_seed():
    def drawn(seed):
        engine, collect = collector(varied(), seed=seed)
        collect.collect(PROMPTS[:2])
        return asked(engine)[1:]

    assert drawn(0) == drawn(0)
    assert len({str(drawn(seed)) for seed in range(5)}) > 1


def test_a_further_draw_that_fails_is_counted_and_does_not_stop_the_step():
    _, collect = collector(lambda prompt, sample: "x" if prompt.text in "ab" else "?")
    found = collect.collect(PROMPTS[:2])
    assert len(found.rollouts) == 4
    assert found.num_asked == 12


def test_greedy_answers_are_asked_once_for_each_prompt_without_temperature():
    engine, collect = collector(
        lambda prompt, sample: "x" * (1 + "abc".index(prompt.text) + 3 * sample), Collection(greedy=True)
    )
    found = collect.collect(PROMPTS[:3])
    assert asked(engine) == [["a", "b", "c"]] * 2
    assert [(s.temperature, s.samples) for _, s in engine.requests] == [(1.0, 2), (0.0, 1)]
    assert found.greedy_scores["reward"].tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert found.num_asked == 6


class Unsure(ScriptedEngine):
    """Answers with what cannot be scored to these prompts when it is greedy, and with the script otherwise."""

    def __init__(self, letters):
        super().__init__(varied())
        self.letters = letters

    def generate(self, prompts, sampling):
        found = super().generate(prompts, sampling)
        if sampling.temperature > 0:
            return found
        return [replace(c, text="?" if p.text in self.letters else "x") for p, c in zip(prompts, found, strict=True)]


def test_samples_whose_greedy_answer_has_no_score_are_left_out_and_counted():
    _, collect = collector("b", Collection(greedy=True), engine=Unsure)
    found = collect.collect(PROMPTS[:2])
    assert [rollout.prompt.text for rollout in found.rollouts] == ["a", "a"]
    assert found.num_asked == 4


def test_greedy_answers_none_of_which_can_be_scored_stop_the_step():
    _, collect = collector("ab", Collection(greedy=True), engine=Unsure)
    with pytest.raises(FeedbackError, match="none of 2 completions has a value"):
        collect.collect(PROMPTS[:2])


def test_a_row_is_kept_if_any_channel_is_varied():
    channels = {"reward": torch.tensor([1.0, 2.0, 3.0, 3.0]), "cost": torch.tensor([0.0, 0.0, 1.0, 1.0])}
    group = torch.tensor([0, 0, 1, 1])
    assert kept_rows(FILTER, itself, channels, group).tolist() == [True, True, False, False]
    assert kept_rows(FILTER, itself, channels | {"cost": torch.tensor([0.0, 0.0, 0.0, 1.0])}, group).all()
    assert kept_rows(Collection(), itself, channels, group).all()
