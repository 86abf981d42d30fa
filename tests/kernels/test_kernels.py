"""Each kernel against its definition in float64; what is skipped here has no compiler, and runs with torch alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from poise import kernels

needs_kernels = pytest.mark.skipif(
    kernels.compiled().library is None, reason=f"no kernels on this machine: {kernels.compiled().reason}"
)
needs_tiles = pytest.mark.skipif(not kernels.has_tiles(), reason="this processor has no matrix unit")
WIDTH, HEADS, KEY_HEADS = 64, 6, 2
PROMPTS, RESPONSES, OWNER = [40, 17, 64, 1], [20, 0, 45, 33, 64, 1, 70], [0, 0, 1, 1, 2, 3, 3]


def states(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def assert_near(found: torch.Tensor, expected: torch.Tensor, *, relative: float = 5e-3) -> None:
    """bfloat16 keeps eight bits: 2^-9 of each entry is lost at least."""
    assert found.shape == expected.shape
    error = (found.double() - expected).norm() / expected.norm()
    assert error < relative, f"relative error {error:.2e}"


def doubled(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [each.double().requires_grad_() for each in tensors]


@needs_kernels
@pytest.mark.parametrize("count", [1, 7, 300])
def test_the_norm_and_its_gradients_are_the_definition(count):
    x, weight, slope = states(count, 96), states(96, seed=1), states(count, 96, seed=2)
    wide_x, wide_weight = doubled(x, weight)
    expected = F.rms_norm(wide_x, (96,), wide_weight, 1e-5)
    expected.backward(slope.double())
    found, inverse = kernels.rms_norm(x, weight, 1e-5)
    for_x, for_weight = kernels.rms_norm_backward(slope, x, weight, inverse, for_weight=True)
    assert_near(found, expected)
    assert_near(for_x, wide_x.grad)
    assert_near(for_weight, wide_weight.grad, relative=1e-5)


@needs_kernels
def test_every_head_of_a_token_is_normalised():
    x, weight = states(1, 5, 64), states(64, seed=1)
    assert_near(kernels.rms_norm(x, weight, 1e-5)[0], F.rms_norm(x.double(), (64,), weight.double(), 1e-5))


@needs_kernels
def test_a_norm_whose_weight_is_frozen_has_no_gradient_of_it():
    x, weight = states(4, 32), states(32)
    _, inverse = kernels.rms_norm(x, weight, 1e-5)
    assert kernels.rms_norm_backward(x, x, weight, inverse, for_weight=False)[1] is None


@needs_kernels
def test_the_gate_and_its_gradients_are_the_definition_up_to_the_ends_of_the_range():
    gate, up, slope = states(50, 96, scale=8), states(50, 96, seed=1), states(50, 96, seed=2)
    gate[0, :4] = torch.tensor([500.0, -500.0, 80.0, -80.0])
    wide_gate, wide_up = doubled(gate, up)
    expected = F.silu(wide_gate) * wide_up
    expected.backward(slope.double())
    assert_near(kernels.swiglu(gate, up), expected)
    for_gate, for_up = kernels.swiglu_backward(slope, gate, up)
    assert_near(for_gate, wide_gate.grad)
    assert_near(for_up, wide_up.grad)
    assert torch.isfinite(for_gate).all()


@needs_kernels
def test_gate_and_up_may_be_halves_of_one_tensor():
    both = states(9, 64)
    gate, up = both.chunk(2, -1)
    assert torch.equal(kernels.swiglu(gate, up), kernels.swiglu(gate.contiguous(), up.contiguous()))


@needs_kernels
def test_a_nan_stays_one():
    x = states(2, 32)
    x[1, 3] = torch.nan
    assert kernels.swiglu(x, x).isnan().sum() == 1
    assert kernels.rms_norm(x, x[0], 1e-5)[0].isnan().any(-1).tolist() == [False, True]
    logits = torch.stack([x[0], x[1]])
    assert kernels.read_logits(logits, torch.tensor([0, 0]), 1.0)[0].isnan().tolist() == [False, True]


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads [N, h, D] turned, by the definition."""
    return x * cos[:, None] + x.roll(x.shape[-1] // 2, -1) * sin[:, None]


def angles(count: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.rand(count, WIDTH // 2, generator=torch.Generator().manual_seed(seed)) * 6
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).bfloat16(), torch.cat([-sin, sin], -1).bfloat16()


@needs_kernels
def test_heads_are_turned_as_defined():
    x, (cos, sin) = states(30, HEADS * WIDTH), angles(30)
    expected = turned(x.double().view(30, HEADS, WIDTH), cos.double(), sin.double()).flatten(1)
    assert_near(kernels.apply_rope(x, cos[:, None], sin[:, None]), expected)


def attended(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Attention [n, Hq, D] of queries [n, Hq, D] to keys and values [S, Hkv, D] where seen [n, S]."""
    keys, values = (each.repeat_interleave(queries.shape[1] // each.shape[1], 1) for each in (keys, values))
    scores = torch.einsum("nhd,shd->hns", queries, keys) * queries.shape[-1] ** -0.5
    return torch.einsum("hns,shd->nhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)


@needs_kernels
@pytest.mark.parametrize("with_prompts", [False, True])
def test_a_decoding_step_attends_to_the_prompt_and_to_what_the_row_holds(with_prompts):
    sizes, owner, filled = torch.tensor([1, 5, 9, 30]), torch.tensor([1, 0, 1, 1]), torch.tensor([7, 19])
    new, (cos, sin) = states(4, HEADS + 2 * KEY_HEADS, WIDTH), angles(4)
    cache, prompts = states(2, 6, KEY_HEADS, 32, WIDTH, seed=1), states(2, 2, KEY_HEADS, 20, WIDTH, seed=2)
    before, wide = cache.clone(), new.double()
    rotation = cos.double(), sin.double()
    queries = turned(wide[:, :HEADS], *rotation)
    found = kernels.attend_step(new, (cos, sin), cache, sizes, (prompts, owner, filled) if with_prompts else None)
    for row, size in enumerate(sizes.tolist()):
        parts = [before[:, row, :, : size - 1].double()]
        if with_prompts:
            parts.insert(0, prompts[:, owner[row], :, : filled[owner[row]]].double())
        own = torch.stack([turned(wide[:, HEADS:-KEY_HEADS], *rotation)[row], wide[row, -KEY_HEADS:]])
        keys, values = torch.cat([*parts, own[:, :, None]], 2).transpose(1, 2)
        expected = attended(queries[row : row + 1], keys, values, torch.ones(1, len(keys), dtype=torch.bool))
        assert_near(found[row : row + 1], expected, relative=1e-2)
        assert_near(cache[:, row, :, size - 1], own)
        assert torch.equal(cache[:, row, :, : size - 1], before[:, row, :, : size - 1])
        assert torch.equal(cache[:, row, :, size:], before[:, row, :, size:])


def rows_of_tokens() -> tuple[kernels.Rows, int]:
    rows = kernels.Rows.of(torch.tensor(PROMPTS), torch.tensor(RESPONSES), torch.tensor(OWNER))
    return rows, sum(PROMPTS) + sum(RESPONSES)


def attended_rows(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: kernels.Rows) -> torch.Tensor:
    """The definition, sequence by sequence: each sees its prompt and, causally, itself."""
    found, begins = [], rows.begins.tolist()
    for number, (begin, length) in enumerate(zip(begins, rows.lengths.tolist(), strict=True)):
        own = torch.arange(begin, begin + length)
        prompt = torch.arange(0)
        if number >= len(PROMPTS):
            owner = OWNER[number - len(PROMPTS)]
            prompt = torch.arange(begins[owner], begins[owner] + PROMPTS[owner])
        tokens = torch.cat([prompt, own])
        seen = torch.ones(length, len(tokens), dtype=torch.bool).tril(len(prompt))
        found.append(attended(queries[own], keys[tokens], values[tokens], seen))
    return torch.cat(found)


@needs_tiles
def test_attention_of_rows_that_share_prompts_and_its_gradients_are_the_definition():
    rows, count = rows_of_tokens()
    given = [states(count, heads * WIDTH, seed=i) for i, heads in enumerate((HEADS, KEY_HEADS, KEY_HEADS))]
    slope, scale = states(count, HEADS * WIDTH, seed=9), WIDTH**-0.5
    wide = doubled(*given)
    expected = attended_rows(*(each.view(count, -1, WIDTH) for each in wide), rows).flatten(1)
    expected.backward(slope.double())
    found, logs = kernels.attend(*given, rows, width=WIDTH, scale=scale)
    assert_near(found, expected)
    slopes = kernels.attend_backward(slope, *given, logs, rows, width=WIDTH, scale=scale)
    for each, leaf in zip(slopes, wide, strict=True):
        assert_near(each, leaf.grad)


@needs_tiles
def test_rows_of_a_wider_tensor_are_attended_to_where_they_lie():
    rows, count = rows_of_tokens()
    both = states(count, (HEADS + 3) * WIDTH)
    wider = both[:, : HEADS * WIDTH], *(states(count, 3 * WIDTH, seed=1)[:, at : at + WIDTH] for at in (0, WIDTH))
    found, _ = kernels.attend(*wider, rows, width=WIDTH, scale=0.1)
    again, _ = kernels.attend(*(each.contiguous() for each in wider), rows, width=WIDTH, scale=0.1)
    assert torch.equal(found, again)


@needs_tiles
def test_scores_of_hundreds_do_not_overflow():
    rows = kernels.Rows.of(torch.tensor([64]), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    queries, keys = states(64, WIDTH, scale=30), states(64, WIDTH, scale=30, seed=1)
    found, logs = kernels.attend(queries, keys, keys, rows, width=WIDTH, scale=1.0)
    assert torch.isfinite(found).all() and torch.isfinite(logs).all()
    slopes = kernels.attend_backward(queries, queries, keys, keys, logs, rows, width=WIDTH, scale=1.0)
    assert all(torch.isfinite(each).all() for each in slopes)


@needs_tiles
@pytest.mark.parametrize(("count", "outputs", "inputs"), [(1, 64, 80), (77, 80, 64), (1100, 576, 64), (600, 1040, 96)])
def test_a_sum_over_tokens_is_the_product_of_the_transposed(count, outputs, inputs):
    slope, x = states(count, outputs), states(count, inputs, seed=1)
    expected = slope.double().t() @ x.double()
    assert_near(kernels.sum_over_tokens(slope, x), expected)
    summed = torch.ones(outputs, inputs)
    kernels.sum_over_tokens(slope, x, add_to=summed)
    assert_near(summed - 1, expected, relative=1e-5)


@needs_kernels
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_entropies_and_their_gradient_are_the_definition(temperature):
    logits, ids, slope = states(9, 1500, scale=4), torch.arange(9) * 100, torch.linspace(-1, 1, 9)
    (wide,) = doubled(logits)
    expected = (wide / temperature).log_softmax(-1)
    chosen = expected.gather(1, ids[:, None])[:, 0]
    chosen.backward(slope.double())
    logprobs, entropy, normaliser = kernels.read_logits(logits, ids, temperature)
    torch.testing.assert_close(logprobs.double(), chosen.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), -(expected.exp() * expected).sum(-1).detach(), atol=1e-5, rtol=1e-5)
    found = kernels.read_logits_backward(slope, logits, ids, normaliser, temperature, out=torch.empty_like(logits))
    assert_near(found, wide.grad)
    assert torch.equal(
        kernels.read_logits_backward(slope, logits, ids, normaliser, temperature, out=logits), found
    )  # in place


@needs_kernels
def test_logits_of_500_do_not_overflow():
    logits = torch.tensor([[500.0, -500.0, 0.0]]).bfloat16()
    logprobs, entropy, _ = kernels.read_logits(logits.repeat(2, 1), torch.tensor([0, 1]), 1.0)
    assert logprobs.tolist() == [0.0, -1000.0] and entropy.tolist() == [0.0, 0.0]


@needs_kernels
def test_tokens_are_drawn_as_often_as_they_are_probable():
    logits = (states(1, 600, scale=2)).expand(20_000, -1).contiguous()
    uniforms = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ids, logprobs = kernels.sample_tokens(logits, uniforms, 0.8)
    expected = (logits[0].double() / 0.8).softmax(-1)
    counts, likely = torch.bincount(ids, minlength=600).double(), expected > 1e-3
    statistic = ((counts - 20_000 * expected) ** 2 / (20_000 * expected))[likely].sum()
    freedom = int(likely.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5
    torch.testing.assert_close(logprobs.double(), expected.log()[ids], atol=1e-4, rtol=1e-4)


@needs_kernels
def test_a_token_without_weight_is_never_drawn():
    logits = torch.full((3, 700), -torch.inf).bfloat16()
    logits[:, [2, 300]] = 0.0
    ids, _ = kernels.sample_tokens(logits, torch.tensor([0.0, 0.6, 1.0 - 1e-16], dtype=torch.float64), 1.0)
    assert ids.tolist() == [2, 300, 300]


def test_the_switch_leaves_everything_to_torch():
    told = "from poise import kernels; print(kernels.compiled().reason, kernels.has_tiles())"
    found = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, env={"POISE_KERNELS": "0"}, check=True
    )
    assert found.stdout.strip() == "POISE_KERNELS=0 False"


def test_a_compiler_that_fails_is_a_reason_and_not_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("POISE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    library, reason = kernels.compiled.__wrapped__()
    assert library is None and reason.startswith("false failed")
    assert not list(tmp_path.glob("*.so"))


def test_other_dtypes_and_strides_are_not_taken():
    x = states(4, 8)
    assert not kernels.supports_tensors(x.float())
    assert not kernels.supports_tensors(x.t())
    assert not kernels.supports_tensors(x[:, ::2], apart=True)
