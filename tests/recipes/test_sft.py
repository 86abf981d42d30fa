"""Supervised fine-tuning as a command: what it writes is what transformers and peft load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from own_files import Command, write_rows
from poise.data import held_out, load
from poise.errors import DataError
from poise.files import read_json
from poise.models.load import load_backbone
from poise.recipes.sft import sft

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [
        {"messages": [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": f"{i + 1}."}]}
        for i in range(20)
    ]
    return write_rows(tmp_path_factory.mktemp("data") / "shown.jsonl", rows)


def words(model: str, data: str, *more: str) -> list[str]:
    return ["--model", model, "--dtype", "float32", "--data", data, "--steps", "3", "--rows-per-step", "8", *more]


@pytest.fixture(scope="module")
def adapter_run(own_model: str, shown: str, command: Command) -> Path:
    return command("sft", *words(own_model, shown, "--lr", "0.02"))


def nats(model: torch.nn.Module, data: str) -> dict[str, float]:
    """The cross-entropy of each held-out answer, by its prompt, with nothing but the model and its token ids."""
    renderer = load_backbone("random:llama?layers=2&hidden=32").renderer()
    found = {}
    for each in held_out(load(data))["test"].demonstrations:
        row = renderer.encode(each.prompt, each.response)
        with torch.no_grad():
            logits = model(torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
        start = row.prompt_length
        picked = logits[start - 1 :].gather(-1, torch.tensor(row.ids[start:])[:, None])
        found[each.prompt.id] = -picked.sum().item()
    return found


def measured(run: Path, name: str = "nats") -> dict[str, float]:
    trial = read_json(run / "sft-seed-0" / "stage.json")["trial"]
    return {prompt: rows[0] for prompt, rows in trial["by_prompt"][name].items()}


def test_the_adapter_loads_in_peft_with_the_losses_that_were_printed(adapter_run: Path, own_model: str, shown: str):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    summary = read_json(adapter_run / "summary.json")
    base = AutoModelForCausalLM.from_pretrained(own_model, dtype=torch.float32)
    assert measured(adapter_run, "nats_before") == pytest.approx(nats(base, shown), abs=1e-5)
    model = PeftModel.from_pretrained(base, adapter_run / summary["model_folder"])
    assert measured(adapter_run) == pytest.approx(nats(model, shown), abs=1e-5)
    change = summary["loss_change"]
    assert change["high"] < 0
    assert change["n"] == len(measured(adapter_run)) > 0


def test_all_weights_are_trained_from_the_run_of_another_stage_and_load_in_transformers(
    adapter_run: Path, shown: str, command: Command
):
    from transformers import AutoModelForCausalLM

    run = command("sft", *words(str(adapter_run), shown, "--rank", "0", "--lr", "0.01"))
    assert measured(run, "nats_before") == pytest.approx(measured(adapter_run), abs=1e-4)
    model = AutoModelForCausalLM.from_pretrained(run / read_json(run / "summary.json")["model_folder"])
    assert measured(run) == pytest.approx(nats(model, shown), abs=1e-5)
    assert sum(measured(run).values()) < sum(measured(adapter_run).values())


def test_the_preferred_response_of_a_pair_is_a_demonstration_and_columns_have_names_of_ones_own(
    tmp_path: Path, own_model: str, command: Command
):
    rows = [{"question": f"{i}?", "better": "Yes.", "worse": "No."} for i in range(12)]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    run = command("sft", *words(own_model, data, "--columns", "prompt=question,chosen=better,rejected=worse"))
    assert read_json(run / "summary.json")["nats"]["n"] > 0


def test_answers_that_do_not_fit_are_counted_aloud(
    tmp_path: Path, own_model: str, command: Command, capsys: pytest.CaptureFixture[str]
):
    rows = [{"prompt": f"{i}?", "completion": "word " * 30 if i < 3 else "Yes."} for i in range(3)]
    data = write_rows(tmp_path / "long.jsonl", rows)
    run = command("sft", *words(own_model, data, "--response-tokens", "8"))
    cut = read_json(run / "sft-seed-0" / "policy" / "stage.json")["cut"]
    assert cut > 0
    assert f"{cut} of {cut} demonstrations do not fit the window and were cut" in capsys.readouterr().err


def test_prompts_alone_are_an_error_that_says_what_to_give(tmp_path: Path, own_model: str):
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"{i}?"} for i in range(4)])
    with pytest.raises(DataError, match="give messages, or prompts with completions"):
        sft(model=own_model, data=data, folder=str(tmp_path / "run"))


def test_too_few_prompts_to_hold_any_out_are_said_and_not_shown_as_an_empty_table(
    command: Command, own_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hash of the text divides them, and both fall on the side that is learned from."""
    rows = [{"prompt": f"What is {name}?", "completion": "A drink."} for name in ("tea", "milk")]
    data = write_rows(tmp_path / "few.jsonl", rows)
    assert not held_out(load(data))["test"].prompts
    command("sft", "--model", own_model, "--data", data, "--steps", "1", "--response-tokens", "8")
    told = capsys.readouterr()
    assert "no answer is held out, so nothing is measured" in told.err + told.out
    assert "Nothing was measured." in told.out
