"""Sequence classifiers by name give what transformers gives; signs, labels and templates are never guessed."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from own_files import ANSWERS, PROMPTS, TEXTS
from poise.errors import ConfigError, FeedbackError, ModelError
from poise.feedback.named import named_scorers
from poise.models.classifier import save_classifier
from poise.models.heads import ScoreModel
from poise.models.load import load_backbone
from poise.models.score_heads import CLASSIFIER
from poise.models.tiny import tiny_tokenizer
from poise.types import Completion, Prompt

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def saved(folder, model, tokenizer):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama(folder, *, pad=0, template=True, **config):
    tokenizer = tiny_tokenizer("random:llama")
    if not template:
        tokenizer.chat_template = None
    known = {"vocab_size": 260, "eos_token_id": 0, "pad_token_id": pad, "max_position_embeddings": 128}
    return saved(folder, LlamaForSequenceClassification(LlamaConfig(**SIZES, **known, **config)), tokenizer)


def bert(folder, **config):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "how", "are", "you", "?", "fine", "no", "."]
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    model = BertForSequenceClassification(
        BertConfig(**SIZES, vocab_size=len(words), max_position_embeddings=64, **config)
    )
    return saved(folder, model, fast)


def alone(folder, *, pair=False, text=None):
    """What transformers gives for each row alone."""
    from transformers import AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for question, answer in TEXTS:
        if pair:
            inputs = tokenizer(question, answer, return_tensors="pt")
        else:
            talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            said = text(question, answer) if text else tokenizer.apply_chat_template(talk, tokenize=False)
            inputs = tokenizer(said, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].float())
    return torch.stack(rows)


def scored(name, channel="reward", prompts=PROMPTS, answers=ANSWERS):
    (scorer,) = named_scorers(name, channel=channel)
    return scorer.score(prompts, answers)


def values(name, channel="reward"):
    return torch.tensor([scores.values[channel] for scores in scored(name, channel)])


def test_a_reward_model_gives_the_logit_that_transformers_gives_each_row_alone(tmp_path):
    folder = llama(tmp_path, num_labels=1)
    torch.testing.assert_close(values(f"hf:{folder}"), alone(folder)[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(values(f"hf:{folder}?batch=1"), alone(folder)[:, 0], atol=1e-5, rtol=0)


def test_a_model_without_a_padding_token_gives_the_same_in_a_batch(tmp_path):
    folder = llama(tmp_path, pad=None, num_labels=1)
    torch.testing.assert_close(values(f"hf:{folder}?batch=3"), alone(folder)[:, 0], atol=1e-5, rtol=0)
    (scorer,) = named_scorers(f"hf:{folder}", channel="reward")
    scorer.score(PROMPTS, ANSWERS)
    assert scorer.sources[0].model.config.pad_token_id is None


def test_positions_that_are_absolute_are_counted_from_the_beginning_of_each_row(tmp_path):
    config = GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=260, n_positions=128, pad_token_id=0, num_labels=1)
    folder = saved(tmp_path, GPT2ForSequenceClassification(config), tiny_tokenizer("random:gpt2"))
    torch.testing.assert_close(values(f"hf:{folder}?batch=3"), alone(folder)[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (None, lambda logits: logits.softmax(-1)),
        ("single_label_classification", lambda logits: logits.softmax(-1)),
        ("multi_label_classification", torch.sigmoid),
        ("regression", lambda logits: logits),
    ],
)
def test_labels_have_the_values_of_the_pipeline_of_transformers(tmp_path, problem, expected):
    folder = bert(tmp_path, id2label={0: "fine", 1: "toxic", 2: "insult"}, problem_type=problem)
    logits = alone(folder, pair=True)
    torch.testing.assert_close(values(f"hf:{folder}#toxic"), expected(logits)[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(values(f"hf:{folder}#insult?value=logit"), logits[:, 2], atol=1e-5, rtol=0)
    two = values(f"hf:{folder}#toxic?sign=higher_is_worse + 0.5*hf:{folder}#insult?sign=higher_is_worse", "cost")
    torch.testing.assert_close(two, expected(logits)[:, 1] + 0.5 * expected(logits)[:, 2], atol=1e-5, rtol=0)


def test_a_classifier_with_other_labels_is_an_error_that_names_its_labels(tmp_path):
    folder = bert(tmp_path, id2label={0: "fine", 1: "toxic"})
    with pytest.raises(ConfigError, match=r"no output 'harmful'. It has fine, toxic"):
        named_scorers(f"hf:{folder}#harmful", channel="reward")
    with pytest.raises(ConfigError, match=r"several outputs.*fine, toxic.*#fine"):
        named_scorers(f"hf:{folder}", channel="reward")


def test_a_classifier_is_no_cost_without_a_word_on_its_sign(tmp_path):
    folder = llama(tmp_path, num_labels=1)
    with pytest.raises(ConfigError, match=r"nothing says which way.*sign=higher_is_worse, or -hf:"):
        named_scorers(f"hf:{folder}", channel="cost")
    plain = values(f"hf:{folder}")
    assert torch.equal(values(f"-hf:{folder}", "cost"), -plain)
    assert torch.equal(values(f"hf:{folder}?sign=higher_is_worse", "cost"), plain)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"higher_is_worse": True}))
    assert torch.equal(values(f"hf:{folder}", "cost"), plain)
    with pytest.raises(ConfigError, match="wrong sign"):
        named_scorers(f"hf:{folder}", channel="reward")


def test_without_a_chat_template_the_reader_is_asked_for_one(tmp_path):
    folder = llama(tmp_path / "model", template=False, num_labels=1)
    for name in (f"hf:{folder}", f"hf:{folder}?template=chat"):
        with pytest.raises(
            ConfigError, match=r"no chat template.*template=FILE.jinja.*template=pair.*template=response"
        ):
            named_scorers(name, channel="reward")
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}")
    expected = alone(folder, text=lambda question, answer: f"[user]{question}[assistant]{answer}")[:, 0]
    torch.testing.assert_close(values(f"hf:{folder}?template={file}"), expected, atol=1e-5, rtol=0)
    bare = alone(folder, text=lambda question, answer: answer)[:, 0]
    torch.testing.assert_close(values(f"hf:{folder}?template=response"), bare, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="choose chat, pair, response or a file"):
        named_scorers(f"hf:{folder}?template=nowhere.jinja", channel="reward")


def test_what_a_pair_or_the_window_cannot_hold_is_not_scored_in_part(tmp_path):
    folder = bert(tmp_path, num_labels=1)
    talk = Prompt.of([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}])
    with pytest.raises(FeedbackError, match=r"conversation of 2 messages.*template=response"):
        scored(f"hf:{folder}", prompts=[talk], answers=ANSWERS[:1])
    found = scored(f"hf:{folder}?max_tokens=9")
    assert [bool(scores.values) for scores in found] == [False, True, False]
    assert "longer than the window of 9 tokens" in found[0].unscorable
    with pytest.raises(ConfigError, match=r"max_tokens=65, and the model reads 64"):
        named_scorers(f"hf:{folder}?max_tokens=65", channel="reward")


def test_a_control_token_that_an_answer_spells_out_does_not_end_its_turn(tmp_path):
    folder = llama(tmp_path, num_labels=1)
    (scorer,) = named_scorers(f"hf:{folder}", channel="reward")
    row = scorer.sources[0].reader.read(PROMPTS[0], Completion(prompt_id="", text="So.<|im_end|>"))
    assert row["input_ids"].count(0) == 2  # those of the two turns


def test_a_score_model_that_poise_exported_has_the_same_scores_and_signs_as_a_classifier(tmp_path):
    model = ScoreModel(load_backbone("random:llama"), pooling=CLASSIFIER, depth=2, hidden=0)
    torch.nn.init.normal_(model.head[0].weight)
    save_classifier(model, tmp_path)
    expected = [scores.values for scores in model.score(PROMPTS, ANSWERS)]
    for channel in ("reward", "cost"):
        found = values(f"hf:{tmp_path}", channel)
        torch.testing.assert_close(found, torch.tensor([row[channel] for row in expected]), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="wrong sign"):
        named_scorers(f"hf:{tmp_path}#cost", channel="reward")


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_here_is_an_error_that_lists_those_that_are(tmp_path, device):
    folder = llama(tmp_path, num_labels=1)
    for name in (f"hf:{folder}?device={device}", f"guard:{folder}?layout=wildguard&device={device}"):
        with pytest.raises(ConfigError, match=f"device={device} cannot be used.*Here are cpu"):
            named_scorers(name, channel="cost")


def adapter(folder, base, task="SEQ_CLS"):
    """A LoRA adapter of a reward model, as peft and TRL save it, and what it gives for each row alone."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = get_peft_model(model, LoraConfig(task_type=task, r=2, target_modules=["q_proj", "v_proj"])).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer("random:llama")
    rows = []
    for question, answer in TEXTS:
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        said = tokenizer.apply_chat_template(talk, tokenize=False)
        with torch.no_grad():
            rows.append(model(**tokenizer(said, add_special_tokens=False, return_tensors="pt")).logits[0, 0])
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft and transformers about one another
def test_an_adapter_of_a_reward_model_is_read_with_its_base_and_its_own_head(tmp_path):
    base = saved(
        tmp_path / "base",
        LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=260, pad_token_id=0, max_position_embeddings=128)),
        tiny_tokenizer("random:llama"),
    )
    expected = adapter(tmp_path / "adapter", str(base))
    torch.testing.assert_close(values(f"hf:{tmp_path / 'adapter'}"), expected, atol=1e-5, rtol=0)
    card = tmp_path / "adapter" / "adapter_config.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"task_type": "CAUSAL_LM"}))
    with pytest.raises(ModelError, match="adapter for CAUSAL_LM, not for a sequence classifier"):
        named_scorers(f"hf:{tmp_path / 'adapter'}", channel="reward")


def test_a_language_model_is_no_classifier(tmp_path):
    folder = saved(tmp_path, LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=260)), tiny_tokenizer("random:llama"))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM, not a sequence classifier.*guard:ID"):
        named_scorers(f"hf:{folder}", channel="reward")


def beaver(folder, **config):
    """A tiny random model in the layout of PKU's reward and cost models."""
    torch.manual_seed(1)
    known = LlamaConfig(**SIZES, vocab_size=260, eos_token_id=0, pad_token_id=0, max_position_embeddings=256)
    backbone = LlamaModel(known)
    tokenizer = tiny_tokenizer("random:llama")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    weights = {f"model.{key}": value for key, value in backbone.state_dict().items()}
    weights |= {"score_head.weight": torch.randn(1, 16), "score_head.bias": torch.tensor([0.7])}
    weights |= {"normalizer.mean": torch.tensor([0.3]), "normalizer.var": torch.tensor([4.0])}
    weights |= {"normalizer.count": torch.tensor([9])}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    written = known.to_dict() | {"architectures": ["LlamaForScore"], "score_dim": 1, **config}
    (folder / "config.json").write_text(json.dumps(written))
    rows = []
    for question, answer in TEXTS:
        text = f"BEGINNING OF CONVERSATION: USER: {question} ASSISTANT:{answer}<|im_end|>"
        with torch.no_grad():
            states = backbone.eval()(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).last_hidden_state
        rows.append(weights["score_head.weight"][0] @ states[0, -1] + 0.7)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("config", "channel", "expected"),
    [
        ({"score_type": "reward"}, "reward", lambda raw: raw),
        ({"score_type": "cost", "do_normalize": False}, "cost", lambda raw: raw),
        ({"score_type": "reward", "do_normalize": True}, "reward", lambda raw: (raw - 0.3) / 2),
        ({"score_type": "cost", "do_normalize": True}, "cost", lambda raw: raw / 2),
    ],
)
def test_reward_and_cost_models_of_pku_are_read_from_their_own_layout(tmp_path, config, channel, expected):
    raw = beaver(tmp_path, **config)
    torch.testing.assert_close(values(f"hf:{tmp_path}", channel), expected(raw), atol=1e-5, rtol=0)


def test_the_sign_of_a_model_of_pku_is_checked_when_it_is_loaded(tmp_path):
    beaver(tmp_path, score_type="cost")
    with pytest.raises(ConfigError, match=r"'cost' higher is worse.*wrong sign"):
        named_scorers(f"hf:{tmp_path}", channel="reward")
    (tmp_path / "b").mkdir()
    beaver(tmp_path / "b")
    with pytest.raises(ConfigError, match="nothing says which way"):
        named_scorers(f"hf:{tmp_path / 'b'}", channel="cost")
    (tmp_path / "c").mkdir()
    beaver(tmp_path / "c", score_type="critic")
    with pytest.raises(ModelError, match=r"score_type in config.json is 'critic'"):
        named_scorers(f"hf:{tmp_path / 'c'}", channel="reward")
