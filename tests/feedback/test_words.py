"""The classifier on words: it separates what it was shown, and does not know what it was not."""

import numpy as np
import pytest

from poise.errors import DataError
from poise.feedback.words import TextScorer, WordClassifier, log_probability
from poise.types import Completion, Prompt

GOOD = ["a fine film", "what a fine, moving film", "moving and fine", "not bad at all"]
BAD = ["a dull film", "so dull and bad", "dull , bad film", "bad and dull"]


@pytest.fixture
def words() -> WordClassifier:
    return WordClassifier.fit(GOOD + BAD, [True] * 4 + [False] * 4)


def test_it_is_the_optimum_of_its_loss(words):
    rows = words.vectors.transform(GOOD + BAD).toarray()
    truth = np.array([1.0] * 4 + [0.0] * 4)
    residual = 1 / (1 + np.exp(-words.logits(GOOD + BAD))) - truth
    assert np.abs(rows.T @ residual + 0.5 * words.regression.coef_[0]).max() < 1e-3
    assert abs(residual.sum()) < 1e-3
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths == pytest.approx(1.0)


def test_only_known_words_count_and_word_pairs_are_known(words):
    assert set(words.vectors.vocabulary_) >= {"film", "fine", "dull", "bad", "a", "a fine"}
    assert "moving film" not in words.vectors.vocabulary_  # stands in one text alone
    assert words.logits(["xylophone"])[0] == pytest.approx(words.regression.intercept_[0])
    assert words.logits(["fine"])[0] > 0 > words.logits(["dull"])[0]
    assert words.logits(["FINE"])[0] == words.logits(["fine"])[0]


def test_a_word_weighs_by_how_often_it_stands_in_a_text_and_how_rare_it_is(words):
    """By hand: (1 + log count) log((1 + 8) / (1 + N_g)), for the eight texts above."""
    row = words.vectors.transform(["film film moving"]).toarray()[0]
    film, moving = (row[words.vectors.vocabulary_[word]] for word in ("film", "moving"))
    expected = (1 + np.log(2)) * np.log(9 / 5) / np.log(9 / 3)  # film stands in 4 texts, moving in 2
    assert film / moving == pytest.approx(expected)


def test_labels_of_one_kind_teach_nothing():
    with pytest.raises(DataError, match="both labels"):
        WordClassifier.fit(["a", "b"], [True, True])
    with pytest.raises(DataError, match="2 texts, 1 labels"):
        WordClassifier.fit(["a", "b"], [True])


def test_texts_that_share_no_word_are_an_error_that_says_so():
    with pytest.raises(DataError, match="no word occurs in two of the 2 texts"):
        WordClassifier.fit(["one", "other"], [True, False])


def test_a_continuation_is_scored_with_the_text_before_it(words):
    scorer = TextScorer(value=words.logits, name="words")
    prompts = [Prompt.of("a fine"), Prompt.of("a dull"), Prompt.of("a dull")]
    texts = [" film", " film", " "]
    found = scorer.score(prompts, [Completion(prompt_id=p.id, text=t) for p, t in zip(prompts, texts, strict=True)])
    assert found[0].values["reward"] == pytest.approx(words.logits(["a fine film"])[0])
    assert found[0].values["reward"] > found[1].values["reward"]
    assert [each.unscorable for each in found] == ["", "", "empty continuation"]


def test_a_log_probability_pays_little_for_a_text_that_is_good_already():
    signal = TextScorer(value=lambda texts: [float(text) for text in texts], name="signal")
    bounded = log_probability(signal)
    assert bounded.value(["-800", "0", "800"]) == pytest.approx([-800.0, -np.log(2), 0.0])
    assert (bounded.name, bounded.channel) == ("signal", "reward")
