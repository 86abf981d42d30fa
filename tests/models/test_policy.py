"""A policy's log-probabilities are those of the plain model, and its reference never moves."""

import pytest
import torch

from poise.errors import ModelError
from poise.models.adapters import Lora
from poise.models.decoder import pad_rows
from poise.models.load import load_backbone
from poise.models.policy import Policy, load_policy
from poise.models.shared_rows import SharedRows

PROMPT_LENGTHS, RESPONSE_LENGTHS = (3, 5, 2), (4, 0, 7)


@pytest.fixture
def rows():
    """Token rows whose prompts and responses differ in length; the second response is empty."""
    generator = torch.Generator().manual_seed(3)
    lengths = [p + r for p, r in zip(PROMPT_LENGTHS, RESPONSE_LENGTHS, strict=True)]
    return [torch.randint(0, 260, (length,), generator=generator).tolist() for length in lengths]


def inputs(rows, prompt_lengths=PROMPT_LENGTHS, extra=0, fill=0):
    """Token ids, prompt lengths and response mask, with `extra` columns of padding."""
    ids, lengths = pad_rows(rows, fill)
    ids = torch.cat([ids, torch.full((len(rows), extra), fill)], 1)
    starts = torch.tensor(prompt_lengths)
    width = int((lengths - starts).max()) + extra
    return ids, starts, torch.arange(width)[None] < (lengths - starts)[:, None]


def plain(model, row, start, temperature=1.0):
    """Log-probabilities and entropies of a row's response, one row at a time through the Hugging Face model."""
    with torch.no_grad():
        distribution = (model(torch.tensor([row])).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
    return (
        distribution.gather(-1, torch.tensor(row[start:])[:, None])[:, 0],
        -(distribution.exp() * distribution).sum(-1),
    )


def test_logprobs_and_entropies_are_those_of_the_plain_model(backbone, rows, move_adapter):
    policy = Policy(backbone, Lora(rank=2, top=0.5))
    move_adapter(policy.model, "policy")
    ids, starts, mask = inputs(rows)
    for temperature in (1.0, 0.7):
        values, entropy = policy.logprobs(SharedRows.of(ids, starts, mask), temperature=temperature)
        assert values.shape == entropy.shape == mask.shape
        for index, (row, start) in enumerate(zip(rows, PROMPT_LENGTHS, strict=True)):
            with policy.policy_mode():
                expected = plain(policy.model, row, start, temperature)
            torch.testing.assert_close(values[index][mask[index]], expected[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(entropy[index][mask[index]], expected[1], atol=1e-5, rtol=1e-5)
        assert not values[~mask].any()
        assert not entropy[~mask].any()


def test_gradients_are_those_of_the_plain_model(backbone, rows, move_adapter):
    policy = Policy(backbone, Lora(rank=2))
    move_adapter(policy.model, "policy")
    ids, starts, mask = inputs(rows)
    weights = list(policy.parameters().values())
    ours = torch.autograd.grad(policy.logprobs(SharedRows.of(ids, starts, mask))[0].sum(), weights)
    with policy.policy_mode():
        total = sum(
            policy.model(torch.tensor([row]))
            .logits[0, start - 1 : -1]
            .log_softmax(-1)
            .gather(-1, torch.tensor(row[start:])[:, None])
            .sum()
            for row, start in zip(rows, PROMPT_LENGTHS, strict=True)
        )
        theirs = torch.autograd.grad(total, weights)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_row_does_not_depend_on_padding_or_on_its_neighbours(backbone, rows, move_adapter):
    policy = Policy(backbone, Lora(rank=2))
    move_adapter(policy.model, "policy")
    together, _ = policy.logprobs(SharedRows.of(*inputs(rows)))
    mask = inputs(rows)[2]
    for extra, fill in ((0, 0), (9, 0), (9, 259)):
        padded, _ = policy.logprobs(SharedRows.of(*inputs(rows, extra=extra, fill=fill)))
        torch.testing.assert_close(padded[:, : mask.shape[1]], together, atol=1e-5, rtol=1e-5)
        assert not padded[:, mask.shape[1] :].any()
    for index in (0, 2):
        alone, _ = policy.logprobs(SharedRows.of(*inputs([rows[index]], [PROMPT_LENGTHS[index]])))
        torch.testing.assert_close(alone[0], together[index][mask[index]], atol=1e-5, rtol=1e-5)


def test_only_empty_responses_have_no_logprobs_and_no_error(backbone):
    values, entropy = Policy(backbone, Lora(rank=2)).logprobs(SharedRows.of(*inputs([[5, 6], [7]], [2, 1], extra=2)))
    assert not values.any()
    assert not entropy.any()


@pytest.mark.parametrize("top", [1.0, 0.5])
def test_states_of_the_lower_layers_may_be_given(backbone, rows, move_adapter, top):
    policy = Policy(backbone, Lora(rank=2, top=top))
    move_adapter(policy.model, "policy")
    ids, starts, mask = inputs(rows)
    lower = policy.frozen_states(SharedRows.of(ids, starts, mask))
    for reference in (False, True):
        given, _ = policy.logprobs(lower, reference=reference)
        computed, _ = policy.logprobs(SharedRows.of(ids, starts, mask), reference=reference)
        torch.testing.assert_close(given, computed, atol=1e-6, rtol=1e-6)


def test_the_reference_is_the_bare_backbone_and_stays_it_while_the_policy_learns(backbone, rows):
    bare = [plain(backbone.model, row, start)[0] for row, start in zip(rows, PROMPT_LENGTHS, strict=True)]
    policy = Policy(backbone, Lora(rank=2))
    ids, starts, mask = inputs(rows)
    optimizer = torch.optim.SGD(policy.parameters().values(), lr=0.001)
    for _ in range(5):
        optimizer.zero_grad()
        (-policy.logprobs(SharedRows.of(ids, starts, mask))[0].sum()).backward()
        optimizer.step()
    reference, _ = policy.logprobs(SharedRows.of(ids, starts, mask), reference=True)
    torch.testing.assert_close(reference[mask], torch.cat(bare), atol=1e-5, rtol=1e-5)
    acting, _ = policy.logprobs(SharedRows.of(ids, starts, mask))
    assert acting.sum() > reference.sum() + 0.01


def test_full_fine_tuning_has_weights_of_its_own_and_leaves_the_backbone_alone(backbone, rows, tmp_path):
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    policy = Policy(backbone, None)
    ids, starts, mask = inputs(rows)
    assert policy.split == 0
    torch.testing.assert_close(
        policy.logprobs(SharedRows.of(ids, starts, mask)),
        policy.logprobs(SharedRows.of(ids, starts, mask), reference=True),
    )
    optimizer = torch.optim.SGD(policy.parameters().values(), lr=0.1)
    (-policy.logprobs(SharedRows.of(ids, starts, mask))[0].sum()).backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in backbone.model.state_dict().items())
    acting, reference = (policy.logprobs(SharedRows.of(ids, starts, mask), reference=flag)[0] for flag in (False, True))
    assert acting.sum() > reference.sum()
    policy.save_pretrained(tmp_path)
    again = Policy(load_backbone(str(tmp_path), dtype=torch.float32), Lora(rank=1))
    torch.testing.assert_close(again.logprobs(SharedRows.of(ids, starts, mask))[0], acting, atol=1e-5, rtol=1e-5)


def test_full_fine_tuning_trains_no_adapter_of_another_role(backbone):
    names = set(dict(backbone.model.named_parameters()))
    other = Policy(backbone, Lora(rank=2), adapter="other")
    assert set(Policy(backbone, None).parameters()) == names
    assert all(parameter.requires_grad for parameter in other.parameters().values())


def test_merging_keeps_the_outputs_and_moves_the_reference_there(backbone, rows, move_adapter):
    policy = Policy(backbone, Lora(rank=2, top=0.5))
    move_adapter(policy.model, "policy")
    ids, starts, mask = inputs(rows)
    acting, reference = (policy.logprobs(SharedRows.of(ids, starts, mask), reference=flag)[0] for flag in (False, True))
    assert (acting - reference).abs().max() > 1e-3
    policy.merge()
    for flag in (False, True):
        torch.testing.assert_close(
            policy.logprobs(SharedRows.of(ids, starts, mask), reference=flag)[0], acting, atol=1e-5, rtol=1e-5
        )
    (-policy.logprobs(SharedRows.of(ids, starts, mask))[0].sum()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters().values())


def test_a_fully_fine_tuned_policy_has_nothing_to_merge(backbone):
    with pytest.raises(ModelError, match="no adapter to merge; save it"):
        Policy(backbone, None).merge()


@pytest.mark.parametrize("lora", [Lora(rank=2), None])
def test_weights_are_taken_over_from_a_saved_policy(backbone, family, rows, tmp_path, lora):
    first = Policy(backbone, lora, seed=1)
    with torch.no_grad():
        for parameter in first.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    first.save_pretrained(tmp_path)
    second = Policy(load_backbone(f"random:{family}?layers=4&hidden=32"), lora)
    second.copy_from(tmp_path)
    ids, starts, mask = inputs(rows)
    torch.testing.assert_close(
        second.logprobs(SharedRows.of(ids, starts, mask))[0],
        first.logprobs(SharedRows.of(ids, starts, mask))[0],
        atol=1e-5,
        rtol=1e-5,
    )


def test_critics_read_frozen_states_below_the_adapter_and_middle_states_of_a_whole_policy(backbone, rows):
    shared = SharedRows.of(*inputs(rows))
    policy = Policy(backbone, Lora(rank=2, top=0.5))
    lower = policy.frozen_states(shared)
    assert policy.critic_states(lower) is lower
    whole = Policy(load_backbone("random:llama?layers=4&hidden=32"), None)
    assert whole.frozen_states(shared) is shared
    read = whole.critic_states(shared)
    assert read.depth == 2
    expected = whole.decoder.run(whole.decoder.embed(torch.tensor([rows[0]])), stop=2)[0]
    torch.testing.assert_close(read.known_states.responses[0, :4], expected[3:].detach())
    assert not read.known_states.responses.requires_grad


def test_a_policy_of_any_model_name_starts_as_that_model(ids):
    policy = load_policy("random:llama", seed=5)
    assert policy.backbone.name == "random:llama?seed=5"
    with torch.no_grad(), policy.policy_mode():
        acting = policy.model(ids).logits
        assert torch.equal(acting, load_backbone("random:llama?seed=5").model(ids).logits)
