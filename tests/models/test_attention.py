"""Attention by batched products is softmax(Q K^T / sqrt(D)) V, and so are its gradients."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention

from poise.models.attention import LONGEST, BatchedAttention, attention


class Module:
    num_key_value_groups = 3
    is_causal = True


def rows(batch=2, heads=6, key_heads=2, length=5, size=5, width=4, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    shapes = (heads, length), (key_heads, size), (key_heads, size)
    return [
        torch.randn(batch, h, n, width, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
        for h, n in shapes
    ]


def ragged_mask(batch=2, length=5, size=9):
    """Rows of another number of keys each, and causal in the last ones."""
    mask = torch.ones(batch, 1, length, size, dtype=torch.bool).tril(size - length)
    mask[0, :, :, 1:3] = False
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_values_and_gradients_are_those_of_the_definition(masked, added):
    query, key, value = rows(size=9 if masked else 5)
    mask = ragged_mask() if masked else None
    given = mask
    if masked and added:
        given = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    ours, _ = attention(Module(), query, key, value, given)
    theirs = scaled_dot_product_attention(query, key, value, mask, is_causal=not masked, enable_gqa=True)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))
    weights = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view_as(ours)
    found = torch.autograd.grad((ours * weights).sum(), (query, key, value))
    wanted = torch.autograd.grad((theirs.transpose(1, 2) * weights).sum(), (query, key, value))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_finite_differences():
    draw = torch.Generator().manual_seed(1)
    queries, keys, values = (
        torch.randn(4, n, 3, generator=draw, dtype=torch.float64, requires_grad=True) for n in (6, 5, 5)
    )
    bias = torch.zeros(2, 1, 3, 5, dtype=torch.float64)
    bias[1, :, :, 4] = torch.finfo(torch.float64).min
    assert torch.autograd.gradcheck(BatchedAttention.apply, (queries, keys, values, bias))


def test_what_is_masked_changes_nothing():
    query, key, value = rows(size=9)
    before, _ = attention(Module(), query, key, value, ragged_mask())
    with torch.no_grad():
        key[0, :, 1:3], value[0, :, 1:3] = 500.0, -500.0
    after, _ = attention(Module(), query, key, value, ragged_mask())
    torch.testing.assert_close(before, after)


def test_a_scale_and_a_single_mask_for_all_rows_are_taken():
    query, key, value = rows()
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    ours, _ = attention(Module(), query, key, value, mask, scaling=0.3)
    theirs = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


def is_batched(monkeypatch, query, key, value, mask, **rest):
    """Whether our own product was used; either way the values are torch's."""
    used = []
    apply = BatchedAttention.apply
    monkeypatch.setattr(BatchedAttention, "apply", lambda *parts: used.append(True) or apply(*parts))
    ours, _ = attention(Module(), query, key, value, mask, **rest)
    theirs = scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))
    return bool(used)


@pytest.mark.parametrize("size", [LONGEST, LONGEST + 1])
def test_long_rows_are_left_to_torch(monkeypatch, size):
    query, key, value = rows(batch=1, length=1, size=size)
    mask = torch.ones(1, 1, 1, size, dtype=torch.bool)
    assert is_batched(monkeypatch, query, key, value, mask) == (size <= LONGEST)


def test_scores_that_are_bounded_are_left_to_the_function_of_the_family():
    config = Gemma2Config(hidden_size=24, num_attention_heads=6, num_key_value_heads=2, head_dim=4, num_hidden_layers=1)
    query, key, value = rows()
    found, _ = attention(Gemma2Attention(config, 0), query, key, value, None, softcap=0.5, scaling=1.0)
    scores = 0.5 * torch.tanh(query @ key.repeat_interleave(3, 1).transpose(2, 3) / 0.5)
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ value.repeat_interleave(3, 1)
    torch.testing.assert_close(found.transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


def test_in_bf16_it_is_as_near_as_torch_s():
    query, key, value = rows(length=40, size=40, width=64, dtype=torch.bfloat16)
    exact = scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True, enable_gqa=True)
    ours, _ = attention(Module(), query, key, value, None)
    theirs = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    error, their_error = ((x - exact).abs().mean().item() for x in (ours.transpose(1, 2), theirs))
    assert error < 4 * their_error
