"""Tasks of continuing text: every text on one side, beginnings that begin their texts."""

import pytest

from poise.data.continuations import SIDES, continuation_task, side_of
from poise.errors import ConfigError


@pytest.fixture(scope="module")
def task():
    return continuation_task("starter-gen")


def test_no_text_is_on_two_sides(task):
    sides = {side: {text.whole for text in texts} for side, texts in task.labelled.items()}
    assert all(sides[a].isdisjoint(sides[b]) for a in SIDES for b in SIDES if a != b)
    continued = {text.whole for side in ("train", "test") for text in task.continued[side]}
    assert continued.isdisjoint(sides["signal"] | sides["judge"])
    assert {side_of(str(number)) for number in range(200)} == set(SIDES)


def test_a_beginning_and_its_continuation_are_the_text(task):
    text = task.continued["test"][0]
    assert text.demonstration.prompt.text + text.demonstration.response == text.whole
    assert text.demonstration.response[0] == " "
    assert len(task.prompts("test")) == len({prompt.id for prompt in task.prompts("test")})
    assert len(task.good_texts("test")) == sum(text.good for text in task.continued["test"])


def test_a_task_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match=r"'imdb'.*imdb-gen"):
        continuation_task("imdb")
