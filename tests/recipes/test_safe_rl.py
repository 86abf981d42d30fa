"""A policy under limits by scorers of one's own, as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from own_files import Command, write_rows
from poise.errors import ConfigError, FeedbackError
from poise.files import read_json, read_jsonl_tolerant
from poise.models.policy import load_policy
from poise.recipes.safe_rl import safe_rl

REWARDS = """
def short(prompts, completions, expected, **columns):
    assert all(expected), "the columns of the data are there"
    return [-float(len(each)) for each in completions]

def length(completions, **columns):
    return [float(len(each)) for each in completions]

def sometimes(completions, **columns):
    return [None if i % 2 else 1.0 for i, each in enumerate(completions)]

def never(completions, **columns):
    return [None for each in completions]
"""
TINY = ("--steps", "2", "--samples-per-step", "16", "--response-tokens", "8", "--dtype", "float32", "--answers", "2")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A file of prompts with a further column, and one of reward functions."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(REWARDS)
    rows = [{"prompt": f"How much is {i} + 1?", "expected": str(i + 1)} for i in range(24)]
    return write_rows(folder / "prompts.jsonl", rows), f"py:{folder / 'mine.py'}"


def words(model: str, own: tuple[str, str], reward: str, *more: str) -> list[str]:
    return ["--model", model, "--data", own[0], "--reward", f"{own[1]}:{reward}", *TINY, *more]


def test_without_limits_it_is_plain_grpo_on_ones_own_reward(own_model: str, own: tuple[str, str], command: Command):
    run = command("safe-rl", *words(own_model, own, "short", "--algorithm", "grpo", "--lr", "0.01", "--steps", "6"))
    summary, steps = read_json(run / "summary.json"), read_jsonl_tolerant(run / "policy-seed-0" / "metrics.jsonl")
    assert not [name for row in steps for name in row if name.startswith("multiplier")]
    assert summary["reward"]["value"] > summary["reward_before"]["value"] - 1e-9
    assert summary["reward"]["n"] == summary["reward_before"]["n"] > 0
    assert summary["unscorable"]["value"] < 1
    assert "not a judge" in (run / "safe-rl.md").read_text("utf-8")
    assert load_policy(str(run)).lora is not None  # the run stands for the policy


def test_limits_on_several_channels_are_held_and_measured_on_held_out_prompts(
    own_model: str, own: tuple[str, str], command: Command
):
    more = ("--cost", f"{own[1]}:length", "--cost", "5*rule:refusal", "--scorer", f"words={own[1]}:length")
    limits = ("--limit", "cost <= 2", "--limit", "words <= 1000", "--limit", "refusal <= 50 %")
    run = command("safe-rl", *words(own_model, own, "short", *more, *limits))
    summary = read_json(run / "summary.json")
    steps = [row for row in read_jsonl_tolerant(run / "policy-seed-0" / "metrics.jsonl") if row["stage"] == "policy"]
    assert {"multiplier_cost", "multiplier_words", "multiplier_refusal"} <= set(steps[-1])
    assert summary["cost <= 2"]["value"] == pytest.approx(summary["words <= 1000"]["value"])  # nothing is refused
    assert summary["cost <= 2, before"]["value"] > 2
    outcomes = {each["text"]: each["outcome"] for each in summary["claims"]}
    assert outcomes["words <= 1000 on held-out prompts"] == "holds"
    assert outcomes["cost <= 2 on held-out prompts"] != "holds"


def test_an_answer_without_a_reward_is_counted_and_all_of_them_are_an_error(
    own_model: str, own: tuple[str, str], command: Command, tmp_path: Path
):
    run = command("safe-rl", *words(own_model, own, "sometimes"))
    assert 0 < read_json(run / "summary.json")["unscorable"]["value"] < 1
    with pytest.raises(FeedbackError):
        safe_rl(model=own_model, data=own[0], reward=(f"{own[1]}:never",), steps=1, folder=str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "no reward: say what is maximised"),
        ({"reward": ("rule:refusal",), "limit": ("cost <= 0",)}, "nothing fills the channel 'cost'; give --cost"),
        ({"reward": ("rule:refusal",), "cost": ("rule:refusal",)}, "cost is scored and nothing limits it"),
        ({"reward": ("rule:refusal",), "scorer": ("rule:refusal",)}, "write CHANNEL=SCORER"),
        ({"reward": ("rule:refusal",), "limit": ("reward <= 1",)}, "the reward is maximised"),
        ({"reward": ("rule:refusal",), "limit": ("refusal@theft <= 0.1",)}, "no training prompt belongs to 'theft'"),
        ({"reward": ("rule:nothing",)}, "there is no rule 'nothing'"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what_to_give(
    own_model: str, own: tuple[str, str], tmp_path: Path, arguments: dict[str, Any], says: str
):
    with pytest.raises(ConfigError, match=says):
        safe_rl(model=own_model, data=own[0], folder=str(tmp_path / "run"), **arguments)
