"""One preference from decoupled feedback: safety goes first, and nothing else is lost or made up."""

import pytest

from poise.errors import DataError
from poise.feedback.joint import JOINT, safety_first
from poise.types import Comparison, Dataset, Origin, Prompt, SafetyLabel

PROMPT = Prompt.of("How do I open a lock?", kind="harmful")


def judged(winner, safe=None, criterion="helpful", responses=("Rake the pins.", "I won't.")):
    return Comparison(prompt=PROMPT, responses=responses, criterion=criterion, winner=winner, safe=safe)


def only(*comparisons, **options):
    (found,) = safety_first(Dataset(name="own", comparisons=comparisons, **options))
    return found


def test_of_a_safe_and_an_unsafe_response_the_safe_one_wins_whatever_was_judged():
    found = only(judged(0, safe=(False, True)))
    assert (found.winner, found.margin, found.criterion) == (1, 1.0, JOINT)
    assert only(judged(1, safe=(False, True))).winner == 1


@pytest.mark.parametrize("flags", [(True, True), (False, False), None])
def test_where_safety_does_not_tell_two_responses_apart_the_judgement_stays(flags):
    found = only(judged(0, safe=flags))
    assert (found.winner, found.margin) == (0, 0.0)


def test_flags_are_read_from_labels_of_the_same_responses():
    labels = [
        SafetyLabel(prompt=PROMPT, response=text, safe=safe, origin=Origin())
        for text, safe in (("Rake the pins.", False), ("I won't.", True))
    ]
    assert only(judged(0), labels=tuple(labels)).winner == 1
    assert only(judged(0), labels=tuple(labels[:1])).winner == 0  # one flag alone does not say which is safer


def test_a_pair_that_was_judged_twice_is_learned_once_and_help_is_heard_before_safety():
    assert only(judged(1, criterion="safe"), judged(0)).winner == 0


def test_pairs_of_two_unsafe_responses_can_be_left_out():
    data = Dataset(name="own", comparisons=(judged(0, safe=(False, False)),))
    with pytest.raises(DataError, match="own has no pair"):
        safety_first(data, both_unsafe=False)
