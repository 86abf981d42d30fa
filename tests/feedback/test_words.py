"""The classifier on words: it separates what it was shown, and does not know what it was not."""

import numpy as np
import pytest

from poise.errors import DataError
from poise.feedback.words import TextScorer, WordClassifier
from poise.types import Completion, Prompt

GOOD = ["a fine film", "what a fine, moving film", "moving and fine", "not bad at all"]
BAD = ["a dull film", "so dull and bad", "dull , bad film", "bad and dull"]


@pytest.fixture
def words() -> WordClassifier:
    return WordClassifier.fit(GOOD + BAD, [True] * 4 + [False] * 4)


def test_it_is_the_optimum_of_its_loss(words):
    from poise.feedback.words import _vectors

    rows = _vectors(GOOD + BAD, words.places, words.rarity).toarray()
    truth = np.array([1.0] * 4 + [0.0] * 4)
    residual = 1 / (1 + np.exp(-(rows @ words.weights + words.offset))) - truth
    assert np.abs(rows.T @ residual + 0.5 * words.weights).max() < 1e-3
    assert abs(residual.sum()) < 1e-3
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths == pytest.approx(1.0)


def test_only_known_words_count_and_word_pairs_are_known(words):
    assert set(words.places) >= {"film", "fine", "dull", "bad", "a"}
    assert "moving film" not in words.places  # stands in one text alone
    assert words.logits(["xylophone"])[0] == pytest.approx(words.offset)
    assert words.logits(["fine"])[0] > 0 > words.logits(["dull"])[0]
    assert words.logits(["FINE"])[0] == words.logits(["fine"])[0]


def test_labels_of_one_kind_teach_nothing():
    with pytest.raises(DataError, match="both labels"):
        WordClassifier.fit(["a", "b"], [True, True])


def test_a_continuation_is_scored_with_the_text_before_it(words):
    scorer = TextScorer(value=words.logits, name="words")
    prompts = [Prompt.of("a fine"), Prompt.of("a dull"), Prompt.of("a dull")]
    texts = [" film", " film", " "]
    found = scorer.score(prompts, [Completion(prompt_id=p.id, text=t) for p, t in zip(prompts, texts, strict=True)])
    assert found[0].values["reward"] == pytest.approx(words.logits(["a fine film"])[0])
    assert found[0].values["reward"] > found[1].values["reward"]
    assert [each.unscorable for each in found] == ["", "", "empty continuation"]
