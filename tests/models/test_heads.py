"""Score models keep their numbers, names and signs; critics never look ahead."""

from dataclasses import replace

import pytest
import torch

from poise.errors import ConfigError, ModelError
from poise.functional.statistics import PlattScale
from poise.models.adapters import Lora
from poise.models.critics import Critics
from poise.models.heads import COST, REWARD, Channel, ScoreModel, length_buckets, load_score_model, make_head
from poise.models.load import load_backbone
from poise.models.shared_pass import run_shared
from poise.models.shared_rows import SharedRows, States
from poise.types import Completion, Prompt, Scorer

POOLINGS = ("mean", "last", "mean+prompt")
NAME = "random:llama?layers=4&hidden=32"


def make(pooling="mean+prompt", hidden=16, lora=None, *, backbone=None, channels=(REWARD, COST), **settings):
    """A score model whose head, statistics and adapter are not those of a fresh one."""
    backbone = backbone or load_backbone(NAME)
    model = ScoreModel(backbone, channels, pooling=pooling, hidden=hidden, lora=lora, **settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.feature_mean.copy_(torch.randn(model.feature_mean.shape, generator=generator) * 0.1)
        model.feature_std.copy_(torch.rand(model.feature_std.shape, generator=generator) + 0.5)
    return model


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("hidden", [0, 64])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, top=0.5)])
def test_a_saved_score_model_comes_back_with_its_scores_signs_and_calibration(
    tmp_path, dialogues, pooling, hidden, lora
):
    channels = (
        Channel(name="reward", shift=0.7, scale=2.0),
        Channel(
            name="cost", higher_is_worse=True, scale=3.0, bound=0.7, calibration=PlattScale(slope=1.5, offset=-0.25)
        ),
    )
    model = make(pooling, hidden, lora, channels=channels, max_response_tokens=20)
    model.save_pretrained(tmp_path)
    again = load_score_model(tmp_path, expect={"reward": False, "cost": True})
    assert again.channels == channels
    assert (again.depth, again.pooling, again.hidden, again.lora) == (model.depth, pooling, hidden, lora)
    assert torch.equal(again.values(*dialogues), model.values(*dialogues))


def test_a_score_model_may_share_its_backbone_with_others_of_its_kind(tmp_path, dialogues):
    first = make(lora=Lora(rank=2), adapter="first")
    expected = first.values(*dialogues)
    first.save_pretrained(tmp_path)
    second = load_score_model(tmp_path, backbone=first.backbone[0], adapter="second")
    with torch.no_grad():
        for parameter in second.trained_parameters().values():
            parameter.add_(1.0)
    assert torch.equal(first.values(*dialogues), expected)
    assert (second.values(*dialogues) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("expect", [{"cost": False}, {"reward": True}, {"harm": True}])
def test_a_flipped_sign_or_a_missing_channel_is_refused(tmp_path, expect):
    make().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="should have higher_is_worse="):
        load_score_model(tmp_path, expect=expect)


def test_a_folder_without_a_card_is_not_a_score_model(tmp_path):
    with pytest.raises(ModelError, match=r"is not a score model: it has no poise_score_model\.json"):
        load_score_model(tmp_path)


def test_a_cost_is_scaled_but_never_shifted():
    assert Channel(name="cost", higher_is_worse=True, scale=2.0).scale == 2.0
    with pytest.raises(ConfigError, match="never shifted, its zero divides safe from unsafe"):
        Channel(name="cost", higher_is_worse=True, shift=0.1)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_a_score_does_not_depend_on_the_batch_around_it(dialogues, pooling, family):
    model = make(pooling, backbone=load_backbone(f"random:{family}?layers=4&hidden=32"))
    prompts, responses = dialogues
    together = model.values(prompts, responses)
    assert torch.isfinite(together).all()
    for index in range(len(prompts)):
        alone = model.values(prompts[index : index + 1], responses[index : index + 1])
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-5)
    backwards = model.values(prompts[::-1], responses[::-1])
    torch.testing.assert_close(backwards.flip(0), together, atol=1e-5, rtol=1e-5)


def test_pooling_is_what_its_name_says(dialogues):
    backbone = load_backbone(NAME)
    rows, starts = ScoreModel(backbone).encode(*dialogues)
    for row, start in zip(rows, starts, strict=True):
        with torch.no_grad():
            hidden = backbone.decoder.run(backbone.decoder.embed(torch.tensor([row])), stop=2)[0]
        response = hidden[start:] if len(row) > start else hidden[-1:]
        expected = {"mean": response.mean(0), "last": hidden[-1]}
        expected["mean+prompt"] = torch.cat([expected["mean"], hidden[start - 1]])
        for pooling, states in expected.items():
            pooled = ScoreModel(backbone, pooling=pooling, depth=2).pooled_all([row], [start])
            torch.testing.assert_close(pooled[0], states, atol=1e-5, rtol=1e-5)


def test_a_score_does_not_tell_whether_a_response_was_finished(dialogues):
    model, (prompts, responses) = make(), dialogues
    stopped, cut = (
        model.score(
            prompts, [Completion(prompt_id=p.id, text=r, finish=f) for p, r in zip(prompts, responses, strict=True)]
        )
        for f in ("stop", "length")
    )
    assert stopped == cut


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_empty_response_is_pooled_at_the_prompts_last_token(pooling):
    model, prompt = make(pooling), Prompt.of("Hello")
    rows, starts = model.encode([prompt], [""])
    assert len(rows[0]) == starts[0]
    decoder = model.backbone[0].decoder
    with torch.no_grad():
        last = decoder.run(decoder.embed(torch.tensor(rows)), stop=model.depth)[0, -1]
    expected = torch.cat([last, last]) if pooling == "mean+prompt" else last
    torch.testing.assert_close(model.pooled_all(rows, starts)[0], expected, atol=1e-5, rtol=1e-5)


def test_empty_and_failed_completions_are_unscorable_beside_those_that_are(dialogues):
    model, (prompts, responses) = make(), dialogues
    finishes = ("stop", "length", "length", "error")
    completions = [
        Completion(prompt_id=p.id, text=r, finish=f) for p, r, f in zip(prompts, responses, finishes, strict=True)
    ]
    scores = model.score(prompts, completions)
    assert isinstance(model, Scorer)
    assert [bool(score.unscorable) for score in scores] == [False, False, True, True]
    expected = model.values(prompts[:2], responses[:2])
    found = torch.tensor([[score.values["reward"], score.values["cost"]] for score in scores[:2]])
    torch.testing.assert_close(found, expected)
    assert [score.values for score in scores[2:]] == [{}, {}]
    assert model.score([], []) == []


def test_values_are_in_the_units_of_their_channel(dialogues):
    model = make()
    raw = model.values(*dialogues)
    model.with_channel(Channel(name="reward", shift=0.5, scale=2.0))
    model.with_channel(Channel(name="cost", higher_is_worse=True, scale=4.0))
    torch.testing.assert_close(model.values(*dialogues), (raw - torch.tensor([0.5, 0.0])) / torch.tensor([2.0, 4.0]))
    assert model.channel("cost").scale == 4.0
    with pytest.raises(ConfigError, match="channels reward, cost, not 'harm'"):
        model.channel("harm")


def test_a_bound_keeps_signs_and_order_and_flattens_both_ends():
    free, bound = (Channel(name="cost", higher_is_worse=True, scale=2.0, bound=bound) for bound in (None, 0.5))
    raw = torch.tensor([-4.0, -2.0, -0.02, 0.0, 0.02, 2.0])
    values = bound.value(raw)
    assert values.abs().max() < 0.5
    assert torch.equal(values.sign(), raw.sign())
    assert torch.equal(values.argsort(), raw.argsort())
    torch.testing.assert_close(values[2:5], free.value(raw)[2:5], rtol=1e-3, atol=0)
    assert values[1] - values[0] < 0.02 < free.value(raw)[1] - free.value(raw)[0]
    with pytest.raises(ConfigError, match="bound is 0"):
        Channel(name="cost", bound=0.0)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, top=0.5), Lora(rank=2)])
def test_states_below_the_first_trained_layer_may_be_kept(dialogues, lora):
    model = make(lora=lora)
    rows, starts = model.encode(*dialogues)
    shared = SharedRows.of_lists(rows, starts)
    kept = model.frozen_states(shared)
    assert kept.depth == model.split
    torch.testing.assert_close(model.pooled(kept), model.pooled(shared), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth", [0, 5])
def test_a_depth_that_the_backbone_does_not_have_is_refused(depth):
    with pytest.raises(ConfigError, match=f"depth {depth} of a backbone with 4 layers: choose 1 to 4"):
        ScoreModel(load_backbone(NAME), depth=depth)


def test_a_linear_head_starts_at_zero_and_heads_of_one_seed_are_equal():
    features = torch.randn(3, 8)
    assert not make_head(8, 0, 2, seed=0)(features).any()
    first, second, third = (make_head(8, 4, 2, seed=seed).eval()(features) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_buckets_hold_every_row_once_and_keep_their_padded_size():
    lengths = [5, 100, 7, 3, 50, 300, 5]
    groups = length_buckets(lengths, 120)
    assert sorted(index for group in groups for index in group) == list(range(7))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 120 for group in groups)
    assert length_buckets([], 120) == []


@pytest.fixture
def critic_rows():
    """Responses of 4 and 2 tokens to prompts of 3 and 5, with states drawn at random."""
    generator = torch.Generator().manual_seed(0)
    rows = SharedRows.of_lists([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]], [3, 5])
    states = States(
        prompts=torch.randn(2, 5, 4, generator=generator), responses=torch.randn(2, 4, 4, generator=generator)
    )
    return replace(rows, states=states, depth=1)


def test_critic_features_are_the_prompt_beside_the_mean_of_the_tokens_so_far(critic_rows):
    features = Critics.features(critic_rows)
    assert features.shape == (2, 4, 8)
    states = critic_rows.known_states
    for row, (start, size) in enumerate(((3, 4), (5, 2))):
        for t in range(size):
            prompt = states.prompts[row, start - 1]
            so_far = states.responses[row, :t].mean(0) if t else prompt
            expected = torch.cat([prompt, so_far])
            expected = expected / expected.pow(2).mean().sqrt()
            torch.testing.assert_close(features[row, t], expected)


def test_a_value_never_depends_on_the_token_it_values_or_on_later_ones(critic_rows):
    before = Critics.features(critic_rows)
    for t in range(4):
        responses = critic_rows.known_states.responses.clone()
        responses[:, t:] += 1.0
        after = Critics.features(replace(critic_rows, states=replace(critic_rows.known_states, responses=responses)))
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert t == 3 or not torch.equal(after[:, t + 1 :], before[:, t + 1 :])


def test_values_through_the_model_do_not_see_later_tokens():
    backbone = load_backbone(NAME)
    rows = SharedRows.of_lists([[10, 11, 12, 20, 21, 22], [10, 11, 12, 20, 99, 98]], [3, 3])
    with torch.no_grad():
        features = Critics.features(run_shared(backbone.decoder, rows, stop=2))
    assert torch.equal(features[0, :2], features[1, :2])
    assert not torch.equal(features[0, 2], features[1, 2])


def test_critics_start_at_zero_with_one_value_per_channel():
    critics = Critics(("reward", "cost"), 4, torch.device("cpu"))
    values = critics(torch.randn(2, 3, 8))
    assert {name: tuple(value.shape) for name, value in values.items()} == {"reward": (2, 3), "cost": (2, 3)}
    assert not any(value.any() for value in values.values())


def test_a_channel_may_have_a_head_of_its_own(tmp_path):
    backbone = load_backbone("random:llama")
    channels = (Channel(name="reward", hidden=0), Channel(name="cost", higher_is_worse=True))
    model = ScoreModel(backbone, channels, hidden=4)
    assert [len(head) for head in model.head] == [1, 5]
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    again, features = load_score_model(tmp_path, backbone=backbone), torch.randn(3, len(model.feature_mean))
    assert again.channel("reward").hidden == 0
    torch.testing.assert_close(again(features), model(features))
    linear = model.head[0][0]
    torch.testing.assert_close(model(features)[:, 0], (features @ linear.weight.T + linear.bias)[:, 0])
