"""A mask with holes: what a tool said is read and not asked for, and what the policy said after it is."""

import pytest
import torch

from poise.models import shared_pass
from poise.models.adapters import Lora
from poise.models.heads import Channel, ScoreModel
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.models.shared_rows import OwnRows, SharedRows

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
