"""Score models that share a pass say what each says alone, and refuse what they cannot share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from poise.errors import ConfigError
from poise.models import one_pass
from poise.models.channels import REWARD, Channel
from poise.models.heads import COST, ScoreModel, load_score_model
from poise.models.load import Backbone, load_backbone
from poise.models.one_pass import OnePass
from poise.types import Completion, Prompt

REFUSAL = Channel(name="refusal", is_probability=True)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("random:llama?layers=3")


def model(backbone: Backbone, channel: Channel, depth: int, **reading) -> ScoreModel:  # type: ignore[no-untyped-def]
    return ScoreModel(backbone, (channel,), depth=depth, seed=depth, adapter=channel.name, **reading)


def test_models_that_share_a_pass_score_as_each_does_alone(backbone: Backbone) -> None:
    prompts = [Prompt.of("One?"), Prompt.of("Two, please?"), Prompt.of("One?")]
    answers = [Completion(prompt_id=p.id, text=text) for p, text in zip(prompts, ("Yes.", "Never!", ""), strict=True)]
    alone = [model(backbone, REFUSAL, 3), model(backbone, COST, 1, pooling="mean+last+prompt")]
    together = OnePass(alone).score(prompts, answers)
    for each in alone:
        for own, shared in zip(each.score(prompts, answers), together, strict=True):
            assert own.unscorable == shared.unscorable
            for name, value in own.values.items():
                assert shared.values[name] == pytest.approx(value, abs=1e-5)
    assert [sorted(scores.values) for scores in together] == [["cost", "refusal"], ["cost", "refusal"], []]


def test_layers_that_are_shared_run_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, int]] = []
    run = one_pass.run_shared

    def counted(decoder, rows, *, stop):  # type: ignore[no-untyped-def]
        ran.append((rows.depth, stop))
        return run(decoder, rows, stop=stop)

    monkeypatch.setattr(one_pass, "run_shared", counted)
    prompt = Prompt.of("One?")
    OnePass([model(backbone, REFUSAL, 3), model(backbone, COST, 1)]).score(
        [prompt], [Completion(prompt_id=prompt.id, text="Yes.")]
    )
    assert ran == [(0, 1), (1, 3)]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda b: model(b, COST, 2), "fill one channel: cost, cost"),
        (lambda b: model(b, REWARD, 2, max_response_tokens=7), "give both the same windows"),
        (lambda b: model(load_backbone("random:llama?layers=2"), REWARD, 2), "another backbone"),
    ],
    ids=["channels", "windows", "backbones"],
)
def test_models_that_cannot_share_a_pass_are_refused(
    backbone: Backbone, other: Callable[[Backbone], ScoreModel], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        OnePass([model(backbone, COST, 1), other(backbone)])


def test_a_probability_lies_between_0_and_1_and_says_so(backbone: Backbone) -> None:
    channel = Channel(name="refusal", is_probability=True)
    assert channel.value(torch.tensor([-100.0, 0.0, 100.0])).tolist() == [0.0, 0.5, 1.0]
    assert OnePass([model(backbone, channel, 1)]).bounds == {"refusal": (0.0, 1.0)}
    with pytest.raises(ConfigError, match="leave out bound"):
        Channel(name="refusal", is_probability=True, bound=1.0)


def test_what_follows_the_opening_changes_no_score(backbone: Backbone, tmp_path: Path) -> None:
    opens = model(backbone, REFUSAL, 2, pooling="mean+last+prompt")
    opens.opening = 4
    values = opens.values([Prompt.of("One?")] * 3, ["abcd", "abcd and on it goes", "abcx"])[:, 0].tolist()
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert abs(values[0] - values[2]) > 1e-4
    opens.save_pretrained(tmp_path)
    assert load_score_model(tmp_path, backbone=backbone).opening == 4
