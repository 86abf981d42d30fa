"""A folder that loads must be one that computes: what would fail or mislead later is refused when it is read."""

import json

import pytest
import torch

from poise.errors import ModelError
from poise.models.families import windows_of
from poise.models.load import load_backbone
from poise.models.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    """The folder of a whole model."""
    tiny_model("random:llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer("random:llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_weights_in_pickles_are_not_read(folder):
    torch.save(tiny_model("random:llama").state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="weights as pickles, which poise does not read"):
        load_backbone(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(folder, value):
    model = tiny_model("random:llama")
    model.model.norm.weight.data[3] = value
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"not finite numbers: 1 tensors, the first model\.norm\.weight"):
        load_backbone(str(folder))


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_of_tokens_that_have_no_weights_is_refused_when_they_may_be_said(folder, special):
    tokenizer = tiny_tokenizer("random:llama")
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|turn|>"]})
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")
    else:
        tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"weights for 260 tokens, but its tokenizer has 261: 1 tokens"):
        load_backbone(str(folder))


def test_a_padding_token_without_weights_is_never_looked_up(folder):
    tokenizer = tiny_tokenizer("random:llama")
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(folder)
    change(folder / "config.json", pad_token_id=260)
    backbone = load_backbone(str(folder), dtype=torch.float32)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(backbone.model(ids).logits, tiny_model("random:llama")(ids).logits)


@pytest.mark.parametrize("value", ["<|im_end|>", [0, "<|im_end|>"], 1.5, True])
def test_an_end_that_is_no_token_id_is_named(folder, value):
    change(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelError, match=r"eos_token_id in generation_config\.json"):
        load_backbone(str(folder)).renderer()


@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"rope_parameters": {"rope_type": "strange", "rope_theta": 1.0}},
        {"num_attention_heads": 0},
        {"hidden_act": "strange"},
    ],
)
def test_whatever_transformers_raises_of_a_configuration_is_an_error_in_one_paragraph(folder, fields, capfd):
    change(folder / "config.json", **fields)
    with pytest.raises(ModelError, match=r"cannot load model .* \(folder\): .*Give a folder") as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)
    assert "MISSING" not in "".join(capfd.readouterr())


def test_a_window_in_which_no_token_sees_itself_is_refused():
    from transformers import MistralConfig

    with pytest.raises(ModelError, match="sliding_window=0 is too small"):
        windows_of(MistralConfig(num_hidden_layers=2, sliding_window=0))
