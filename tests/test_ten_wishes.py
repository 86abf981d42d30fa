"""From an empty folder: one's own model, data, scorers and reward; every stage is one command, and plain libraries
load what it writes, with the same log-probabilities or scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from own_files import write_rows
from poise.cli import main
from poise.files import read_json
from poise.models.load import load_backbone

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TINY = ("--dtype", "float32")
SHORT = (*TINY, "--steps", "2", "--samples-per-step", "8", "--response-tokens", "6", "--answers", "1")


def poise(*words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code, words


def summary(run: str) -> dict[str, Any]:
    return dict(read_json(Path(run) / "summary.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with nothing but files of one's own, and all ten commands run in it."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("empty")
    backbone = load_backbone("random:llama?layers=2&hidden=32", seed=5)
    backbone.model.save_pretrained(folder / "model")
    backbone.tokenizer.save_pretrained(folder / "model")
    config = AutoConfig.from_pretrained(folder / "model", num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "classifier")
    backbone.tokenizer.save_pretrained(folder / "classifier")
    write_rows(
        folder / "shown.jsonl",
        [
            {"conversations": [{"from": "human", "value": f"{i} + 1?"}, {"from": "gpt", "value": f"{i + 1}."}]}
            for i in range(20)
        ],
    )
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "better", "worse"])
        rows.writerows([f"How much is {i}?", f"It is {i}, of course.", "No."] for i in range(24))
    pandas_free_parquet(folder / "flags.parquet")
    write_rows(folder / "prompts.jsonl", [{"prompt": f"How much is {i} + 1?", "kind": "benign"} for i in range(20)])
    (folder / "mine.py").write_text(
        "def short(completions, **columns):\n    return [-float(len(c)) for c in completions]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_all()
        yield folder


def pandas_free_parquet(file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": f"Lock {i}?", "response": "Rake it!!" if i % 2 else "Call someone.", "safe": i % 2 == 0}
        for i in range(40)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def run_all() -> None:
    columns = "prompt=question,chosen=better,rejected=worse"
    model, pairs = ("--model", "model"), ("--data", "pairs.csv", "--columns", columns)
    start, prompts = ("--model", "runs/sft"), ("--data", "prompts.jsonl")
    poise("run", "sft", *model, "--data", "shown.jsonl", *TINY, "--steps", "2", "--folder", "runs/sft")
    poise("run", "score-model", *model, *pairs, *TINY, "--steps", "20", "--folder", "runs/reward")
    poise(
        *("run", "score-model", *model, "--data", "flags.parquet", "--channels", "cost:signs", *TINY),
        *("--steps", "20", "--folder", "runs/cost"),
    )
    poise("run", "preference", *start, *pairs, "--loss", "ipo", *TINY, "--steps", "2", "--folder", "runs/preference")
    poise("run", "safe-rl", *model, *prompts, "--reward", "py:mine.py:short + 0.1*hf:classifier", "--algorithm",
          "grpo", *SHORT,
          "--seeds", "0,1", "--folder", "runs/grpo")  # fmt: skip
    poise("run", "safe-rl", *start, *prompts, "--reward", "runs/reward", "--cost", "runs/cost", "--limit", "cost <= 0",
          "--limit", "refusal@benign <= 10 %", *SHORT, "--folder", "runs/limits")  # fmt: skip
    poise("table", "runs/grpo", "runs/limits", "--metrics", "reward,reward_before", "--output", "table.md")


def test_a_table_has_several_runs_and_seeds(folder: Path):
    table = (folder / "table.md").read_text("utf-8")
    assert "runs/grpo" in table
    assert "They differ in seeds: runs/grpo 0,1, runs/limits 0." in table.replace("\\", "")


def test_two_limits_are_measured_and_the_reward_is_that_of_the_score_model(folder: Path):
    found = summary("runs/limits")
    assert {"reward", "reward_before", "cost <= 0", "refusal@benign <= 10 %"} <= set(found)
    assert json.loads((folder / "runs/limits/run.json").read_text())["arguments"]["reward"] == ["runs/reward"]


@pytest.mark.parametrize("run", ["sft", "preference", "grpo", "limits"])
def test_peft_loads_each_policy_with_the_same_log_probabilities(folder: Path, run: str):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = folder / "runs" / run / summary(f"runs/{run}")["model_folder"]
    ours = load_backbone(str(place), dtype=torch.float32)
    base = read_json(place / "adapter_config.json")["base_model_name_or_path"]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), place)
    ids = AutoTokenizer.from_pretrained(place)("How much is 3 + 1? It is 4.", return_tensors="pt").input_ids
    with torch.no_grad():
        expected, found = (model(ids).logits.log_softmax(-1) for model in (theirs, ours.model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert any(parameter.abs().sum() > 0 for name, parameter in theirs.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(("run", "channel"), [("reward", "reward"), ("cost", "cost")])
def test_transformers_loads_each_score_model(folder: Path, run: str, channel: str):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "runs" / run / summary(f"runs/{run}")["classifier"]
    )
    assert model.config.id2label == {0: channel}
