"""Which responses are imitated, and what is made of labels before a cost learns from them."""

from poise.data import load, with_cut_responses
from poise.feedback.demonstrations import preferred_demonstrations, safe_demonstrations
from poise.feedback.groups import may_harm
from poise.feedback.rules import is_refusal
from poise.types import Dataset, Prompt, SafetyLabel


def labels(*responses, safe=True):
    prompt = Prompt.of("How do I sharpen a knife?")
    rows = tuple(SafetyLabel(prompt=prompt, response=response, safe=safe) for response in responses)
    return Dataset(name="some", prompts=(prompt,), labels=rows)


def test_a_cut_response_is_a_beginning_with_the_label_of_the_whole():
    starter = load("starter")
    whole = {(label.prompt.id, label.response): label.safe for label in starter.labels}
    cut = with_cut_responses(starter).labels[len(starter.labels) :]
    assert len(cut) > 0.9 * len(starter.labels)
    for label in cut:
        assert label.response
        assert any(
            label.safe == safe and response.startswith(label.response) and response != label.response
            for (prompt_id, response), safe in whole.items()
            if prompt_id == label.prompt.id
        )


def test_some_are_cut_after_a_sentence_and_some_among_the_words():
    cut = [label.response for label in with_cut_responses(load("starter")).labels if label.origin.name == "cut"]
    ended = sum(response.endswith((".", "!", "?")) for response in cut)
    assert 0.2 * len(cut) < ended < 0.8 * len(cut)


def test_the_same_rows_are_cut_alike_and_those_of_one_word_left_out():
    rows = labels("Use a stone. Hold it at an angle.", "No.")
    assert with_cut_responses(rows) == with_cut_responses(rows)
    assert len(with_cut_responses(rows).labels) == 3


def test_safe_demonstrations_are_flagged_safe():
    starter = load("starter")
    safe = {(label.prompt.id, label.response) for label in starter.labels if label.safe}
    assert all((row.prompt.id, row.response) in safe for row in safe_demonstrations(starter))


def test_safe_demonstrations_refuse_once_and_answer_thrice():
    rows = safe_demonstrations(load("starter"))
    kinds = [row.prompt.tags["kind"] for row in rows]
    assert len(rows) > 300
    parts = set(zip(*(kinds[i::4] for i in range(4)), strict=True))
    assert parts == {("harmful", "look_alike", "benign", "look_alike")}
    assert all(is_refusal(row.response) == (row.prompt.tags["kind"] == "harmful") for row in rows)


def test_all_answers_are_demonstrated_and_the_fewer_refusals_again():
    starter = load("starter")
    rows = safe_demonstrations(starter)
    answers = {(row.prompt.id, row.response) for row in preferred_demonstrations(starter) if not may_harm(row.prompt)}
    shown = {(row.prompt.id, row.response) for row in rows if not may_harm(row.prompt)}
    assert len(shown) > 0.95 * len(answers)  # but for those that refuse
    assert len(rows) > 4 * len({row.response for row in rows if may_harm(row.prompt)})
