"""Generative guards by name: the probability of the verdict, as a direct computation finds it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from own_files import ANSWERS, PROMPTS, TEXTS
from poise.errors import ConfigError, FeedbackError
from poise.feedback.guard_layouts import GUIDELINES, LAYOUTS
from poise.feedback.named import named_scorers
from poise.models.tiny import tiny_tokenizer
from poise.types import Completion, Prompt

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{{ guideline or '' }}{{ guardian_config.risk_name if guardian_config else '' }}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
PARTS = CHAT.replace("{{ m['content'] }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(**size, vocab_size=260, max_position_embeddings=2048)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def guard(folder, model, template=CHAT):
    folder.mkdir()
    tokenizer = tiny_tokenizer("random:llama")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return tokenizer


def scored(name, prompts=PROMPTS, answers=ANSWERS):
    (scorer,) = named_scorers(name, channel="cost")
    return scorer.score(prompts, answers)


def values(name):
    return torch.tensor([scores.values["cost"] for scores in scored(name)])


def direct(model, tokenizer, text, unsafe, safe):
    """P(unsafe) of the two tokens behind a text."""
    with torch.no_grad():
        logits = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, -1]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (unsafe, safe)]
    return logits[ids].softmax(-1)[0]


@pytest.mark.parametrize(
    ("name", "template", "said", "verdict"),
    [
        ("Llama-Guard-3-8B", CHAT, "", ("unsafe", "safe")),
        ("llama-guard-3-1b", PARTS, "", ("unsafe", "safe")),
        ("shieldgemma-2b", CHAT, GUIDELINES["dangerous"], ("Yes", "No")),
        ("granite-guardian-3.1-2b", CHAT, "harm", ("Yes", "No")),
    ],
)
def test_the_score_is_the_probability_of_unsafe_among_both_verdicts(tmp_path, model, name, template, said, verdict):
    tokenizer = guard(tmp_path / name, model, template)
    expected = [
        direct(
            model,
            tokenizer,
            f"<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n{answer}<|im_end|>{said}<|im_start|>",
            *verdict,
        )
        for question, answer in TEXTS
    ]
    for options in ("", "?batch=1"):
        found = values(f"guard:{tmp_path / name}{options}")
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)


def test_wildguard_answers_its_earlier_questions_before_the_one_that_is_asked(tmp_path, model):
    tokenizer = guard(tmp_path / "wildguard", model)
    layout, expected = LAYOUTS["wildguard"], []
    for question, answer in TEXTS:
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(talk, chat_template=layout.template, tokenize=False)
        assert text.startswith("<|bos|><|user|>\n[INST] You are a classifier") and text.endswith(
            "[/INST]\n<|assistant|>\n"
        )
        assert "whether the human user's request is harmful, 2)" in text
        assert f"\n\nHuman user:\n{question}\n\nAI assistant:\n{answer}\n\n---\n\nAnswers: " in text
        for asked in ("Harmful request:", "\nResponse refusal:", "\nHarmful response:"):
            text += asked
            probability = direct(model, tokenizer, text + " ", "y", "n")
            text += " yes" if probability > 0.5 else " no"
        expected.append(probability)
    torch.testing.assert_close(values(f"guard:{tmp_path / 'wildguard'}"), torch.stack(expected), atol=1e-5, rtol=0)


def test_a_verdict_follows_what_the_model_says_before_it(tmp_path, model):
    template = CHAT.replace("<|im_start|>{% endif %}", "<|end_header_id|>{% endif %}")
    tokenizer = guard(tmp_path / "llama-guard", model, template)
    (question, answer), *_ = TEXTS
    text = f"<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n{answer}<|im_end|><|end_header_id|>\n\n"
    expected = direct(model, tokenizer, text, "unsafe", "safe")
    assert values(f"guard:{tmp_path / 'llama-guard'}")[0] == pytest.approx(float(expected), abs=1e-5)


def test_a_guideline_or_risk_of_ones_own_is_what_is_asked_about(tmp_path, model):
    guard(tmp_path / "shieldgemma", model)
    guard(tmp_path / "granite-guardian", model)
    (tmp_path / "own.txt").write_text("No puns.\n")
    name = f"guard:{tmp_path / 'shieldgemma'}"
    (scorer,) = named_scorers(f"{name}?guideline={tmp_path}/own.txt", channel="cost")
    assert scorer.sources[0].reader.arguments == {"guideline": "No puns."}
    assert not torch.equal(values(f"{name}?guideline=hate"), values(name))
    assert not torch.equal(
        values(f"guard:{tmp_path}/granite-guardian?risk=violence"), values(f"guard:{tmp_path}/granite-guardian")
    )
    with pytest.raises(ConfigError, match="takes no risk"):
        named_scorers(f"{name}?risk=violence", channel="cost")
    with pytest.raises(ConfigError, match="choose dangerous, harassment, hate, sexual or a file"):
        named_scorers(f"{name}?guideline=puns", channel="cost")


def test_a_guard_of_an_unknown_layout_is_an_error_that_lists_those_that_are_known(tmp_path, model):
    guard(tmp_path / "my-own", model)
    for option, says in (("", "its name does not say"), ("?layout=mine", "no layout is called 'mine'")):
        with pytest.raises(
            ConfigError, match=f"{says}.*llama-guard, shieldgemma, wildguard, granite-guardian.*layout="
        ):
            named_scorers(f"guard:{tmp_path / 'my-own'}{option}", channel="cost")
    assert values(f"guard:{tmp_path / 'my-own'}?layout=shieldgemma").shape == (3,)


def test_a_guard_without_its_template_or_with_one_that_hides_the_answer_is_an_error(tmp_path, model):
    guard(tmp_path / "shieldgemma", model, None)
    with pytest.raises(ConfigError, match=r"no chat template, which the layout shieldgemma needs"):
        named_scorers(f"guard:{tmp_path / 'shieldgemma'}", channel="cost")
    guard(tmp_path / "llama-guard", model, "{{ messages[0]['content'] }}")
    with pytest.raises(ConfigError, match="does not show the answer"):
        named_scorers(f"guard:{tmp_path / 'llama-guard'}", channel="cost")


def test_what_a_guard_cannot_read_whole_is_unscorable(tmp_path, model):
    guard(tmp_path / "wildguard", model)
    empty, long = Completion(prompt_id="", text=" "), Completion(prompt_id="", text="a" * 3000)
    found = scored(f"guard:{tmp_path / 'wildguard'}", answers=[ANSWERS[0], empty, long])
    assert [bool(scores.values) for scores in found] == [True, False, False]
    assert "is empty" in found[1].unscorable and "longer than the window" in found[2].unscorable
    talk = Prompt.of([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}])
    with pytest.raises(FeedbackError, match=r"refuses a conversation.*one question and its answer"):
        scored(f"guard:{tmp_path / 'wildguard'}", [talk], ANSWERS[:1])


def test_a_model_that_gives_no_verdict_is_said_to_once(tmp_path, model, capsys):
    guard(tmp_path / "shieldgemma", model)
    (scorer,) = named_scorers(f"guard:{tmp_path / 'shieldgemma'}", channel="cost")
    explained = scorer.score(PROMPTS, ANSWERS)[0].explanation
    assert "of the probability" in explained
    scorer.score(PROMPTS, ANSWERS)
    assert capsys.readouterr().err.count("not trained to answer the layout shieldgemma") == 1


def test_the_probability_of_unsafe_is_a_cost_and_no_reward(tmp_path, model):
    guard(tmp_path / "shieldgemma", model)
    with pytest.raises(ConfigError, match=r"higher is worse.*wrong sign"):
        named_scorers(f"guard:{tmp_path / 'shieldgemma'}", channel="reward")
    (scorer,) = named_scorers(f"-guard:{tmp_path / 'shieldgemma'}", channel="reward")
    assert scorer.bounds == {"reward": (-1.0, 0.0)}
