"""Files of ratings and rankings, from their rows to a score model that learns from them."""

import json

import pytest
import torch

from poise.data import load
from poise.errors import DataError
from poise.models.channels import Channel
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.train.channel_losses import PLACKETT_LUCE, REGRESSION
from poise.train.score_model import FeedbackTable, ScoreTrainer

HELPSTEER = {
    "prompt": "Tea?",
    "response": "Yes.",
    **{"helpfulness": 4, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 0},
}
SCORED = {"prompt": "Tea?", "completions": ["Yes.", "No.", "Why?"], "scores": [8.5, 3, 5]}


@pytest.fixture
def read(write_rows):
    return lambda *rows, **how: load(write_rows("mine.jsonl", list(rows)), **how)


def rated(dataset):
    return {rating.criterion: rating.value for rating in dataset.ratings}


def test_columns_of_helpsteer_are_ratings_on_criteria_of_their_names_and_nothing_to_imitate(read):
    found = read(HELPSTEER, HELPSTEER | {"response": "", "verbosity": None})
    assert rated(found) == {name: HELPSTEER[name] for name in list(HELPSTEER)[2:]}
    assert (len(found.ratings), len(found.prompts), len(found.demonstrations)) == (5 + 4, 1, 0)
    assert found.ratings[0].origin.location.endswith("mine.jsonl:1")


@pytest.mark.parametrize(
    "row",
    [
        {"response": "Ha.", "ratings": {"humour": 2, "wit": 1.5, "tact": None}},
        {"completion": "Ha.", "ratings": {"humour": 2, "wit": 1.5}},
        {"prompt": [{"role": "user", "content": "Tea?"}], "response": [{"role": "assistant", "content": "Ha."}]}
        | {"ratings": {"humour": 2, "wit": 1.5}},
    ],
)
def test_ratings_may_stand_in_an_object_of_any_criteria(read, row):
    assert rated(read({"prompt": "Tea?"} | row)) == {"humour": 2, "wit": 1.5}


def test_one_rating_needs_its_criterion_and_what_else_is_said_of_the_answer_is_kept(read):
    found = read({"prompt": "Tea?", "response": "Ha.", "score": 2, "criterion": "humour", "safe": True})
    assert (rated(found), [label.safe for label in found.labels]) == ({"humour": 2}, [True])
    named = read({"prompt": "Tea?", "response": "Ha.", "fun": 2}, columns="helpfulness=fun")
    assert rated(named) == {"helpfulness": 2}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (HELPSTEER | {"helpfulness": "high"}, "helpfulness"),
        (HELPSTEER | {"helpfulness": float("inf")}, "helpfulness"),
        (HELPSTEER | {"toxicity": 1}, "toxicity"),
        (dict.fromkeys(HELPSTEER) | {"prompt": "Tea?", "response": "Yes."}, "no rating"),
    ],
)
def test_a_row_of_ratings_that_cannot_be_read_is_kept_apart_with_file_and_line(write_rows, tmp_path, row, reason):
    path = write_rows("mine.jsonl", [HELPSTEER, HELPSTEER, row])
    found = load(path, quarantine=tmp_path / "bad.jsonl")
    (bad,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert (bad["line"], len(found.ratings)) == (3, 10) and bad["path"].endswith("mine.jsonl")
    assert reason in bad["reason"]
    with pytest.raises(DataError, match=r"mine\.jsonl:3: "):
        load(path, strict=True)


@pytest.mark.parametrize("order", [{"ranks": [1, 3, 2]}, {"ranking": [0, 2, 1]}])
def test_a_ranking_is_one_comparison_of_all_responses(read, order):
    (found,) = read({"prompt": "Tea?", "responses": SCORED["completions"], "criterion": "humour"} | order).comparisons
    assert (found.ranking, found.winner, found.criterion) == ((0, 2, 1), 0, "humour")


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"ranks": [1, 1, 2]}, "tie"),
        ({"ranks": [1, 2]}, "one for each"),
        ({"ranking": [0, 1]}, "every index once"),
        ({"ranking": [1, 2, 3]}, "every index once"),
    ],
)
def test_a_ranking_that_is_none_is_a_bad_row(read, order, reason):
    row = {"prompt": "Tea?", "responses": ["a", "b", "c"]}
    found = read(row | {"ranks": [1, 2, 3]}, row | order)
    assert [(each.line, reason in each.reason) for each in found.bad_rows] == [(2, True)]


def test_scores_of_several_responses_are_margins_ratings_or_a_ranking_as_the_reader_says(read):
    assert [each.margin for each in read(SCORED).comparisons] == [5.5, 3.5, 2]
    ratings = read(SCORED, scores="ratings")
    assert ([each.value for each in ratings.ratings], ratings.comparisons) == ([8.5, 3, 5], ())
    (ranking,) = read(SCORED, scores="rankings").comparisons
    assert ranking.ranking == (0, 2, 1)
    tied = read(SCORED, SCORED | {"scores": [1, 1, 2]}, scores="rankings")
    assert [bad.line for bad in tied.bad_rows] == [2] and "tie" in tied.bad_rows[0].reason


def test_scores_of_a_pair_are_ratings_where_the_reader_says_so(read):
    row = {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "score_chosen": 4, "score_rejected": 1.5}
    assert read(row).comparisons[0].margin == 2.5
    found = read(row, scores="ratings")
    assert ({each.response: each.value for each in found.ratings}, found.comparisons) == ({"Yes.": 4, "No.": 1.5}, ())


def test_ratings_and_rankings_of_files_reach_a_score_model_that_learns_them(write_rows):
    words = ["aa", "ab", "bb", "ba b", "b", "aaa"]
    rows = [
        {"prompt": f"Word {i}?", "response": word, "ratings": {"b": word.count("b")}} for i, word in enumerate(words)
    ]
    ranks = [
        {"prompt": f"Rank {i}?", "responses": ["bbbb", "aab", "aaaa"], "ranks": [1, 2, 3], "criterion": "more"}
        for i in range(3)
    ]
    data = load(write_rows("ratings.jsonl", rows)), load(write_rows("rankings.jsonl", ranks))
    channels = [Channel(name="b"), Channel(name="more")]
    model = ScoreModel(load_backbone("random:llama?layers=2&hidden=32"), channels, depth=2, hidden=0, pooling="mean")
    losses = {"b": REGRESSION, "more": PLACKETT_LUCE}
    table = FeedbackTable(model, data[1].comparisons, (), data[0].ratings, losses=losses)
    torch.manual_seed(0)
    trainer = ScoreTrainer(model=model, table=table, steps=150, lr=0.05, weight_decay=0.0, regularisation=0.0)
    for step in range(150):
        trainer.step_at(step)
    prompts = [rating.prompt for rating in data[0].ratings]
    found = model.values(prompts, words)[:, 0]
    torch.testing.assert_close(found, torch.tensor([float(word.count("b")) for word in words]), atol=0.2, rtol=0)
    more = model.values([data[1].prompts[0]] * 3, ["bbbb", "aab", "aaaa"])[:, 1]
    assert more[0] > more[1] > more[2]
