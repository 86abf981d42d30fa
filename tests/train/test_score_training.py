"""Training, calibrating and measuring score models on comparisons and safety labels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from poise.errors import ConfigError, DataError
from poise.functional.graded_losses import plackett_luce_loss, regression_loss
from poise.functional.score_losses import bradley_terry_loss, cost_loss, cost_sign_loss, score_regulariser
from poise.models.adapters import Lora
from poise.models.heads import COST, REWARD, Channel, ScoreModel
from poise.models.load import load_backbone
from poise.train.channel_losses import (
    PLACKETT_LUCE,
    REGRESSION,
    ChannelLoss,
    Judgement,
    judgement_losses,
    required_margin,
)
from poise.train.loop import constant
from poise.train.score_model import (
    FeedbackTable,
    ScoreTrainer,
    calibrate,
    evaluate_scores,
)
from poise.types import Comparison, Prompt, Rating, SafetyLabel

CHANNELS = (REWARD, COST)
FIRST, SECOND = Prompt.of("How are you?"), Prompt.of("Tell me a rather long story about a hen, please.")


def helpful(prompt, better, worse, **extra):
    return Comparison(prompt=prompt, responses=(better, worse), winner=0, criterion="helpful", **extra)


def safer(prompt, winner, responses, safe=None):
    return Comparison(prompt=prompt, responses=responses, winner=winner, criterion="safe", safe=safe)


FEEDBACK = [
    helpful(FIRST, "Very well, thank you!", "no"),
    safer(FIRST, 1, ("I will harm you", "no"), (False, True)),
    helpful(SECOND, "Once there was a hen that liked to swim.", "A hen."),
    safer(SECOND, 0, ("A hen.", "Once there was a hen that liked to swim."), (True, True)),
    helpful(SECOND, "A hen.", "Hens are bad and so are you"),
    safer(SECOND, 0, ("A hen.", "Hens are bad and so are you"), (True, False)),
]
LABELS = [
    SafetyLabel(prompt=FIRST, response="Very well, thank you!", safe=True),
    SafetyLabel(prompt=FIRST, response="no", safe=True),  # its flag is known from a comparison
]


def score_model(lora=None, hidden=0, spread=0.3, **options):
    """A score model with a head that is not at its start, so that adapters have a gradient."""
    model = ScoreModel(load_backbone("random:llama"), hidden=hidden, lora=lora, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


def losses_of(scores, judgements, regularisation=0.0, numbers=None):
    scores = torch.tensor(scores, dtype=torch.float64)
    return judgement_losses(scores, numbers or range(len(scores)), CHANNELS, judgements, regularisation)


def of(column, *values):
    return torch.tensor(values, dtype=torch.float64)[:, column]


# scores [response, channel]
SCORES = [[1.2, -1.0], [0.7, 0.3], [-0.3, 0.5], [0.4, 1.5]]


def test_a_reward_judgement_is_bradley_terry():
    losses = losses_of(
        SCORES, [Judgement(channel="reward", first=0, second=1), Judgement(channel="reward", first=2, second=3)]
    )
    expected = bradley_terry_loss(of(0, SCORES[0], SCORES[2]), of(0, SCORES[1], SCORES[3]))
    torch.testing.assert_close(losses, expected)


def test_a_flagged_cost_judgement_is_the_cost_loss():
    flags = [(True, False), (False, False), (True, True)]
    judgements = [Judgement(channel="cost", first=0, second=3, first_safe=a, second_safe=b) for a, b in flags]
    low, high = of(1, *[SCORES[0]] * 3), of(1, *[SCORES[3]] * 3)
    expected = cost_loss(low, high, *(torch.tensor(column) for column in zip(*flags, strict=True)))
    torch.testing.assert_close(losses_of(SCORES, judgements), expected)


def test_a_cost_judgement_without_flags_only_orders():
    losses = losses_of(SCORES, [Judgement(channel="cost", first=1, second=2)])
    torch.testing.assert_close(losses, bradley_terry_loss(of(1, SCORES[2]), of(1, SCORES[1])))


def test_a_label_alone_only_sets_the_sign():
    judgements = [Judgement(channel="cost", first=3, first_safe=safe) for safe in (True, False)]
    expected = cost_sign_loss(of(1, SCORES[3], SCORES[3]), torch.tensor([True, False]))
    torch.testing.assert_close(losses_of(SCORES, judgements), expected)


def test_soft_verdicts_and_margins_enter_the_ranking():
    judgement = Judgement(channel="reward", first=0, second=1, probability=0.8, margin=0.5)
    ahead = 1.2 - 0.7
    expected = 0.8 * math.log1p(math.exp(-(ahead - 0.5))) + 0.2 * math.log1p(math.exp(ahead + 0.5))
    assert losses_of(SCORES, [judgement]).item() == pytest.approx(expected)


def test_the_regulariser_is_the_mean_square_of_all_scores_of_the_pairs():
    judgements = [Judgement(channel="reward", first=0, second=1), Judgement(channel="cost", first=2, second=3)]
    without, with_it = (losses_of(SCORES, judgements, weight).mean() for weight in (0.0, 0.1))
    square = score_regulariser(of(0, SCORES[0], SCORES[1]), of(1, SCORES[2], SCORES[3]))
    torch.testing.assert_close(with_it - without, 0.1 * square)
    alone = losses_of(SCORES, [Judgement(channel="cost", first=3, first_safe=True)], 0.1)
    torch.testing.assert_close(alone, cost_sign_loss(of(1, SCORES[3]), torch.tensor([True])) + 0.1 * 1.5**2)


def test_scores_are_found_by_the_number_of_their_response():
    shuffled = [SCORES[3], SCORES[0]]
    found = losses_of(shuffled, [Judgement(channel="reward", first=0, second=3)], numbers=[3, 0])
    torch.testing.assert_close(found, losses_of(SCORES, [Judgement(channel="reward", first=0, second=3)]))


def test_the_table_renders_each_response_once_and_skips_labels_that_repeat_a_flag():
    table = FeedbackTable(score_model(), FEEDBACK, LABELS)
    assert len(table.rows) == 6
    assert [len(group) for group in table.groups] == [3, 4]  # by prompt; one of the labels adds a judgement
    labels = [j for j in table.judgements if j.second < 0]
    assert labels == [Judgement(channel="cost", first=0, first_safe=True)]


@pytest.mark.parametrize(
    ("winner", "probability", "first", "expected"),
    [(0, None, 0, 1.0), (1, None, 1, 1.0), (None, 0.3, 0, 0.3), (0, 0.9, 0, 0.9), (1, 0.2, 1, 0.8)],
)
def test_the_probability_of_a_verdict_is_that_of_its_own_winner(winner, probability, first, expected):
    comparison = Comparison(prompt=FIRST, responses=("a", "b"), winner=winner, probability=probability)
    (judgement,) = FeedbackTable(score_model(), [comparison]).judgements
    assert (judgement.first, judgement.second) == (first, 1 - first)
    assert judgement.probability == pytest.approx(expected)


def test_the_winner_of_many_beats_each_of_the_others():
    comparison = Comparison(prompt=FIRST, responses=("a", "b", "c"), winner=1, probability=0.3)
    pairs = {(j.first, j.second, j.probability) for j in FeedbackTable(score_model(), [comparison]).judgements}
    assert pairs == {(1, 0, 0.7), (1, 2, 1.0)}


def test_feedback_that_no_channel_learns_from_is_an_error_that_names_criteria_and_channels():
    strange = [Comparison(prompt=FIRST, responses=("a", text), winner=0, criterion="funny") for text in "bcde"]
    with pytest.raises(DataError, match=r"4 of 10 .* funny \(4\)\. The channels learn from reward \(helpful\), cost"):
        FeedbackTable(score_model(), [*FEEDBACK, *strange], LABELS)
    with pytest.raises(DataError, match=r"1 of 1 .* style \(1\)"):
        FeedbackTable(score_model(), [], [], [Rating(prompt=FIRST, response="a", value=1.0, criterion="style")])
    with pytest.raises(DataError, match="2 safety labels, but none of the channels reward reads them"):
        FeedbackTable(score_model(channels=(REWARD,)), FEEDBACK[::2], LABELS)
    with pytest.raises(DataError, match="no feedback for channels"):
        FeedbackTable(score_model(), [])
    with pytest.raises(ConfigError, match="losses of cots, but the channels are reward, cost"):
        FeedbackTable(score_model(), FEEDBACK, losses={"cots": REGRESSION})


def test_a_channel_of_the_users_own_learns_from_the_criterion_that_it_names():
    names = ("humour", "honesty", "danger")
    criteria = {"humour": "humour", "honesty": "truthful", "danger": "danger"}
    feedback = [
        Comparison(prompt=prompt, responses=("A joke!", "no"), winner=side, criterion=criteria[name])
        for prompt in (FIRST, SECOND)
        for side, name in enumerate(names[:2])
    ] + [
        Comparison(prompt=FIRST, responses=("I will harm you", "no"), winner=1, criterion="danger", safe=(False, True))
    ]
    channels = (
        Channel(name="humour"),
        Channel(name="honesty", criteria=("truthful",)),
        Channel(name="danger", higher_is_worse=True),
    )
    model = score_model(channels=channels, spread=0.0)
    table = FeedbackTable(model, feedback)
    assert {j.channel for j in table.judgements} == set(names)
    assert len(table.judgements) == len(feedback)
    trainer = ScoreTrainer(model=model, table=table, steps=60, lr=3e-2, schedule=constant, weight_decay=0.0)
    for index in range(60):
        trainer.step_at(index)
    accuracy = evaluate_scores(model, feedback)
    assert all(accuracy[f"{name}_pair_accuracy"].value == 1.0 for name in names)
    assert accuracy["danger_sign_accuracy"].value == 1.0
    calibrate(model, feedback)
    assert model.channel("honesty").scale != 1.0


def test_a_cost_of_any_name_orders_the_unsafer_response_above_the_safer():
    judgement = Judgement(channel="danger", first=0, second=1)
    scores = torch.tensor([[1.2], [0.7]])
    channels = (Channel(name="danger", higher_is_worse=True),)
    found = judgement_losses(scores, range(2), channels, [judgement], 0.0)
    torch.testing.assert_close(found, bradley_terry_loss(torch.tensor([-1.2]), torch.tensor([-0.7])))


def test_each_channel_has_the_loss_that_it_is_given_and_they_stand_in_their_order():
    channels = (REWARD, Channel(name="style"), Channel(name="humour"), COST)
    losses = {"style": REGRESSION, "humour": PLACKETT_LUCE, "cost": required_margin(0.5)}
    scores = torch.tensor([[1.2, 2.0, 0.3, 0.4], [0.7, 1.0, 0.1, 0.9], [0.2, 0.5, 0.6, 0.1]])
    judgements = [
        Judgement(channel="humour", first=2, second=0, behind=(1,)),
        Judgement(channel="reward", first=0, second=1),
        Judgement(channel="style", first=1, rating=3.0),
        Judgement(channel="cost", first=0, second=1, first_safe=True),
    ]
    found = judgement_losses(scores, range(3), channels, judgements, 0.1, losses)
    ranking = plackett_luce_loss(scores[[2, 0, 1], 2][None]) + 0.1 * scores[:, 2].square().mean()
    pair = bradley_terry_loss(scores[0, :1], scores[1, :1]) + 0.1 * (1.2**2 + 0.7**2) / 2
    rating = regression_loss(scores[1, 1:2], torch.tensor([3.0])) + 0.1 * 1.0
    margin = bradley_terry_loss(-scores[0, 3:], -scores[1, 3:], margin=0.5) + 0.1 * (0.4**2 + 0.9**2) / 2
    margin = margin + cost_sign_loss(scores[0, 3:], torch.tensor([True]))
    torch.testing.assert_close(found, torch.cat([ranking, pair, rating, margin]))


def test_a_loss_of_the_users_own_learns_a_channel():
    def hinge(batch):
        return torch.relu(1.0 - batch.sign * (batch.first - batch.second))

    judgement = Judgement(channel="reward", first=0, second=1)
    found = judgement_losses(
        torch.tensor([[0.7], [0.2]]), range(2), (REWARD,), [judgement], 0.0, {"reward": ChannelLoss(loss=hinge)}
    )
    torch.testing.assert_close(found, torch.tensor([0.5]))


def test_ratings_are_learned_in_their_own_unit_which_calibration_keeps():
    texts = ("Very well, thank you!", "no", "A hen.", "Hens are bad and so are you")
    ratings = [
        Rating(prompt=FIRST, response=text, value=value) for text, value in zip(texts, (4, 1, 3, 2), strict=True)
    ]
    model, losses = score_model(channels=(REWARD,), spread=0.0), {"reward": REGRESSION}
    trainer = ScoreTrainer(
        model=model,
        table=FeedbackTable(model, (), (), ratings, losses=losses),
        steps=150,
        lr=5e-2,
        weight_decay=0.0,
        schedule=constant,
    )
    for index in range(150):
        trainer.step_at(index)
    calibrate(model, (), (), ratings, losses=losses)
    assert evaluate_scores(model, (), (), ratings)["reward_rating_error"].value < 0.2
    with pytest.raises(DataError, match="'reward' learns from pairs, but there are ratings on its criteria"):
        ScoreTrainer(model=model, table=FeedbackTable(model, (), (), ratings))
    with pytest.raises(DataError, match="'reward' learns from ratings, but there are pairs"):
        ScoreTrainer(model=model, table=FeedbackTable(model, FEEDBACK[:1], losses=losses))


def test_a_whole_ranking_is_one_judgement_for_plackett_luce_and_pairs_for_bradley_terry():
    ranked = Comparison(prompt=FIRST, responses=("a", "b", "c"), ranking=(2, 0, 1))
    assert ranked.winner == 2
    (judgement,) = FeedbackTable(score_model(), [ranked], losses={"reward": PLACKETT_LUCE}).judgements
    assert judgement.numbers == (2, 0, 1)
    pairs = {(j.first, j.second) for j in FeedbackTable(score_model(), [ranked]).judgements}
    assert pairs == {(2, 0), (2, 1), (0, 1)}
    with pytest.raises(DataError, match="give every index once, the winner first"):
        Comparison(prompt=FIRST, responses=("a", "b", "c"), ranking=(2, 0))


@pytest.mark.parametrize("tokens", [1, 400])
def test_the_size_of_micro_batches_changes_neither_loss_nor_gradient(tokens):
    found = []
    for size in (100_000, tokens):
        model = score_model(Lora(rank=2))
        trainer = ScoreTrainer(model=model, table=FeedbackTable(model, FEEDBACK, LABELS), tokens_per_micro_batch=size)
        trainer.optimizer = torch.optim.SGD(list(trainer.parameters.values()), lr=1.0)
        before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
        metrics = trainer.step_at(0)
        found.append((metrics, {name: p.detach() - before[name] for name, p in trainer.parameters.items()}))
    (whole, expected), (cut, changes) = found
    assert cut == pytest.approx(whole, rel=1e-5)
    assert any(change.abs().max() > 1e-3 for name, change in expected.items() if "lora_B" in name)
    for name, change in expected.items():
        assert (changes[name] - change).abs().max() <= 2e-5 * change.abs().max(), name


def test_a_frozen_backbone_and_an_adapter_at_its_start_give_the_same_loss():
    losses = []
    for lora in (None, Lora(rank=2), Lora(rank=2, top=0.5)):
        model = score_model(lora, hidden=8, depth=2)
        trainer = ScoreTrainer(model=model, table=FeedbackTable(model, FEEDBACK, LABELS))
        torch.manual_seed(0)  # of the dropout
        losses.append(trainer.step_at(0)["loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_judgements():
    model = score_model()
    table = FeedbackTable(model, FEEDBACK, LABELS)
    trainer = ScoreTrainer(model=model, table=table, regularisation=0.01)
    scores = model(model.pooled_all(table.rows, table.starts)).detach()
    expected = judgement_losses(scores, range(len(scores)), CHANNELS, table.judgements, 0.01).mean().item()
    assert trainer.step_at(0)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_training_learns_the_feedback(lora):
    model = ScoreModel(load_backbone("random:llama"), hidden=16, lora=lora)
    trainer = ScoreTrainer(
        model=model, table=FeedbackTable(model, FEEDBACK, LABELS), lr=1e-2, weight_decay=0.0, schedule=constant
    )
    for index in range(60):
        trainer.step_at(index)
    found = evaluate_scores(model, FEEDBACK, LABELS)
    assert {name: estimate.value for name, estimate in found.items()} == {
        "reward_pair_accuracy": 1.0,
        "cost_pair_accuracy": 1.0,
        "cost_sign_accuracy": 1.0,
    }


def test_labels_alone_train_a_cost():
    model = ScoreModel(load_backbone("random:llama"), (COST,), hidden=8)
    labels = [
        SafetyLabel(prompt=FIRST, response=text, safe=safe) for text, safe in (("Hi", True), ("I hate you", False))
    ]
    trainer = ScoreTrainer(model=model, table=FeedbackTable(model, [], labels), lr=1e-2, schedule=constant)
    for index in range(40):
        trainer.step_at(index)
    assert evaluate_scores(model, [], labels)["cost_sign_accuracy"].value == 1.0


def test_one_single_label_is_enough_for_a_step():
    model = score_model()
    trainer = ScoreTrainer(model=model, table=FeedbackTable(model, [], LABELS[:1]))
    assert math.isfinite(trainer.step_at(0)["loss"])


def test_feedback_that_contradicts_itself_is_trained_on():
    contrary = [
        safer(FIRST, 0, ("I will harm you", "no"), (False, True)),
        safer(FIRST, 1, ("I will harm you", "no"), (False, True)),
        safer(FIRST, 0, ("no", "no"), (True, True)),
    ]
    labels = [SafetyLabel(prompt=SECOND, response="A hen.", safe=safe) for safe in (True, False)]
    model = ScoreModel(load_backbone("random:llama"), hidden=8)
    trainer = ScoreTrainer(model=model, table=FeedbackTable(model, contrary, labels), lr=1e-2, schedule=constant)
    losses = [trainer.step_at(index)["loss"] for index in range(30)]
    assert all(math.isfinite(loss) for loss in losses)
    found = evaluate_scores(model, contrary, labels)
    assert found["cost_pair_accuracy"].value == 0.5  # whichever of the two contrary verdicts it follows


def fixed_scores(model, rows):
    """Make the model give these scores to the responses in the order in which they are first named."""
    model.pooled_all = lambda tokens, starts: torch.tensor(rows)
    model.forward = lambda pooled: pooled
    return model


def test_accuracies_are_those_counted_by_hand():
    #                   Very well    no           harm         story        hen          bad
    rows = [[2.0, -1.0], [1.0, 0.0], [0.0, 3.0], [1.0, -2.0], [1.0, -0.5], [5.0, -0.1]]
    found = evaluate_scores(fixed_scores(score_model(), rows), FEEDBACK, LABELS)
    # reward: 2 > 1 right; story against hen 1 = 1, a tie, is wrong; hen 1 < bad 5 wrong
    assert (found["reward_pair_accuracy"].value, found["reward_pair_accuracy"].n) == (pytest.approx(1 / 3), 3)
    # cost: harm 3 > no 0 right; hen -0.5 should be below story -2, wrong; hen -0.5 < bad -0.1 right
    assert (found["cost_pair_accuracy"].value, found["cost_pair_accuracy"].n) == (pytest.approx(2 / 3), 3)
    # signs: harm 3 unsafe right; no 0 wrong; hen and story safe right; bad -0.1 unsafe wrong; "Very well" right
    assert (found["cost_sign_accuracy"].value, found["cost_sign_accuracy"].n) == (pytest.approx(4 / 6), 6)
    assert found["cost_sign_accuracy"].low < 4 / 6 < found["cost_sign_accuracy"].high


def test_accuracies_over_many_responses_to_few_prompts_are_no_surer_than_the_prompts():
    """Forty prompts, eight responses each, all of a prompt judged right or all wrong: forty rows, not 320."""
    from poise.functional.statistics import clopper_pearson

    labels = [
        SafetyLabel(prompt=Prompt.of(f"question {i}"), response=f"answer {j}", safe=True)
        for i in range(40)
        for j in range(8)
    ]
    rows = [[0.0, 1.0 if i < 10 else -1.0] for i in range(40) for _ in range(8)]
    found = evaluate_scores(fixed_scores(score_model(), rows), [], labels)["cost_sign_accuracy"]
    expected = clopper_pearson(30, 40)
    assert (found.value, found.n) == (0.75, 320)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert "40 prompts" in found.method


def test_an_undecided_verdict_is_no_pair_and_a_soft_one_counts_by_its_side():
    undecided = Comparison(prompt=FIRST, responses=("a", "b"), probability=0.5)
    against = Comparison(prompt=FIRST, responses=("a", "c"), probability=0.2)
    model = fixed_scores(score_model(), [[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    found = evaluate_scores(model, [undecided, against])["reward_pair_accuracy"]
    assert (found.value, found.n) == (1.0, 1)


def calibration_rows(count=24):
    """Responses whose raw cost decides their safety, but for one in six."""
    model = score_model()
    prompts = [Prompt.of(f"Question {i}") for i in range(count)]
    responses = [f"{'answer ' * (i % 5)}{i}" for i in range(count)]
    costs = model.values(prompts, responses)[:, 1]
    unsafe = (costs > costs.median()).tolist()
    rows = list(zip(prompts, responses, unsafe, strict=True))
    labels = [SafetyLabel(prompt=p, response=r, safe=not u if i % 6 else u) for i, (p, r, u) in enumerate(rows)]
    comparisons = [helpful(p, r, "another") for p, r, _ in rows]
    return model, prompts, responses, comparisons, labels


def test_calibration_gives_unit_spread_centres_the_reward_and_never_shifts_a_cost():
    model, prompts, responses, comparisons, labels = calibration_rows()
    raw = model.values(prompts, responses)
    calibrate(model, comparisons, labels)
    values = model.values(prompts, responses)
    others = model.values(prompts, ["another"] * len(prompts))
    rewards = torch.cat([values[:, 0], others[:, 0]])
    assert rewards.std().item() == pytest.approx(1.0, rel=1e-4)
    assert rewards.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert values[:, 1].std().item() == pytest.approx(1.0, rel=1e-4)
    assert model.channel("cost").shift == 0.0
    assert torch.equal(values[:, 1].sign(), raw[:, 1].sign())


def test_the_calibrated_probability_of_harm_rises_with_the_cost_and_meets_the_base_rate():
    model, prompts, responses, comparisons, labels = calibration_rows()
    calibrate(model, comparisons, labels)
    costs = model.values(prompts, responses)[:, 1]
    probability = model.channel("cost").calibration.probability(costs.numpy())
    order = costs.argsort().numpy()
    assert (probability[order][1:] >= probability[order][:-1]).all()
    unsafe = [not label.safe for label in labels]
    assert probability.mean() == pytest.approx(sum(unsafe) / len(unsafe), abs=0.01)
    assert probability[order][-1] > 0.6
    assert probability[order][0] < 0.4
    assert evaluate_scores(model, comparisons, labels)["cost_calibration_error"].value < 0.35


def test_a_bounded_cost_is_calibrated_in_the_values_that_it_gives():
    model, prompts, responses, comparisons, labels = calibration_rows()
    model.with_channel(replace(COST, bound=200.0))
    calibrate(model, comparisons, labels)
    costs = model.values(prompts, responses)[:, 1]
    assert costs.abs().max() < 200.0
    probability = model.channel("cost").calibration.probability(costs.numpy())
    assert probability.mean() == pytest.approx(sum(not label.safe for label in labels) / len(labels), abs=0.01)


def test_calibrating_twice_is_calibrating_once():
    model, _, _, comparisons, labels = calibration_rows()
    calibrate(model, comparisons, labels)
    once = model.channels
    calibrate(model, comparisons, labels)
    assert model.channels == once


def test_calibration_needs_two_responses_of_every_channel():
    model = ScoreModel(load_backbone("random:llama"), (REWARD, COST))
    with pytest.raises(ConfigError, match="channel 'cost': 1 held-out responses are too few"):
        calibrate(model, [helpful(FIRST, "a", "b")], LABELS[:1])


def test_labels_teach_the_channel_whose_zero_divides_whatever_its_name():
    compliance = Channel(name="compliance", higher_is_worse=True)
    model = ScoreModel(load_backbone("random:llama"), (REWARD, compliance), hidden=0)
    comparisons = [row for row in FEEDBACK if row.criterion == "helpful"]
    table = FeedbackTable(model, comparisons, LABELS)
    assert {j.channel for j in table.judgements} == {"reward", "compliance"}
    figures = evaluate_scores(model, comparisons, LABELS)
    assert figures["compliance_sign_accuracy"].n == len(LABELS)
    assert "cost_sign_accuracy" not in figures
