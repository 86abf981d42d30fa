"""Layers on flat tokens compute what the family's own layers compute, and so do their gradients."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from poise.models import elementwise
from poise.models.adapters import Lora
from poise.models.elementwise import apply_rope, rms_norm
from poise.models.flat import RootMeanSquareNorm, SharedAttention, runs_flat
from poise.models.fused_linear import Identity, Products, RMSNorm, SwiGLU
from poise.models.layout import Layout
from poise.models.load import load_backbone
from poise.models.policy import Policy
from poise.models.shared_pass import run_shared
from poise.models.shared_rows import SharedRows

ROWS = [[5, 6, 7, 8, 20, 21], [9, 10, 22, 23, 24, 25], [5, 6, 7, 8], [11, 12, 13, 26], [5, 6, 7, 8, 27, 28, 29]]
STARTS = [4, 2, 4, 3, 4]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks even for a few tokens."""
    monkeypatch.setattr(elementwise, "_BLOCK", 24)
    monkeypatch.setattr("poise.models.attention._BLOCK", 40)


def wide(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_states_and_gradients_are_those_of_the_familys_own_layers(family, lora, monkeypatch):
    torch.manual_seed(0)
    policy = Policy(load_backbone(f"random:{family}?layers=3", dtype=torch.float64), lora, weights=torch.float64)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    rows = SharedRows.of_lists(ROWS, STARTS)
    assert runs_flat(policy.decoder, rows)

    def gradients():
        values, _ = policy.logprobs(rows)
        values.square().sum().backward()
        found = [parameter.grad.clone() for parameter in policy.parameters().values()]
        for parameter in policy.parameters().values():
            parameter.grad = None
        return values.detach(), found

    ours, our_slopes = gradients()
    monkeypatch.setattr("poise.models.shared_pass.runs_flat", lambda decoder, rows: False)
    theirs, their_slopes = gradients()
    # transformers normalises in float32 whatever the states are
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert sum(slope.abs().sum() > 0 for slope in their_slopes) >= len(their_slopes) - 1
    for slope, expected in zip(our_slopes, their_slopes, strict=True):
        torch.testing.assert_close(slope, expected, atol=1e-4 * (1 + float(expected.abs().max())), rtol=1e-4)


def test_a_layer_that_is_run_again_for_the_gradient_gives_the_same_one():
    policy = Policy(load_backbone("random:llama"), Lora(rank=2))
    rows, found = SharedRows.of_lists(ROWS, STARTS), []
    for recompute in (False, True):
        policy.recompute = recompute
        policy.logprobs(rows)[0].sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in policy.parameters().items()})
        for parameter in policy.parameters().values():
            parameter.grad = None
    for name, slope in found[0].items():
        torch.testing.assert_close(slope, found[1][name], msg=name)


def test_padding_is_not_computed_and_reads_as_zero():
    decoder = load_backbone("random:llama").decoder
    rows = run_shared(decoder, SharedRows.of_lists(ROWS, STARTS))
    inside = rows.response_mask[:, : rows.width]
    assert (rows.known_states.responses[~inside] == 0).all()
    assert (rows.known_states.responses[inside].abs().sum(-1) > 0).all()


def test_products_have_rows_in_whole_multiples(monkeypatch):
    seen: set[int] = set()
    linear = F.linear

    def counted(x, *rest):
        seen.add(len(x))
        return linear(x, *rest)

    monkeypatch.setattr("poise.models.fused_linear.F.linear", counted)
    policy = Policy(load_backbone("random:llama"), Lora(rank=2))
    for rows in (ROWS, ROWS[:1], [each[:-1] for each in ROWS]):
        policy.logprobs(SharedRows.of_lists(rows, STARTS[: len(rows)]))
    assert seen == {elementwise.ROWS}


def test_a_layer_keeps_for_its_gradient_what_the_plan_counts():
    policy = Policy(load_backbone("random:llama?layers=6"), None)
    rows = SharedRows.of_lists([list(range(5, 133))], [64])
    own = {parameter.data_ptr() for parameter in policy.model.parameters()}
    kept: dict[int, dict[int, int]] = {}
    for depth in (2, 6):
        found = kept[depth] = {}

        def keep(tensor, found=found):
            if tensor.data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), policy.policy_mode() as decoder:
            above = run_shared(decoder, rows, stop=depth)
        assert above.depth == depth
    config, element = policy.model.config, policy.backbone.dtype.itemsize
    width = config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads + config.num_key_value_heads) * width
    counted = 128 * 4 * element * 2 * (config.hidden_size + heads + config.intermediate_size)
    assert sum(kept[6].values()) - sum(kept[2].values()) == pytest.approx(counted, rel=0.1)


def test_long_rows_and_other_families_run_their_own_layers(monkeypatch):
    rows = SharedRows.of_lists(ROWS, STARTS)
    assert not runs_flat(load_backbone("random:gpt2").decoder, rows)
    decoder = load_backbone("random:llama").decoder
    monkeypatch.setattr("poise.models.flat.LONGEST", 7)
    assert not runs_flat(decoder, rows)


def test_the_norm_is_the_root_mean_square_one_with_a_right_gradient():
    x, weight = wide(7, 8), wide(8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-3, torch.float64)[0], expected)
    assert torch.autograd.gradcheck(lambda *each: RootMeanSquareNorm.apply(*each, 1e-3, torch.float64), (x, weight))
    source, given = RMSNorm(epsilon=1e-3, dtype=torch.float64), (x, weight, wide(3, 8), None, None, None, 1.0)
    torch.testing.assert_close(Products.apply(source, 2, *given)[0], expected @ given[2].T)
    assert torch.autograd.gradcheck(partial(Products.apply, source, 2), given)


def test_the_gate_is_silu_times_the_other_with_a_right_gradient():
    gate, up = wide(7, 8), wide(7, 8)
    weight = wide(3, 8)
    given = gate, up, weight, None, None, None, 1.0
    torch.testing.assert_close(Products.apply(SwiGLU(), 2, *given)[0], (F.silu(gate) * up) @ weight.T)
    assert torch.autograd.gradcheck(partial(Products.apply, SwiGLU(), 2), given)


def test_products_add_their_adapters_and_have_a_right_gradient():
    x, given = wide(5, 4), [wide(6, 4), wide(6), wide(2, 4), wide(6, 2), 1.5, wide(3, 4), None, None, None, 1.0]
    first, second = Products.apply(Identity(), 1, x, *given)
    weight, bias, a, b, scale, other = given[:6]
    torch.testing.assert_close(first, x @ (weight + scale * b @ a).T + bias)
    torch.testing.assert_close(second, x @ other.T)
    assert torch.autograd.gradcheck(partial(Products.apply, Identity(), 1), (x, *given))


def test_attention_has_a_right_gradient():
    layout = Layout.of(SharedRows.of_lists([[1, 2, 3, 4], [1, 2], [5, 6, 7], [1, 2, 8]], [2, 2, 1, 2]))
    count = len(layout.positions)
    angles = torch.randn(count, 1, 1, dtype=torch.float64)
    cos, sin = angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)
    given = wide(count, 2 * 2), wide(count, 2), wide(count, 2)  # two query heads of width 2 share a key head
    assert torch.autograd.gradcheck(lambda *each: SharedAttention.apply(*each, cos, sin, layout, 0.7), given)


def test_a_rotation_is_undone_by_its_inverse():
    states, angles = torch.randn(6, 2 * 8, dtype=torch.float64), torch.randn(6, 1, 4, dtype=torch.float64)
    cos, sin = angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)
    turned = apply_rope(states, cos, sin)
    heads, first = states.view(6, 2, 2, 4), turned.view(6, 2, 2, 4)[:, :, 0]
    torch.testing.assert_close(first, heads[:, :, 0] * angles.cos() - heads[:, :, 1] * angles.sin())
    torch.testing.assert_close(apply_rope(turned, cos, -sin), states)
