"""A configuration that asks for what is not computed here is refused when it is first met."""

import pytest
import torch

from families import FEATURES, backbone_of, model_with
from poise.errors import ModelError
from poise.models import families, fused, verified
from poise.models.families import Family, LogitRule
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.models.tiny import tiny_tokenizer
from poise.models.verified import verify_layers
from poise.rollout.native import NativeEngine
from poise.types import Prompt, Sampling


@pytest.fixture(autouse=True)
def _nothing_verified(monkeypatch, tmp_path):
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "_verified", set())


@pytest.mark.parametrize("family", FEATURES)
def test_what_is_supported_passes(family):
    verify_layers(model_with(family, FEATURES[family]))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "cohere2"])
def test_a_window_that_is_not_read_is_found(family, monkeypatch):
    monkeypatch.setitem(families.FAMILIES, family, Family())
    with pytest.raises(ModelError, match=rf"family '{family}'.*differ from those of transformers by"):
        verify_layers(model_with(family, FEATURES[family]))


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere"])
def test_a_rule_of_the_logits_that_is_not_read_is_found(family, monkeypatch):
    monkeypatch.setattr(LogitRule, "of", classmethod(lambda cls, config: cls()))
    with pytest.raises(ModelError, match="layer by layer differ"):
        verify_layers(model_with(family, FEATURES[family]))


def test_attention_that_looks_ahead_is_refused():
    features = FEATURES["gemma3_text"] | {"use_bidirectional_attention": True}
    with pytest.raises(ModelError, match="uses an unsupported feature"):
        verify_layers(model_with("gemma3_text", features))


def test_a_norm_that_the_flat_layers_do_not_know_is_found():
    model = model_with("llama", FEATURES["llama"])
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda module, given, output: output * 1.5)
    with pytest.raises(ModelError, match="computed without padding differ"):
        verify_layers(model)


def test_layers_that_generation_does_not_know_are_found(monkeypatch):
    policy = Policy(backbone_of(model_with("olmo", FEATURES["olmo"])))
    monkeypatch.setattr(fused, "_FAMILIES", (*fused._FAMILIES, "olmo"))
    monkeypatch.setattr(fused._Norm, "__init__", plain_norm)
    with pytest.raises(ModelError, match="computed in generation differ"):
        NativeEngine(policy).generate([Prompt.of("a")], Sampling(max_tokens=2))


def plain_norm(self, module, dtype):
    self.weight, self.epsilon = torch.ones(32, dtype=dtype), 1e-6


def test_windows_that_generation_does_not_keep_are_found(monkeypatch):
    policy = Policy(backbone_of(model_with("mistral", FEATURES["mistral"])))
    monkeypatch.setattr("poise.rollout.native.fuses", lambda decoder, columns: True)
    with pytest.raises(ModelError, match="computed in generation differ"):
        NativeEngine(policy).generate([Prompt.of("a")], Sampling(max_tokens=2))


def test_a_folder_is_compared_once_for_its_configuration_and_left_as_it_was(tmp_path, monkeypatch):
    model, calls = model_with("qwen2", FEATURES["qwen2"]), []
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer("random:llama").save_pretrained(tmp_path / "model")
    monkeypatch.setattr(verified, "transformers_logprobs", counted(calls))
    first = load_backbone(str(tmp_path / "model"), dtype=torch.float32)
    before = len(calls)
    verified._verified.clear()  # as in another process
    load_backbone(str(tmp_path / "model"), dtype=torch.float32)
    assert before == len(calls) > 0
    assert first.model.config.sliding_window == model.config.sliding_window
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), model.parameters(), strict=True))


def counted(calls, compute=verified.transformers_logprobs):
    def count(model, ids):
        calls.append(ids.shape)
        return compute(model, ids)

    return count
