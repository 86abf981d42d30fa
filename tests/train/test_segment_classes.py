"""Classes of the segments of a response, learned by the channels of a score model."""

from __future__ import annotations

import random

import pytest
import torch

from poise.errors import ConfigError, DataError
from poise.models.channels import REWARD, Channel
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.train.channel_losses import SEGMENT_CLASS, Judgement, judgement_losses
from poise.train.loop import constant
from poise.train.score_model import FeedbackTable, ScoreTrainer, calibrate, evaluate_scores
from poise.train.segment_classes import Segment, SegmentClasses, segment_accuracy, segment_logits
from poise.types import Comparison, Prompt

NAMES = ("clean", "vague", "invented")
ENDINGS = {"clean": "!", "vague": "?", "invented": "#"}
LOSSES = dict.fromkeys(NAMES, SEGMENT_CLASS)
CHANNELS = tuple(Channel(name=name, criteria=("facts",)) for name in NAMES)
PROMPT = Prompt.of("Tea?")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("random:llama")


def row(*spans, response="Yes. No.", prompt=PROMPT):
    segments = tuple(Segment(begin=begin, end=end, name=name) for begin, end, name in spans)
    return SegmentClasses(prompt=prompt, response=response, segments=segments, criterion="facts")


def planted(count, seed, shuffled=False):
    """Responses of two segments, whose last character tells the class; shuffled, the class is any."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        text, spans = "", []
        for _ in range(2):
            name, begin = draw.choice(NAMES), len(text)
            text += draw.choice(("hen", "a cow", "tea")) + ENDINGS[name]
            spans.append((begin, len(text), draw.choice(NAMES) if shuffled else name))
        rows.append(row(*spans, response=text, prompt=Prompt.of(f"Question {seed} {number}")))
    return rows


def trained(backbone, rows, channels=CHANNELS, comparisons=(), steps=80):
    model = ScoreModel(backbone, channels, hidden=0, pooling="last")
    table = FeedbackTable(model, comparisons, segments=rows, losses=LOSSES)
    trainer = ScoreTrainer(
        model=model, table=table, steps=steps, lr=2e-2, weight_decay=0.0, schedule=constant, prompts_per_step=60
    )
    for index in range(steps):
        trainer.step_at(index)
    return model


def test_the_loss_is_the_mean_over_segments_of_minus_the_log_of_the_softmax_of_their_class():
    scores = torch.tensor([[1.0, -0.5, 0.2, 9.0], [0.3, 2.0, -1.0, 9.0], [0.0, 0.4, 0.8, 9.0]], dtype=torch.float64)
    judgements = [
        Judgement(channel="clean", first=2, class_names=NAMES, classes=(1,)),
        Judgement(channel="clean", first=0, behind=(1,), class_names=NAMES, classes=(2, 0)),
        Judgement(channel="vague", first=1, class_names=("vague", "reward"), classes=(0,)),
    ]
    losses = {**LOSSES, "reward": SEGMENT_CLASS}
    found = judgement_losses(scores, range(3), (*CHANNELS, REWARD), judgements, 0.1, losses)

    def one(values, index):
        return values.exp().sum().log() - values[index]

    three = scores[:, :3]
    expected = torch.stack(
        [
            one(three[2], 1) + 0.1 * three[2].square().mean(),
            (one(three[0], 2) + one(three[1], 0)) / 2 + 0.1 * three[:2].square().mean(),
            one(scores[1, [1, 3]], 0) + 0.1 * scores[1, [1, 3]].square().mean(),
        ]
    )
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_planted_classes_are_learned_on_unseen_rows_and_shuffled_ones_are_not(backbone):
    unseen = planted(60, seed=2)
    learned = segment_accuracy(trained(backbone, planted(60, seed=1)), unseen)
    assert (learned.value > 0.9, learned.n) == (True, 120)
    shuffled = segment_accuracy(trained(backbone, planted(60, seed=1, shuffled=True)), unseen)
    assert shuffled.value < 0.6


def test_each_segment_is_scored_as_the_response_up_to_its_end(backbone):
    model, judged = trained(backbone, planted(4, seed=1), steps=2), row((0, 4, "clean"), (5, 8, "vague"))
    expected = model.values([PROMPT, PROMPT], ["Yes.", "Yes. No."])
    torch.testing.assert_close(segment_logits(model, judged), expected)


def test_classes_stand_beside_channels_of_other_feedback_and_calibration_leaves_them_alone(backbone):
    pairs = [Comparison(prompt=PROMPT, responses=("Yes.", text), winner=0) for text in ("No!", "Why?", "So so.")]
    model = trained(backbone, planted(30, seed=1), (REWARD, *CHANNELS), pairs)
    assert segment_accuracy(model, planted(30, seed=1)).value > 0.9
    assert evaluate_scores(model, pairs)["reward_pair_accuracy"].value == 1.0
    calibrate(model, pairs, losses=LOSSES)
    assert [channel.scale == 1.0 for channel in model.channels] == [False, True, True, True]


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([], "there are no segments"),
        ([(0, 4, "clean"), (5, 9, "clean")], "from 5 to 9 lies outside a response of 8 characters"),
        ([(-1, 4, "clean")], "from -1 to 4 lies outside"),
        ([(4, 4, "clean")], "from 4 to 4 lies outside"),
        ([(0, 5, "clean"), (4, 8, "vague")], "from 4 to 8 begins before the last one ends, at 5"),
        ([(5, 8, "clean"), (0, 4, "clean")], "from 0 to 4 begins before the last one ends"),
        ([(4, 5, "clean")], "from 4 to 5 is blank"),
    ],
)
def test_segments_that_are_not_parts_of_the_response_in_their_order_are_an_error_that_names_them(spans, problem):
    with pytest.raises(DataError, match=problem):
        row(*spans)


def test_an_unknown_class_and_channels_that_learn_no_classes_are_errors_that_name_them(backbone):
    model, good = ScoreModel(backbone, CHANNELS), row((0, 4, "clean"))
    for read in (
        lambda rows: FeedbackTable(model, segments=rows, losses=LOSSES),
        lambda rows: segment_accuracy(model, rows),
    ):
        with pytest.raises(
            DataError, match=r"1 segments .* 'funny' \(1\): the classes of 'facts' are clean, vague, inv"
        ):
            read([good, row((0, 4, "funny"))])
    with pytest.raises(ConfigError, match="all with one loss that reads classes"):
        FeedbackTable(model, segments=[good], losses={"clean": SEGMENT_CLASS})
    with pytest.raises(ConfigError, match="give it two or more"):
        FeedbackTable(ScoreModel(backbone, CHANNELS[:1]), segments=[good], losses={"clean": SEGMENT_CLASS})
    with pytest.raises(DataError, match="criterion that no channel learns from: facts"):
        FeedbackTable(ScoreModel(backbone), segments=[good])
    pair = Comparison(prompt=PROMPT, responses=("a", "b"), winner=0, criterion="facts")
    with pytest.raises(DataError, match="learns from classes, but there are pairs"):
        ScoreTrainer(model=model, table=FeedbackTable(model, [pair], losses=LOSSES))


def test_a_segment_beyond_the_window_teaches_nothing_is_counted_and_is_never_right(backbone):
    model = ScoreModel(backbone, CHANNELS, hidden=0, max_response_tokens=5)
    cut = row((0, 4, "clean"), (5, 8, "clean"))
    table = FeedbackTable(model, segments=[cut], losses=LOSSES)
    assert ([j.numbers for j in table.judgements], table.segments_beyond_window) == ([(0,)], 0.5)
    assert segment_accuracy(model, [cut]).value == 0.5  # a head at its start says the first class of all
    with pytest.raises(DataError, match="can read none of the 1 segments whole: they end beyond its window of 5"):
        FeedbackTable(model, segments=[row((5, 8, "clean"))], losses=LOSSES)
