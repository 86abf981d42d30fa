from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.data.datasets.hh_rlhf import parse_transcript, to_transcript
from poise.errors import DataError

contents = (
    st.text(min_size=1).map(str.strip).filter(lambda text: text and "Human:" not in text and "Assistant:" not in text)
)


@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=4))
def test_a_transcript_made_from_messages_parses_back_to_them(turns):
    messages = [
        {"role": role, "content": content}
        for pair in turns
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    assert parse_transcript(to_transcript(messages)) == messages


def test_a_speaker_named_inside_a_line_does_not_begin_a_turn():
    messages = parse_transcript("\n\nHuman: Write a play.\nHuman: hi\n\nAssistant: See Human: above.")
    assert [message["content"] for message in messages] == ["Write a play.\nHuman: hi", "See Human: above."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hello", "must begin with"),
        ("Note\n\nHuman: a\n\nAssistant: b", "must begin with"),
        ("\n\nAssistant: b", "turn 1 is 'Assistant'"),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", "turn 3 is 'Assistant'"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "ends with Human"),
        ("\n\nHuman: a\n\nAssistant:", "turn 2 of 2, 'Assistant', is empty"),
        ("\n\nHuman: \n\nAssistant: b", "turn 1 of 2, 'Human', is empty"),
    ],
)
def test_a_strange_transcript_says_what_is_strange(text, message):
    with pytest.raises(DataError, match=message):
        parse_transcript(text)
