"""Stages of tasks of text: classifiers that keep to their rows, answers that all have a value, judges of pairs."""

from dataclasses import replace

import pytest

from poise.data.continuations import continuation_task
from poise.errors import EngineError
from poise.models.adapters import Lora
from poise.models.heads import COST
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.pipeline import ScoreModelSpec, fit_scores, start_model
from poise.pipeline.answers import read_answers
from poise.pipeline.rated import prepare_rated
from poise.pipeline.text_classifiers import fit_text_classifiers
from poise.run import Run
from poise.types import Completion, Dataset, Prompt, SafetyLabel, Sampling

TINY = "random:llama?layers=2"
PROMPTS = [Prompt.of("One"), Prompt.of("Two")]


class Canned:
    """An engine of one's own that says what it was given."""

    def __init__(self, *completions):
        self.completions = completions

    def generate(self, prompts, sampling):
        return [replace(each, prompt_id=p.id) for each, p in zip(self.completions, prompts, strict=True)]


@pytest.fixture
def run(tmp_path):
    with Run.open(tmp_path / "run", recipe="own", arguments={}) as opened:
        yield opened


@pytest.fixture(scope="module")
def policy():
    return Policy(load_backbone(TINY), Lora(top=0.5))


def said(text, **more):
    return Completion(prompt_id="", text=text, **more)


def test_an_empty_answer_has_a_value_too_and_nobody_is_asked_twice(run, policy):
    readers = {"length": lambda prompts, texts: [len(p.text + t) for p, t in zip(prompts, texts, strict=True)]}
    asked = {"sampling": Sampling(max_tokens=4)}
    found = read_answers(run, policy, PROMPTS, readers, engine=Canned(said(" more"), said("")), **asked)
    assert [rollout.scores.values for rollout in found] == [{"length": 8.0}, {"length": 3.0}]
    assert run.stage("answers").result == {"answers": 2, "empty": 1}
    assert read_answers(run, policy, PROMPTS, {}, engine=Canned(), **asked) == found


def test_a_failed_answer_is_an_error_and_not_an_empty_one(run, policy):
    broken = Canned(said(" more"), said("", finish="error", error="timed out"))
    with pytest.raises(EngineError, match="1 of 2 answers failed, the first: timed out"):
        read_answers(run, policy, PROMPTS, {}, sampling=Sampling(), engine=broken)
    assert not run.stage("answers").finished


@pytest.mark.parametrize("signal", ["words", "features"])
def test_classifiers_are_measured_on_rows_that_neither_saw_and_read_back_as_they_were(run, signal):
    task, backbone = continuation_task("starter-gen"), start_model(run, TINY, continues_text=True)
    first, again = (fit_text_classifiers(run, backbone, task, signal=signal, steps=20) for _ in range(2))
    texts = [text.whole for text in task.labelled["test"]]
    assert list(first.judge.value(texts)) == list(again.judge.value(texts)) != list(first.signal.value(texts))
    accuracy = first.validation_metrics["judge_accuracy"]
    right = [(z > 0) == text.good for z, text in zip(first.judge.value(texts), task.labelled["test"], strict=True)]
    assert (accuracy.value, accuracy.n) == (pytest.approx(sum(right) / len(texts)), len(texts))
    assert first.validation_hits["judge_accuracy"] == right
    assert first.validation_metrics["signal_auc_on_texts_to_continue"].n == len(task.continued["test"])
    assert first.validation_metrics == again.validation_metrics


def test_a_head_of_raw_scores_learns_from_all_rows_in_as_many_steps_as_it_is_told(run):
    backbone = start_model(run, TINY)
    labels = [SafetyLabel(prompt=Prompt.of(f"p{i}"), response=f"r{i}", safe=i % 2 == 0) for i in range(12)]
    spec = ScoreModelSpec(channels=(COST,), calibrated=0.0, steps=3)
    raw = fit_scores(run, backbone, Dataset(name="d", labels=tuple(labels)), spec, name="raw")
    assert raw.rows == 12
    assert raw.model.channel("cost").calibration is None
    assert [row["step"] for row in run.metrics("raw")] == [1, 2, 3]
    spec = ScoreModelSpec(channels=(COST,), steps=3)
    held = fit_scores(run, backbone, Dataset(name="d", labels=tuple(labels)), spec, name="held")
    assert held.rows < 12


def test_the_judge_of_rated_pairs_learned_from_other_prompts_than_it_is_tested_on(run):
    material = prepare_rated(run, model=TINY, data="starter", pairs_per_prompt=2, most_prompts=30, score_steps=5)
    asked = {side: {each.prompt.id for each in data.comparisons} for side, data in material.splits.items()}
    assert not asked["judge"] & (asked["train"] | asked["test"])
    assert material.judge.accuracy["reward_pair_accuracy"].n == len(material.splits["test"].comparisons)
