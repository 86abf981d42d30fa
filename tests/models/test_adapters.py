"""Adapters: identities at the start, strangers to each other, and folders that plain peft and transformers read."""

import json
import warnings

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from poise.errors import ConfigError, ModelError
from poise.models.adapters import (
    Lora,
    adapter_parameters,
    add_adapter,
    load_adapter,
    lora_modules,
    save_adapter,
    use_adapter,
)
from poise.models.load import load_backbone
from poise.models.policy import Policy, load_policy, read_adapter_config


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def adapted_layers(model, name):
    """Indices of the layers that carry the adapter, from their names: model.layers.3.mlp.up_proj."""
    return {
        int(next(part for part in path.split(".") if part.isdigit()))
        for path, module in lora_modules(model)
        if name in module.scale
    }


def test_a_new_adapter_is_the_identity_and_only_it_is_trained(backbone, ids):
    before = logits(backbone.model, ids)
    add_adapter(backbone.model, backbone.decoder.layers, "a", Lora(rank=3))
    with use_adapter(backbone.model, "a"):
        assert torch.equal(logits(backbone.model, ids), before)
    trained = {id(p) for p in backbone.model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapter_parameters(backbone.model, "a").values()}


def test_the_product_is_alpha_over_rank_times_a_and_b(backbone, ids, move_adapter):
    add_adapter(backbone.model, backbone.decoder.layers, "a", Lora(rank=4, alpha=6.0))
    move_adapter(backbone.model, "a")
    _, module = next(lora_modules(backbone.model))
    x = torch.randn(2, 5, module.inputs)
    with torch.no_grad():
        module.active = None
        plain = module(x)
        module.active = "a"
        low_rank = 6.0 / 4 * x @ module.lora_a["a"].T @ module.lora_b["a"].T
        torch.testing.assert_close(module(x), plain + low_rank)


def test_adapters_on_one_backbone_do_not_disturb_each_other(backbone, ids, move_adapter):
    bare = logits(backbone.model, ids)
    found = {}
    for seed, name in enumerate(("a", "b")):
        add_adapter(backbone.model, backbone.decoder.layers, name, Lora(rank=2, top=1.0 if name == "a" else 0.5))
        move_adapter(backbone.model, name, seed)
        with use_adapter(backbone.model, name):
            found[name] = logits(backbone.model, ids)
    assert torch.equal(logits(backbone.model, ids), bare)
    with use_adapter(backbone.model, "a"):
        assert torch.equal(logits(backbone.model, ids), found["a"])
    assert all((found[name] - bare).abs().max() > 1e-3 for name in found)
    assert (found["a"] - found["b"]).abs().max() > 1e-3


def test_gradients_reach_the_active_adapter_alone(backbone, ids):
    for name in ("a", "b"):
        add_adapter(backbone.model, backbone.decoder.layers, name, Lora(rank=2))
    with use_adapter(backbone.model, "a"):
        backbone.model(ids).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is None for p in adapter_parameters(backbone.model, "b").values())
    assert any(p.grad.abs().sum() > 0 for p in adapter_parameters(backbone.model, "a").values())


def test_use_adapter_restores_what_was_active_even_after_an_error(backbone):
    for name in ("a", "b"):
        add_adapter(backbone.model, backbone.decoder.layers, name, Lora(rank=2))

    def active():
        return {module.active for _, module in lora_modules(backbone.model)}

    with use_adapter(backbone.model, "a"):
        with use_adapter(backbone.model, None):
            assert active() == {None}
        with pytest.raises(ZeroDivisionError), use_adapter(backbone.model, "b"):
            _ = 1 / 0
        assert active() == {"a"}
    assert active() == {None}


@pytest.mark.parametrize(("top", "stop", "expected"), [(0.5, None, {2, 3}), (1.0, None, {0, 1, 2, 3}), (0.01, 3, {2})])
def test_top_adapts_the_last_layers_below_stop(backbone, top, stop, expected):
    first = add_adapter(backbone.model, backbone.decoder.layers, "a", Lora(rank=2, top=top), stop=stop)
    assert adapted_layers(backbone.model, "a") == expected
    assert first == min(expected)


def test_a_name_that_is_taken_is_refused_and_nothing_is_touched(backbone):
    add_adapter(backbone.model, backbone.decoder.layers, "a", Lora(rank=2, top=0.5))
    with pytest.raises(ConfigError, match="already has an adapter 'a'"):
        add_adapter(backbone.model, backbone.decoder.layers, "a", Lora(rank=2))
    assert adapted_layers(backbone.model, "a") == {2, 3}


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"top": 0.0}, {"top": 1.1}])
def test_a_rank_or_share_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="rank must be >= 1 and top in"):
        Lora(**wrong)


@pytest.fixture
def saved_base(backbone, tmp_path):
    """The tiny model as a folder, loaded from there: what a user's own model would be."""
    backbone.model.save_pretrained(tmp_path / "base")
    backbone.tokenizer.save_pretrained(tmp_path / "base")
    return load_backbone(str(tmp_path / "base"), dtype=torch.float32)


@pytest.mark.parametrize("top", [1.0, 0.5])
def test_plain_peft_loads_the_folder_without_a_warning_and_gives_the_same_logits(
    saved_base, tmp_path, ids, move_adapter, top
):
    policy = Policy(saved_base, Lora(rank=3, alpha=5.0, top=top))
    move_adapter(policy.model, "policy")
    policy.save_pretrained(tmp_path / "adapter")
    with policy.policy_mode():
        ours = logits(policy.model, ids)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert (ours - logits(plain, ids)).abs().max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # what peft and transformers say to each other is not about the folder
        warnings.filterwarnings("ignore", category=FutureWarning, module="peft")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(theirs, ids), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top", [1.0, 0.5, 0.25])
def test_a_saved_policy_comes_back_with_the_same_layers_and_logits(family, tmp_path, ids, move_adapter, top):
    policy = load_policy(f"random:{family}?layers=4", lora=Lora(rank=3, alpha=5.0, top=top), seed=7)
    move_adapter(policy.model, "policy")
    policy.save_pretrained(tmp_path)
    assert read_adapter_config(tmp_path / "adapter_config.json") == (policy.lora, f"random:{family}?layers=4&seed=7")
    again = load_policy(str(tmp_path))
    assert (again.lora, again.split) == (policy.lora, policy.split)
    assert adapted_layers(again.model, "policy") == adapted_layers(policy.model, "policy")
    with policy.policy_mode(), again.policy_mode():
        assert torch.equal(logits(again.model, ids), logits(policy.model, ids))


def test_merged_weights_load_in_plain_transformers_with_the_same_logits(family, tmp_path, ids, move_adapter):
    policy = Policy(load_backbone(f"random:{family}?layers=4&hidden=32", dtype=torch.float64), Lora(rank=3, top=0.5))
    add_adapter(policy.model, policy.decoder.layers, "other", Lora(rank=2))
    move_adapter(policy.model, "policy")
    move_adapter(policy.model, "other")
    with policy.policy_mode():
        ours = logits(policy.model, ids)
    policy.save_pretrained(tmp_path, merge=True)
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits(plain, ids), ours, atol=1e-5, rtol=1e-5)


def test_a_folder_of_another_shape_or_without_an_adapter_is_refused(backbone, tmp_path):
    add_adapter(backbone.model, backbone.decoder.layers, "a", Lora(rank=2, top=0.5))
    with pytest.raises(ModelError, match=r"has no adapter \(adapter_model\.safetensors is missing\)"):
        load_adapter(backbone.model, "a", tmp_path)
    for name, spec in {"deeper": Lora(rank=2), "wider": Lora(rank=1, top=0.5)}.items():
        add_adapter(backbone.model, backbone.decoder.layers, name, spec)
        save_adapter(backbone.model, name, spec, tmp_path / name, base="random:llama")
        before = {key: value.clone() for key, value in adapter_parameters(backbone.model, "a").items()}
        with pytest.raises(ModelError, match="does not fit this model or its Lora"):
            load_adapter(backbone.model, "a", tmp_path / name)
        assert all(torch.equal(before[k], v) for k, v in adapter_parameters(backbone.model, "a").items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
    ],
)
def test_an_adapter_that_would_be_computed_differently_is_refused(tmp_path, change, message):
    policy = load_policy("random:llama", lora=Lora(rank=2))
    policy.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_policy(str(tmp_path))


def test_an_adapter_that_peft_wrote_without_our_card_is_read_as_covering_all_layers(tmp_path, move_adapter, ids):
    policy = load_policy("random:llama", lora=Lora(rank=2))
    move_adapter(policy.model, "policy")
    policy.save_pretrained(tmp_path)
    (tmp_path / "poise_adapter.json").unlink()
    again = load_policy(str(tmp_path))
    with policy.policy_mode(), again.policy_mode():
        assert torch.equal(logits(again.model, ids), logits(policy.model, ids))
