"""Rows that share prompts compute what whole rows compute, once per prompt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import FEATURES, backbone_of, model_with
from poise.errors import ConfigError, DataError
from poise.models.decoder import Decoder
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.models.shared_pass import run_in_parts, run_shared
from poise.models.shared_rows import SharedRows
from poise.rollout.native import NativeEngine
from poise.types import Prompt, Sampling

PROMPTS = ([5, 6, 7, 8], [9, 10], [11, 12, 13])
RESPONSES = ((0, [20, 21]), (1, [22, 23, 24, 25]), (0, []), (2, [26]), (0, [27, 28, 29]))
ROWS = [PROMPTS[prompt] + response for prompt, response in RESPONSES]
STARTS = [len(PROMPTS[prompt]) for prompt, _ in RESPONSES]


@pytest.fixture(params=["llama", "qwen", "gpt2"])
def decoder(request):
    return load_backbone(f"random:{request.param}?layers=3").decoder


def states_of(rows):
    """States of the responses, one tensor a row."""
    sizes = rows.response_mask.sum(-1).tolist()
    return [rows.known_states.responses[row, :size] for row, size in enumerate(sizes)]


def test_a_prompt_is_stored_once_and_its_responses_know_it():
    rows = SharedRows.of_lists(ROWS, STARTS)
    assert rows.prompt_ids.tolist() == [[5, 6, 7, 8], [9, 10, 0, 0], [11, 12, 13, 0]]
    assert rows.prompt_lengths.tolist() == [4, 2, 3]
    assert rows.owner.tolist() == [0, 1, 0, 2, 0]
    assert rows.response_mask.sum(-1).tolist() == [2, 4, 0, 1, 3]


def test_padded_rows_are_split_as_lists_are():
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [99] * (width - len(row)) for row in ROWS])
    sizes = torch.tensor([len(row) for row in ROWS]) - torch.tensor(STARTS)
    mask = torch.arange(6) < sizes[:, None]
    rows = SharedRows.of(ids, torch.tensor(STARTS), mask)
    assert torch.equal(rows.response_mask, mask)
    assert torch.equal(rows.response_ids, SharedRows.of_lists(ROWS, STARTS).response_ids)


def test_states_and_gradients_are_those_of_whole_rows(decoder):
    shared = run_shared(decoder, SharedRows.of_lists(ROWS, STARTS))
    weight = next(decoder.layers[0].parameters()).requires_grad_(True)
    shared = run_shared(decoder, SharedRows.of_lists(ROWS, STARTS))
    whole = [decoder.run(decoder.embed(torch.tensor([row])))[0] for row in ROWS]
    for states, expected, start in zip(states_of(shared), whole, STARTS, strict=True):
        torch.testing.assert_close(states, expected[start:], atol=1e-5, rtol=1e-5)
    for state, expected, start in zip(shared.prompt_ends(), whole, STARTS, strict=True):
        torch.testing.assert_close(state, expected[start - 1], atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(sum(states.square().sum() for states in states_of(shared)), weight)
    theirs = torch.autograd.grad(
        sum(states[start:].square().sum() for states, start in zip(whole, STARTS, strict=True)), weight
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_run_may_stop_at_a_layer_and_go_on_from_there_in_parts(decoder):
    rows = SharedRows.of_lists(ROWS, STARTS)
    with torch.no_grad():
        expected = run_shared(decoder, rows)
        half = run_in_parts(decoder, rows, stop=2, tokens=8)
        found = run_shared(decoder, half)
        chosen = torch.tensor([4, 1])
        selected = run_shared(decoder, half.select(chosen))
    assert half.depth == 2
    for row, states in enumerate(states_of(found)):
        torch.testing.assert_close(states, states_of(expected)[row], atol=1e-5, rtol=1e-5)
    for row, states in zip(chosen.tolist(), states_of(selected), strict=True):
        torch.testing.assert_close(states, states_of(expected)[row], atol=1e-5, rtol=1e-5)


def test_states_that_predict_begin_at_the_prompts_end(decoder):
    with torch.no_grad():
        rows = run_shared(decoder, SharedRows.of_lists(ROWS, STARTS))
    found = rows.predicting()
    assert found.shape == rows.known_states.responses.shape
    assert torch.equal(found[1, 0], rows.known_states.prompts[1, 1])
    assert torch.equal(found[1, 1:], rows.known_states.responses[1, :-1])


def test_rows_without_any_response_have_prompt_states_alone(decoder):
    with torch.no_grad():
        rows = run_shared(decoder, SharedRows.of_lists([[5, 6], [7]], [2, 1]))
        expected = decoder.run(decoder.embed(torch.tensor([[5, 6]])))[0, -1]
    assert rows.width == 0
    torch.testing.assert_close(rows.prompt_ends()[0], expected, atol=1e-5, rtol=1e-5)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="empty prompt"):
        SharedRows.of_lists([[5, 6]], [0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=20), st.integers(1, 60))
def test_buckets_hold_every_row_once_and_only_a_single_row_may_exceed_the_budget(shape, tokens):
    prompts = [[number] * (number + 1) for number in range(5)]
    rows = SharedRows.of_lists([prompts[p] + [9] * size for p, size in shape], [p + 1 for p, _ in shape])
    buckets = rows.buckets(tokens)
    assert sorted(row for bucket in buckets for row in bucket.tolist()) == list(range(len(shape)))
    for bucket in buckets:
        part = rows.select(bucket)
        assert len(bucket) == 1 or part.prompt_ids.numel() + part.response_ids.numel() <= tokens


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_row_beyond_the_context_or_the_embedding_is_named_with_what_to_do(family):
    decoder = Decoder(model_with(family, FEATURES[family]))
    rows = SharedRows.of_lists([[5, 6, 7], [5] * 65], [2, 60])
    with pytest.raises(DataError, match=r"row 1 of 2 has 65 tokens, 60 of them.* but the model reads 64: lower"):
        run_shared(decoder, rows)
    run_shared(decoder, SharedRows.of_lists([[5] * 64], [60]))
    with pytest.raises(DataError, match=r"response 0 of 1 has the token 260, and the model's embedding has 260"):
        run_shared(decoder, SharedRows.of_lists([[5, 6, 260]], [2]))


def test_a_padding_token_beyond_the_embedding_is_never_embedded():
    backbone = backbone_of(model_with("gpt2", FEATURES["gpt2"]))
    backbone.tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    assert backbone.tokenizer.pad_token_id >= backbone.decoder.vocabulary
    prompts = [Prompt.of("a"), Prompt.of("What now?")]
    engine = NativeEngine(Policy(backbone))
    assert len(engine.generate(prompts, Sampling(max_tokens=3))) == 2
    assert all(each.choice_logprobs for each in engine.generate(prompts, Sampling(choices=("Yes", "No way"))))
