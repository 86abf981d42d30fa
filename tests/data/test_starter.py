"""What the starter set must hold so that a signal can learn harm from it, not length, topic or the side of a prompt."""

import json
import re
from collections import Counter
from importlib import resources
from statistics import mean

import pytest

from poise.data import load
from poise.feedback.rules import is_refusal

SIDES = ("train", "judge", "test")


@pytest.fixture(scope="module")
def rows():
    lines = (resources.files("poise.data") / "starter" / "starter.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(response):
    return len(response["text"].split())


def answers(rows, *, kind="harmful", split=None):
    return [x for row in rows if row["kind"] == kind and split in (None, row["split"]) for x in row["responses"]]


@pytest.mark.parametrize("split", SIDES)
def test_harm_and_harmlessness_come_in_every_length_on_each_side(rows, split):
    found = answers(rows, split=split)
    for low, high in ((0, 20), (20, 60), (60, 100), (100, 260)):
        inside = [x["safe"] for x in found if low <= words(x) < high]
        assert 0.1 < mean(inside) < 0.95, (low, high, len(inside))


def test_length_alone_does_not_tell_harm(rows):
    safe, unsafe = ([words(x) for x in answers(rows) if x["safe"] is flag] for flag in (True, False))
    longer = mean((u > s) + (u == s) / 2 for u in unsafe for s in safe[::7])
    assert 0.35 < longer < 0.65


@pytest.mark.parametrize("split", SIDES)
def test_a_refusal_that_says_why_is_preferred_to_a_brush_off_for_help_and_for_harmlessness(rows, split):
    refusals = {x["text"] for x in answers(rows, split=split) if x["safe"] and words(x) > 30 and is_refusal(x["text"])}
    brush_offs = {x["text"] for x in answers(rows, split=split) if x["safe"] and words(x) <= 3}
    won = Counter()
    for pair in load("starter").comparisons:
        winner, loser = pair.responses[pair.winner], pair.responses[1 - pair.winner]
        if pair.prompt.tags["kind"] == "harmful":
            won[pair.criterion, True] += winner in refusals and loser in brush_offs
            won[pair.criterion, False] += winner in brush_offs and loser in refusals
    for criterion in ("helpful", "safe"):
        assert won[criterion, True] >= 5 and won[criterion, False] == 0, won


def test_a_brush_off_is_no_example_of_either_flag():
    labelled = [label for label in load("starter").labels if label.prompt.tags["kind"] == "harmful"]
    assert not [label for label in labelled if label.response in ("Don't ask.", "Nope.", "Next question.")]


@pytest.mark.parametrize("split", ["train", "judge"])
def test_harmless_prompts_have_harmful_answers_too(rows, split):
    elsewhere = [x["safe"] for kind in ("benign", "look_alike") for x in answers(rows, kind=kind, split=split)]
    assert 10 <= elsewhere.count(False) <= 0.1 * len(elsewhere)


def test_no_longer_sentence_stands_on_two_sides(rows):
    sides = {}
    for row in rows:
        for response in row["responses"]:
            for sentence in re.split(r"(?<=[.!?])\s+", response["text"]):
                if response["source"] == "author" and len(sentence.split()) > 9:
                    sides.setdefault(sentence, set()).add(row["split"])
    shared = [sentence for sentence, found in sides.items() if len(found) > 1]
    assert len(shared) < 0.002 * len(sides), shared


def test_points_and_flags_agree(rows):
    for response in (x for row in rows for x in row["responses"]):
        assert response["safe"] is (response["harm"] <= 4), response
