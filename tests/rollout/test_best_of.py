"""The best of n answers: which are chosen, and what happens where a scorer has nothing to say."""

import pytest

from poise.errors import ConfigError
from poise.rollout.best_of import BestOfEngine
from poise.rollout.scripted import ScriptedEngine
from poise.types import Prompt, Sampling, Scores

PROMPTS = [Prompt.of("a"), Prompt.of("b")]


class Numbers:
    """Scores an answer by the number that it ends with."""

    def __init__(self, values):
        self.values = values

    def score(self, prompts, completions):
        found = [self.values(int(each.text.split()[-1])) for each in completions]
        return [Scores(values=v, unscorable="" if v else "no") for v in found]


def best(values, n=3, samples=2):
    engine = BestOfEngine(ScriptedEngine(lambda prompt, sample: f"{prompt.text} {sample}"), Numbers(values), n)
    found = engine.generate(PROMPTS, Sampling(samples=samples))
    assert [(each.prompt_id, each.sample) for each in found] == [(p.id, s) for p in PROMPTS for s in range(samples)]
    return [each.text for each in found]


def test_the_most_helpful_of_the_safe_answers_is_given_for_each_sample():
    assert best(lambda number: {"reward": float(number), "cost": 1.0 if number in (2, 5) else -1.0}) == [
        *("a 1", "a 4"),
        *("b 1", "b 4"),
    ]


def test_where_no_answer_is_safe_the_least_costly_is_given():
    assert best(lambda number: {"reward": float(number), "cost": 1.0 + number}) == ["a 0", "a 3", "b 0", "b 3"]


def test_answers_without_scores_come_last():
    assert best(lambda number: {"reward": 0.0, "cost": 0.5} if number % 3 == 2 else {})[:2] == ["a 2", "a 5"]
    assert best(lambda number: {})[0] == "a 0"


def test_the_best_of_none_is_refused():
    with pytest.raises(ConfigError, match="best of 0"):
        BestOfEngine(ScriptedEngine({}), Numbers(lambda number: {}), 0)
