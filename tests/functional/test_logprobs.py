import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from poise.errors import ConfigError
from poise.functional import logprobs as module
from poise.functional.logprobs import chunked_token_logprobs, token_logprobs

N, H, V = 7, 4, 11


def head(dtype=torch.float64, **kwargs):
    torch.manual_seed(0)
    tensors = (torch.randn(N, H, dtype=dtype), torch.randn(V, H, dtype=dtype), torch.randn(V, dtype=dtype))
    return [t.requires_grad_(**kwargs) for t in tensors], torch.randint(V, (N,))


def plain(hidden, weight, bias, ids, temperature):
    log_softmax = F.log_softmax((hidden @ weight.T + bias) / temperature, -1)
    return log_softmax.gather(1, ids[:, None])[:, 0], -(log_softmax.exp() * log_softmax).sum(-1)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_probabilities_of_all_tokens_add_up_to_one():
    logits = torch.randn(V, dtype=torch.float64)
    everything = token_logprobs(logits.expand(V, V), torch.arange(V))
    assert abs(everything.exp().sum() - 1) < 1e-12


@pytest.mark.parametrize("block_elements", [1, 40, 1 << 22])
@pytest.mark.parametrize("shape", [(V,), (3, V), (3, 2, V), (0, V)])
def test_token_logprobs_is_log_softmax_at_the_token(shape, block_elements, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block_elements)
    logits, ids = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randint(V, shape[:-1])
    expected = F.log_softmax(logits, -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    found = token_logprobs(logits, ids)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((out * weights).sum(), logits)[0] for out in (found, expected)]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients)


def both_of_logits(logits, ids):
    """The log-probabilities by either function; the head of the second hands its hidden states on as logits."""
    head = torch.eye(logits.shape[-1], dtype=logits.dtype)
    return token_logprobs(logits, ids), chunked_token_logprobs(logits, head, ids, chunk=2).logprobs


def test_logits_of_five_hundred_neither_overflow_nor_lose_digits():
    logits = torch.tensor([[500.0, -500.0, 0.0], [-500.0] * 3, [500.0] * 3, [500.0, 499.5, -500.0]])
    ids = torch.tensor([1, 0, 2, 1])
    exact = F.log_softmax(logits.double(), -1).gather(-1, ids[:, None])[:, 0]
    logits.requires_grad_()
    slope = F.one_hot(ids, 3) - logits.detach().softmax(-1)
    for found in both_of_logits(logits, ids):
        torch.testing.assert_close(found.double(), exact, rtol=1e-7, atol=2e-7)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), logits)[0], slope, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("probabilities", "nats"),
    [
        ([0.25, 0.25, 0.25, 0.25], 1.3862943611198906),
        ([0.97, 0.01, 0.01, 0.01], 0.16770053683981007),
        ([0.5, 0.499999998, 1e-09, 1e-09], 0.6931472226201827),
        ([0.7, 0.1, 0.1, 0.1], 0.9404479886553263),
    ],
)
def test_the_entropy_of_known_probabilities(probabilities, nats):
    logits, ids = torch.tensor([probabilities], dtype=torch.float64).log(), torch.tensor([0])
    found = chunked_token_logprobs(logits, torch.eye(4, dtype=torch.float64), ids)
    assert found.entropy.item() == pytest.approx(nats, abs=1e-12)


def test_token_logprobs_passes_gradcheck():
    logits, ids = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True), torch.randint(5, (3, 2))
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, ids), logits)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x[:, :-1], ids[:, 1:]), logits)


def test_low_precision_logits_are_worked_on_in_float32_without_a_full_copy(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 2000)
    logits, ids = torch.randn(64, 1000).bfloat16(), torch.randint(1000, (64,))
    with LargestTensor() as largest:
        found = token_logprobs(logits, ids)
    assert largest.elements <= 2000
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, token_logprobs(logits.float(), ids))


def test_the_gradient_of_low_precision_logits_has_their_dtype():
    logits = torch.randn(3, 5).bfloat16().requires_grad_()
    token_logprobs(logits, torch.tensor([0, 1, 2])).sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_a_token_that_is_switched_off_has_probability_zero_and_disturbs_nothing():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]] * 2, requires_grad=True)
    result = token_logprobs(logits, torch.tensor([0, 2]))
    assert result.tolist() == [pytest.approx(-0.6931472), -torch.inf]
    result[0].backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, N, 100])
def test_chunked_is_plain_log_softmax_in_value_gradient_and_entropy(chunk, temperature):
    (hidden, weight, bias), ids = head()
    found = chunked_token_logprobs(hidden, weight, ids, chunk, bias, temperature)
    expected, entropy = plain(hidden, weight, bias, ids, temperature)
    slope = torch.randn(N, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * slope).sum(), (hidden, weight, bias)) for out in (found.logprobs, expected)]
    torch.testing.assert_close(found.logprobs, expected)
    torch.testing.assert_close(found.entropy, entropy.detach())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("chunk", [3, 100])
def test_capped_logits_give_log_softmax_of_the_capped(chunk):
    (hidden, weight, bias), ids = head()
    found = chunked_token_logprobs(hidden, weight, ids, chunk, bias, 0.7, cap=0.5)
    capped = 0.5 * torch.tanh((hidden @ weight.T + bias) / 0.5)
    expected = F.log_softmax(capped / 0.7, -1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(found.logprobs, expected)
    gradients = [torch.autograd.grad(out.square().sum(), (hidden, weight, bias)) for out in (found.logprobs, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cap", [None, 1.5])
def test_chunked_passes_gradcheck(cap):
    (hidden, weight, bias), ids = head()
    assert torch.autograd.gradcheck(
        lambda h, w, b: chunked_token_logprobs(h, w, ids, 3, b, 0.7, cap).logprobs, (hidden, weight, bias)
    )


@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_only_what_asks_for_a_gradient_gets_one(wanted):
    tensors, ids = head(requires_grad=False)
    named = dict(zip(("hidden", "weight", "bias"), tensors, strict=True))
    named[wanted].requires_grad_()
    chunked_token_logprobs(named["hidden"], named["weight"], ids, 2, named["bias"]).logprobs.sum().backward()
    assert [name for name, tensor in named.items() if tensor.grad is not None] == [wanted]


def test_no_gradient_flows_from_the_entropy():
    (hidden, weight, bias), ids = head()
    assert not chunked_token_logprobs(hidden, weight, ids, 2, bias).entropy.requires_grad


def test_bfloat16_is_close_to_float32():
    torch.manual_seed(0)
    hidden, weight, ids = torch.randn(50, 64), torch.randn(300, 64) / 8, torch.randint(300, (50,))
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        rounded = (hidden.bfloat16().to(dtype).requires_grad_(), weight.bfloat16().to(dtype).requires_grad_())
        result = chunked_token_logprobs(*rounded, ids, chunk=16)
        result.logprobs.sum().backward()
        outputs.append((*result, *(tensor.grad for tensor in rounded)))
    exact, coarse = outputs
    assert coarse[0].dtype == coarse[1].dtype == torch.float32
    assert coarse[2].dtype == coarse[3].dtype == torch.bfloat16
    torch.testing.assert_close(coarse[:2], exact[:2], rtol=0, atol=0.02)
    for found, expected in zip(coarse[2:], exact[2:], strict=True):
        assert (found - expected).norm() / expected.norm() < 0.01


def test_hidden_states_may_be_wider_than_the_weight_and_autocast_changes_nothing():
    (hidden, weight, _), ids = head(torch.float32)
    narrow = weight.detach().bfloat16()
    expected = chunked_token_logprobs(hidden, weight, ids, 2).logprobs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chunked_token_logprobs(hidden, weight, ids, 2).logprobs, expected)
    mixed = chunked_token_logprobs(hidden, narrow, ids, 2).logprobs
    torch.testing.assert_close(mixed, expected, rtol=0, atol=0.1)
    mixed.sum().backward()
    assert hidden.grad.dtype == torch.float32


def test_the_logits_of_all_rows_never_exist_at_once():
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(1000, 4)
    ids = torch.randint(1000, (64,))
    with LargestTensor() as largest:
        chunked_token_logprobs(hidden, weight, ids, chunk=8).logprobs.sum().backward()
    assert largest.elements == 8 * 1000


def test_a_bias_of_minus_infinity_leaves_the_entropy_finite():
    (hidden, weight, bias), ids = head(requires_grad=False)
    bias[3] = -torch.inf
    result = chunked_token_logprobs(hidden, weight, torch.where(ids == 3, 0, ids), 2, bias)
    kept = [index for index in range(V) if index != 3]
    expected = plain(hidden, weight[kept], bias[kept], torch.zeros_like(ids), 1.0)[1]
    torch.testing.assert_close(result.entropy, expected)
    assert torch.isfinite(result.logprobs).all()


def test_no_rows_give_no_logprobs():
    (_, weight, _), _ = head()
    assert chunked_token_logprobs(
        torch.zeros(0, H, dtype=torch.float64), weight, torch.zeros(0).long()
    ).logprobs.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"ids": torch.zeros(2).long()}, "ids"),
    ],
)
def test_impossible_arguments_are_named(change, message):
    (hidden, weight, _), ids = head()
    with pytest.raises(ConfigError, match=message):
        chunked_token_logprobs(**{"hidden": hidden, "weight": weight, "ids": ids, "chunk": 2, **change})


def test_ids_of_another_shape_are_refused():
    with pytest.raises(ConfigError, match="one id for each position"):
        token_logprobs(torch.zeros(2, 3, V), torch.zeros(2, 2).long())
