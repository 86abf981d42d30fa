"""A mask with holes: what a tool said is read and not asked for, and what the policy said after it is."""

from dataclasses import replace

import pytest
import torch

from poise.messages import RolloutTurn, text_of
from poise.models import shared_pass
from poise.models.adapters import Lora
from poise.models.heads import Channel, ScoreModel
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.models.shared_rows import OwnRows, SharedRows
from poise.models.tiny import CHATML
from poise.rollout.native import NativeEngine
from poise.train.rollout_batch import encode_rollouts
from poise.types import Completion, Prompt, Rollout, Scores

PROMPTS = ([5, 6, 7, 8], [5, 6, 7, 8], [9, 10])
RESPONSES = ([20, 21, 40, 41, 42, 22, 23, 24], [25, 43, 26], [27, 28])
MASKS = ([1, 1, 0, 0, 0, 1, 1, 1], [1, 0, 1], [1, 1])  # 40 and above are the tool's
WIDTH = 10


def padded_rows():
    rows = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    ids = torch.tensor([row + [0] * (WIDTH + 4 - len(row)) for row in rows])
    mask = torch.tensor([row + [0] * (WIDTH - len(row)) for row in MASKS]).bool()
    return ids, torch.tensor([len(prompt) for prompt in PROMPTS]), mask


def transformers_logprobs(policy, ids, starts, mask):
    """Log-probabilities [B, T] by transformers' own forward pass over whole rows."""
    found = torch.zeros(mask.shape)
    for row, start in enumerate(starts.tolist()):
        logprobs = policy.model(ids[row : row + 1], use_cache=False).logits[0].float().log_softmax(-1)
        for step in mask[row].nonzero()[:, 0].tolist():
            found[row, step] = logprobs[start + step - 1, ids[row, start + step]]
    return found


@pytest.fixture(params=["flat", "padded"])
def way(request, monkeypatch):
    if request.param == "padded":
        monkeypatch.setattr(shared_pass, "runs_flat", lambda decoder, rows: False)
    return request.param


@pytest.mark.parametrize(("family", "lora"), [("llama", Lora(rank=2)), ("qwen", None), ("gpt2", None)])
def test_logprobs_and_gradients_of_rows_with_holes_are_those_of_transformers_with_the_same_mask(family, lora, way):
    policy = Policy(load_backbone(f"random:{family}?layers=2"), lora)
    ids, starts, mask = padded_rows()
    rows = SharedRows.of(ids, starts, mask)
    assert torch.equal(rows.response_mask, mask)
    weights, trained = torch.linspace(-1, 1, WIDTH), list(policy.parameters().values())
    found, entropies = policy.logprobs(rows)
    with policy.policy_mode():
        expected = transformers_logprobs(policy, ids, starts, mask)
        theirs = torch.autograd.grad((expected * weights).sum(), trained)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert not found[~mask].any() and not entropies[~mask].any() and entropies[mask].all()
    ours = torch.autograd.grad((found * weights).sum(), trained)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-4)


def test_parts_of_rows_with_holes_are_those_of_all_rows(way):
    policy = Policy(load_backbone("random:llama?layers=4"), Lora(rank=2, top=0.5))
    rows = SharedRows.of(*padded_rows())
    expected, _ = policy.logprobs(rows)
    for tokens in (8, 4096):
        own = OwnRows.of(policy.frozen_states(rows, tokens=tokens))
        for part, _ in own.passes(tokens):
            found, _ = policy.logprobs(own.rows.select(part))
            torch.testing.assert_close(found, expected[part], atol=1e-5, rtol=1e-5)


def test_the_tools_words_are_read_and_what_follows_the_last_answer_is_not():
    policy = Policy(load_backbone("random:llama?layers=2"), Lora(rank=2))
    ids, starts, mask = padded_rows()
    before, _ = policy.logprobs(SharedRows.of(ids, starts, mask))
    said, later = ids.clone(), ids.clone()
    said[0, 7] += 1
    later[0, 12:] = 99
    changed, _ = policy.logprobs(SharedRows.of(said, starts, mask))
    assert torch.equal(changed[0, :2], before[0, :2]) and (changed[0, 5:8] != before[0, 5:8]).all()
    assert torch.equal(policy.logprobs(SharedRows.of(later, starts, mask))[0], before)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_score_model_pools_the_tokens_in_the_mask(pooling):
    backbone = load_backbone("random:llama?layers=2")
    model = ScoreModel(backbone, [Channel(name="reward")], pooling=pooling, depth=1)
    ids, starts, mask = padded_rows()
    found = model.pooled(SharedRows.of(ids, starts, mask))
    decoder = backbone.decoder
    for row, start in enumerate(starts.tolist()):
        states = decoder.run(decoder.embed(ids[row : row + 1]), stop=1)[0, start : start + WIDTH][mask[row]]
        torch.testing.assert_close(found[row], states.mean(0) if pooling == "mean" else states[-1])


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
ASKED = Prompt(
    id="asked",
    messages=(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "Sure?"},
    ),
)
TURNS = (
    {"role": "assistant", "content": "Wait."},
    {"role": "user", "content": "I do."},
    {"role": "assistant", "content": "4"},
)


def conversation(*messages):
    said = "\n\n".join(text_of(message) for message in messages if message["role"] == "assistant")
    return Completion(prompt_id=ASKED.id, text=said, turns=tuple(RolloutTurn(message=each) for each in messages))


@pytest.fixture(scope="module")
def judge():
    calls = "{{ m['content'] }}{% for c in m['tool_calls'] or [] %}{{ c | tojson }}{% endfor %}"
    template = CHATML.replace("{{ m['content'] }}", calls)
    backbone = load_backbone("random:qwen?layers=2&hidden=32", chat_template=template)
    model = ScoreModel(backbone, [Channel(name="reward")], hidden=0, depth=1)
    torch.nn.init.normal_(model.head[0].weight, generator=torch.Generator().manual_seed(0))
    return model


def test_a_prompt_of_several_turns_reaches_a_score_model_as_it_reaches_the_policy(judge):
    row = judge.reader.read(ASKED, Completion(prompt_id=ASKED.id, text="4"))
    engine = NativeEngine(Policy(judge.backbone[0], Lora(rank=2), adapter="turns"))
    assert list(row.ids[: row.prompt_length]) == engine.renderer.prompt_ids(ASKED.messages)[0]
    rows, starts = judge.encode([ASKED], ["4"])  # as it is trained
    assert (rows[0], starts[0]) == (row.ids, row.prompt_length)
    other = replace(ASKED, messages=(*ASKED.messages[:2], {"role": "assistant", "content": "4"}, ASKED.messages[3]))
    first, second = judge.score([ASKED, other], [Completion(prompt_id="", text="4")] * 2)
    assert first.values != second.values


def test_a_response_of_several_turns_reaches_a_score_model_as_it_reaches_the_trainer(judge):
    completion = conversation(*TURNS)
    row = judge.reader.read(ASKED, completion)
    trained = encode_rollouts(
        [Rollout(prompt=ASKED, completion=completion, scores=Scores(values={}))], judge.renderer, torch.device("cpu")
    )
    start = int(trained.prompt_lengths[0])
    assert (row.prompt_length, row.ids) == (start, tuple(trained.token_ids[0, : len(row.ids)].tolist()))
    assert row.response_mask[start:] == tuple(trained.response_mask[0, : len(row.ids) - start].tolist())
    assert not all(row.mask) and len(trained.token_ids[0]) - len(row.ids) == 1  # the trainer ends the last turn


@pytest.mark.parametrize(
    "changed",
    [
        [TURNS[0], {"role": "user", "content": "I do not."}, TURNS[2]],
        [TURNS[0], {"role": "tool", "content": "I do."}, TURNS[2]],
        [{**TURNS[0], "tool_calls": [CALL]}, *TURNS[1:]],
    ],
    ids=["another reply", "a tool's reply", "a call of a tool"],
)
def test_what_is_said_and_called_between_answers_counts_in_the_score(judge, changed):
    whole, other, single = judge.score(
        [ASKED] * 3, [conversation(*TURNS), conversation(*changed), conversation(TURNS[0])]
    )
    assert len({score.values["reward"] for score in (whole, other, single)}) == 3


def test_a_conversation_beyond_both_windows_has_no_score(judge):
    small = ScoreModel(judge.backbone[0], [Channel(name="reward")], max_prompt_tokens=160, max_response_tokens=40)
    fits, long = conversation(*TURNS), conversation(TURNS[0], {"role": "user", "content": "x" * 200}, TURNS[2])
    assert [score.unscorable for score in small.score([ASKED] * 2, [fits, long])] == [
        "",
        "the conversation is longer than the window of 200 tokens",
    ]
