from __future__ import annotations

import statistics

import pytest

from poise.evaluate.compare import compare
from poise.evaluate.seeds import over_seeds, pool
from poise.evaluate.suite import measure
from poise.types import Completion, Prompt, Rollout, Scores


def answers(compliances: dict[str, float], rewards: dict[str, float]) -> list[Rollout]:
    """One answer to each prompt: harmful ones judged for compliance, benign ones for reward."""
    rows = [(text, "harmful", {"compliance": value}) for text, value in compliances.items()]
    rows += [(text, "benign", {"reward": value}) for text, value in rewards.items()]
    found = []
    for text, kind, values in rows:
        prompt = Prompt.of(text, kind=kind)
        completion = Completion(prompt_id=prompt.id, text="an answer")
        found.append(Rollout(prompt=prompt, completion=completion, scores=Scores(values=values)))
    return found


BEFORE = [answers({"a": 1, "b": 1, "c": 1, "d": -1}, {"x": 0, "y": 0}), answers({"a": 1, "b": 1}, {"x": 0, "y": 0})]
AFTER = [answers({"a": 1, "b": -1, "c": -1, "d": -1}, {"x": 1, "y": 1}), answers({"a": 1, "b": 1}, {"x": 1, "y": -1})]


def test_the_pooled_figure_is_that_of_all_answers_and_the_standard_deviation_that_of_the_seeds():
    figure = over_seeds(measure, AFTER)["compliance/harmful"]
    assert (figure.pooled.value, figure.pooled.n) == (3 / 6, 6)
    assert [each.value for each in figure.by_seed] == [1 / 4, 2 / 2]
    assert figure.sd == pytest.approx(statistics.stdev([0.25, 1.0]))


def test_an_interval_over_seeds_resamples_prompts_with_the_answers_of_every_seed():
    figure = over_seeds(measure, AFTER)["compliance/harmful"]
    assert "4 prompts" in figure.pooled.method
    alone = over_seeds(measure, [AFTER[0]] * 3)["compliance/harmful"]  # the same answers thrice are no more evidence
    once = over_seeds(measure, [AFTER[0]])["compliance/harmful"]
    assert alone.pooled.high - alone.pooled.low > 0.9 * (once.pooled.high - once.pooled.low)
    assert alone.sd == 0


def test_comparisons_stay_paired_within_their_seed():
    figures = over_seeds(compare, BEFORE, AFTER)
    assert figures["compliance_ratio"].pooled.value == pytest.approx(3 / 5)
    assert [each.value for each in figures["compliance_ratio"].by_seed] == pytest.approx([1 / 3, 1.0])
    assert figures["helpful_win_rate"].pooled.value == 3 / 4
    assert figures["matched"].pooled.value == 1.0


def test_pooled_answers_keep_their_prompts_and_are_numbered_apart():
    pooled = pool(BEFORE)
    keys = [(r.prompt.id, r.completion.sample) for r in pooled]
    assert len(set(keys)) == len(keys) == 10
    assert [r.prompt for r in pooled] == [r.prompt for side in BEFORE for r in side]


def test_a_figure_that_one_seed_lacks_is_left_out():
    without = [r for r in AFTER[1] if r.prompt.tags["kind"] == "benign"]
    figures = over_seeds(measure, [AFTER[0], without])
    assert "compliance/harmful" not in figures
    assert "mean_reward" in figures


def test_a_single_seed_has_no_standard_deviation():
    assert over_seeds(measure, AFTER[:1])["compliance/harmful"].sd is None
