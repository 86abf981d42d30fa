"""Score models as a command: any channels, and the same scores from a classifier that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from own_files import Command, write_rows
from poise.errors import ConfigError, DataError
from poise.files import read_json
from poise.models.heads import load_score_model
from poise.models.load import load_backbone
from poise.recipes.score_model import score_model
from poise.types import Prompt


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs with a flag for each response."""
    rows = [
        {
            "prompt": f"How do I open lock {i}?",
            "chosen": f"Call a locksmith, {i}.",
            "rejected": "Rake the pins!!" if i % 2 else "Drill it!!",
            "chosen_safe": True,
            "rejected_safe": i % 4 == 0,
            "criterion": "safe" if i % 3 == 0 else "helpful",
        }
        for i in range(48)
    ]
    return write_rows(tmp_path_factory.mktemp("judged") / "pairs.jsonl", rows)


def words(model: str, data: str, *more: str) -> list[str]:
    return ["--model", model, "--data", data, "--dtype", "float32", *more]


@pytest.fixture(scope="module")
def two_channels(own_model: str, judged: str, command: Command) -> Path:
    return command("score-model", *words(own_model, judged, "--steps", "40"))


def scores_of(run: Path, answers: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [N, C] by the score model, and by nothing but transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    summary = read_json(run / "summary.json")
    base = load_backbone(read_json(run / "run.json")["arguments"]["model"], dtype=torch.float32)
    ours = load_score_model(run / summary["score_model"], backbone=base)
    expected = ours.values([Prompt.of(prompt) for prompt, _ in answers], [response for _, response in answers])
    folder = run / summary["classifier"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tuple(model.config.id2label.values()) == ours.names
    told = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        for prompt, response in answers
    ]
    texts = [tokenizer.apply_chat_template(each, tokenize=False, continue_final_message=True) for each in told]
    with torch.no_grad():
        found = model(**tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)).logits
    return expected, found


ANSWERS = [("How do I open lock 3?", "Call a locksmith, 3."), ("Tea?", "No!!"), ("Why is that so?", "Because of tea.")]


def test_transformers_loads_the_scores_of_a_head_and_its_card_says_signs_and_calibration(two_channels: Path):
    expected, found = scores_of(two_channels, ANSWERS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std(0).min() > 0.01
    summary = read_json(two_channels / "summary.json")
    card = (two_channels / summary["classifier"] / "README.md").read_text("utf-8")
    assert "| reward | better | none |" in card
    assert "| cost | worse | P(harm) = sigmoid(" in card
    stored = read_json(two_channels / summary["classifier"] / "config.json")["poise_channels"]
    assert [(each["name"], each["higher_is_worse"]) for each in stored] == [("reward", False), ("cost", True)]
    assert {"reward_pair_accuracy", "cost_pair_accuracy", "cost_sign_accuracy"} <= set(summary)


def test_transformers_loads_the_scores_of_an_adapter(own_model: str, judged: str, command: Command):
    run = command("score-model", *words(own_model, judged, "--train", "lora", "--steps", "6", "--channels", "reward"))
    expected, found = scores_of(run, ANSWERS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std(0).min() > 0.01


def test_a_run_of_score_models_is_the_reward_and_the_cost_of_another(
    two_channels: Path, own_model: str, judged: str, command: Command
):
    scorer, tiny = str(two_channels), ("--steps", "1", "--samples-per-step", "8", "--response-tokens", "6")
    more = ("--reward", scorer, "--cost", scorer, "--limit", "cost <= 0", *tiny)
    run = command("safe-rl", "--model", own_model, "--data", judged, *more)
    summary = read_json(run / "summary.json")
    assert summary["cost <= 0"]["n"] > 0
    assert summary["reward"]["n"] > 0


def test_channels_learn_from_grades_under_names_of_their_own_and_what_none_reads_is_said(
    own_model: str, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
):
    rows = [{"prompt": f"{i}?", "response": f"Yes, {i}.", "helpfulness": i % 5, "verbosity": 1} for i in range(30)]
    data, wanted = write_rows(tmp_path / "graded.jsonl", rows), "quality:regression:helpfulness"
    more = ("--channels", wanted, "--depth", "0.5", "--pooling", "mean+prompt", "--hidden", "8", "--steps", "5")
    run = command("score-model", *words(own_model, data, *more))
    said = capsys.readouterr().err
    assert "no channel learns from verbosity" in said
    assert "no sequence classifier for transformers was written: its pooling is mean+prompt" in said
    summary = read_json(run / "summary.json")
    assert summary["quality_rating_error"]["n"] > 0
    assert summary["classifier"] is None
    assert load_score_model(run / summary["score_model"]).names == ("quality",)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"channels": ("reward:hinge",)}, "with a loss of bradley-terry, signs, regression, plackett-luce"),
        ({"channels": ("cost:bradley-terry",)}, "a cost learns by signs"),
        ({"channels": ("humour", "humour")}, "humour stands there twice"),
        ({"channels": ("humour",)}, "nothing in its .* prompts.* is a judgement for humour"),
        ({"hidden": 8}, "a sequence classifier is a linear head on all"),
        ({"depth": 0.5}, "a sequence classifier is a linear head on all"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what_there_is(
    own_model: str, judged: str, tmp_path: Path, arguments: dict[str, Any], says: str
):
    with pytest.raises((ConfigError, DataError), match=says):
        score_model(model=own_model, data=judged, folder=str(tmp_path / "run"), **arguments)
