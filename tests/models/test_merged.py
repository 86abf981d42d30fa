"""What is not a whole language model is made one, or refused: adapters, classifiers, files with weights missing."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from poise.errors import ModelError
from poise.models.adapters import Lora
from poise.models.load import load_backbone, load_config, load_tokenizer
from poise.models.policy import Policy, load_policy
from poise.models.shared_rows import SharedRows
from poise.models.tiny import tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*(ensure_weight_tying|save_embedding_layers)"),
]
IDS = torch.randint(4, 250, (1, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path):
    """The folder of a whole model."""
    tiny_model("random:llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer("random:llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter_on(base, folder, change=("lora_",), **settings):
    """The folder of an adapter that peft made, and moved."""
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if any(part in name for part in change):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 3}},
        {"target_modules": ["o_proj"], "use_dora": True},
    ],
)
def test_an_adapters_folder_has_the_logprobs_of_peft_in_every_role(base, tmp_path, settings):
    folder = adapter_on(base, tmp_path / "adapter", **settings)
    with torch.no_grad():
        theirs = AutoPeftModelForCausalLM.from_pretrained(folder)
        expected = theirs(IDS).logits.log_softmax(-1)[0, 3:-1].gather(-1, IDS[0, 4:, None])[:, 0]
        rows = SharedRows.of_lists(IDS.tolist(), [4])
        backbone = load_backbone(str(folder), dtype=torch.float32)
        for policy in (Policy(backbone, Lora(rank=1)), load_policy(str(folder))):
            for reference in (False, True):
                found, _ = policy.logprobs(rows, reference=reference)
                apart = 1e-4 if policy.backbone.dtype == torch.float32 else 0.1
                torch.testing.assert_close(found[0], expected, atol=apart, rtol=0)
    assert load_config(str(folder)).hidden_size == 64
    assert len(load_tokenizer(str(folder))) == 260


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_a_tokenizer_with_more_tokens_than_its_base_adds_none_to_a_merged_model(tmp_path, family):
    base = tmp_path / "base"
    tiny_model(f"random:{family}").save_pretrained(base)
    tokenizer = tiny_tokenizer(f"random:{family}")
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(base)
    folder = adapter_on(base, tmp_path / "adapter", target_modules=["q_proj"])
    with torch.no_grad():
        expected = AutoPeftModelForCausalLM.from_pretrained(folder)(IDS).logits
        found = load_backbone(str(folder), dtype=torch.float32).model(IDS).logits
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=0)


def test_single_tokens_that_peft_trains_change_a_tied_head_as_well(base, tmp_path):
    settings = {"target_modules": ["q_proj"], "trainable_token_indices": [int(IDS[0, 3]), 9]}
    folder = adapter_on(base, tmp_path / "adapter", change=("lora_", "trainable_tokens"), **settings)
    with torch.no_grad():
        expected = AutoPeftModelForCausalLM.from_pretrained(folder)(IDS).logits
        found = load_backbone(str(folder), dtype=torch.float32).model(IDS).logits
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), atol=1e-4, rtol=0)


def test_what_peft_cannot_merge_or_merges_into_something_else_is_an_error(base, tmp_path, monkeypatch):
    folder = adapter_on(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge = "peft.tuners.lora.LoraModel.merge_and_unload"

    def refuse(model):
        raise RuntimeError("Impossible to merge")

    monkeypatch.setattr(merge, refuse)
    with pytest.raises(ModelError, match=r"peft cannot load or merge this adapter: Impossible to merge\. Merge it"):
        load_backbone(str(folder))
    monkeypatch.setattr(merge, lambda model: model.unload())
    with pytest.raises(ModelError, match=r"give different log-probabilities, by [0-9.]+ nats"):
        load_backbone(str(folder))


def test_an_adapter_trained_on_it_names_a_base_that_every_program_loads(base, tmp_path):
    folder = adapter_on(base, tmp_path / "adapter", target_modules=["q_proj"])
    policy = Policy(load_backbone(str(folder), dtype=torch.float32), Lora(rank=2))
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.1)
        policy.save_pretrained(tmp_path / "second")
        theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "second")(IDS).logits
        with policy.policy_mode() as decoder:
            torch.testing.assert_close(theirs, decoder.logits(decoder.run(decoder.embed(IDS))), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("tensors", "the adapter does not fit its base; first differing tensors"),
        ("task", "is an adapter for SEQ_CLS"),
        ("base", "names no base model"),
        ("weights", r"has no adapter_model\.safetensors"),
        ("score", "is a score model, not a language model"),
    ],
)
def test_an_adapter_that_cannot_be_merged_says_why(base, tmp_path, spoil, message):
    folder = adapter_on(base, tmp_path / "adapter", target_modules=["q_proj"])
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    stored = json.loads(config.read_text())
    if spoil == "tensors":
        save_file({f"strange.{key}": value for key, value in load_file(weights).items()}, weights)
    elif spoil == "weights":
        weights.unlink()
    elif spoil == "score":
        (folder / "poise_score_model.json").write_text("{}")
    else:
        changed = {"task_type": "SEQ_CLS"} if spoil == "task" else {"base_model_name_or_path": None}
        config.write_text(json.dumps(stored | changed))
    with pytest.raises(ModelError, match=message):
        load_backbone(str(folder))


def test_a_classifier_is_not_trained_with_a_random_head(base, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(base)
    model.save_pretrained(tmp_path / "classifier")
    tiny_tokenizer("random:llama").save_pretrained(tmp_path / "classifier")
    with pytest.raises(ModelError, match=r"is a LlamaForSequenceClassification.*its head would be random"):
        load_backbone(str(tmp_path / "classifier"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), r"lacks weights.*layers\.1\.mlp\.up_proj"),
        (
            lambda state: state.update({"score.weight": torch.ones(2, 64)}),
            r"do not belong to its config.json: 1 in all, the first score",
        ),
        (lambda state: state.update({"model.norm.weight": torch.ones(3)}), r"(?s)model '.*'.*(shapes|size)"),
    ],
)
def test_weights_that_are_missing_or_have_no_place_are_named(base, change, message):
    state = load_file(base / "model.safetensors")
    change(state)
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load_backbone(str(base))


def test_a_path_of_ones_own_that_is_not_there_is_not_taken_for_a_hub_id(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"no model 'models/mien': models is a folder here and contains mine"):
        load_backbone("models/mien")
    (tmp_path / "models" / "file").write_text("")
    with pytest.raises(ModelError, match="is a file: give the folder"):
        load_backbone("models/file")
