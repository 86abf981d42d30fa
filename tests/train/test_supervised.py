"""Supervised fine-tuning: the loss is the plain cross-entropy of response tokens, however it is cut."""

from __future__ import annotations

import pytest
import torch

from poise.errors import ConfigError, NonFiniteError
from poise.models.adapters import use_adapter
from poise.train.loop import constant
from poise.train.supervised import DemonstrationBatches, SupervisedTrainer
from poise.types import Demonstration, Prompt

ANSWERS = ("Hi!", "Mix flour, water and yeast, wait, and bake it hot.", "", "The Nile and the Rhine")
FAMILIES = ["random:llama", "random:gpt2"]


@pytest.fixture
def demonstrations(prompts):
    return [Demonstration(prompt=p, response=r) for p, r in zip(prompts, ANSWERS, strict=True)]


def token_losses(policy, demonstration, temperature=1.0):
    """Cross-entropies of the response tokens by the whole transformers model, one row without padding."""
    encoded = policy.backbone.renderer().encode(demonstration.prompt, demonstration.response)
    ids = torch.tensor([encoded.ids])
    with torch.no_grad(), use_adapter(policy.model, policy.adapter):
        logits = policy.model(input_ids=ids).logits
    losses = torch.nn.functional.cross_entropy(logits[0, :-1] / temperature, ids[0, 1:], reduction="none")
    return losses[encoded.prompt_length - 1 :]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_cross_entropy_of_transformers_on_response_tokens(make_policy, demonstrations, family):
    policy = make_policy(family)
    metrics = DemonstrationBatches(demonstrations, policy).backward(policy, 0)
    losses = torch.cat([token_losses(policy, each) for each in demonstrations])
    assert len(losses) == sum(len(answer) + 1 for answer in ANSWERS)  # byte tokens, and the end of turn
    assert metrics["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_at_a_temperature_the_loss_is_that_of_its_sampler(make_policy, demonstrations):
    policy = make_policy("random:llama")
    metrics = DemonstrationBatches(demonstrations, policy, temperature=0.7).backward(policy, 0)
    losses = torch.cat([token_losses(policy, each, 0.7) for each in demonstrations])
    assert metrics["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_labels_of_transformers_give_the_same_loss_and_gradient(make_policy, demonstrations, family):
    policy = make_policy(family)
    batches = DemonstrationBatches(demonstrations[1:2], policy)
    found = batches.backward(policy, 0)["loss"]
    gradients = {name: p.grad.clone() for name, p in policy.parameters().items()}
    row = batches.rows[0]
    labels = torch.tensor([[-100] * row.prompt_length + list(row.ids[row.prompt_length :])])
    for parameter in policy.parameters().values():
        parameter.grad = None
    with use_adapter(policy.model, policy.adapter):
        loss = policy.model(input_ids=torch.tensor([row.ids]), labels=labels).loss
    loss.backward()
    assert found == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in policy.parameters().items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_weights_make_a_weighted_mean_over_tokens(make_policy, demonstrations):
    policy, weights = make_policy(), (1.0, 0.5, 3.0, 0.0)
    weighted = [
        Demonstration(prompt=d.prompt, response=d.response, weight=w)
        for d, w in zip(demonstrations, weights, strict=True)
    ]
    losses = [token_losses(policy, each) for each in demonstrations]
    total = sum(w * float(row.sum()) for w, row in zip(weights, losses, strict=True))
    count = sum(w * len(row) for w, row in zip(weights, losses, strict=True))
    loss = DemonstrationBatches(weighted, policy).backward(policy, 0)["loss"]
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_demonstrations_without_weight_teach_nothing(make_policy, prompts):
    policy = make_policy()
    batches = DemonstrationBatches([Demonstration(prompt=prompts[0], response="No.", weight=0.0)], policy)
    assert batches.backward(policy, 0)["loss"] == 0.0
    assert all(not p.grad.any() for p in policy.parameters().values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_of_micro_batches_changes_neither_loss_nor_gradient(make_policy, demonstrations, family):
    losses, gradients = [], []
    for tokens in (100_000, 120, 1):
        policy = make_policy(family)
        batches = DemonstrationBatches(demonstrations, policy, tokens_per_micro_batch=tokens)
        losses.append(batches.backward(policy, 0)["loss"])
        gradients.append({name: p.grad for name, p in policy.parameters().items()})
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_coefficient_scales_the_gradient_and_not_the_reported_loss(make_policy, demonstrations):
    losses, gradients = [], []
    for weight in (1.0, 4.0):
        policy = make_policy()
        losses.append(DemonstrationBatches(demonstrations, policy).backward(policy, 0, weight=weight)["loss"])
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters().values()]))
    assert losses[0] == losses[1]
    torch.testing.assert_close(gradients[1], 4 * gradients[0])


@pytest.mark.parametrize("lora", [True, False])
def test_training_lowers_the_loss_and_counts_versions(make_policy, demonstrations, lora):
    policy = make_policy() if lora else make_policy(lora=None)
    batches = DemonstrationBatches(demonstrations, policy)
    trainer = SupervisedTrainer(policy=policy, batches=batches, lr=1e-2, steps=15, schedule=constant)
    losses = [trainer.step_at(index)["loss"] for index in range(15)]
    assert losses[-1] < losses[0] - 0.2
    assert policy.version == 15


def test_a_loss_that_is_not_finite_stops(make_policy, demonstrations):
    policy = make_policy()
    with torch.no_grad():
        next(iter(policy.parameters().values())).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="supervised loss"):
        DemonstrationBatches(demonstrations, policy).backward(policy, 0)


def test_training_needs_demonstrations(make_policy):
    with pytest.raises(ConfigError, match="no demonstrations"):
        DemonstrationBatches([], make_policy())


@pytest.mark.parametrize("every_turn", [True, False])
def test_turns_of_a_conversation_are_learned_as_transformers_learns_their_labels(make_policy, every_turn):
    policy = make_policy("random:llama")
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, ANSWERS, strict=True)]
    turns[2]["content"] = "And two big rivers?"
    shown = [
        Demonstration(prompt=Prompt.of(turns[:3]), response=ANSWERS[3]),
        Demonstration(prompt=Prompt.of("Hello"), response="Hi!"),
    ]
    batches = DemonstrationBatches(shown, policy, every_turn=every_turn)
    found = batches.backward(policy, 0)["loss"]
    gradients = {name: p.grad.clone() for name, p in policy.parameters().items()}
    for parameter in policy.parameters().values():
        parameter.grad = None
    sums, count = 0.0, 0
    for row in batches.rows:
        labels = [token if said else -100 for token, said in zip(row.ids, row.response_mask, strict=True)]
        with use_adapter(policy.model, policy.adapter):
            loss = policy.model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss
        sums, count = sums + loss * sum(row.response_mask), count + sum(row.response_mask)
    assert count == sum(len(text) + 1 for text in (*([ANSWERS[1]] if every_turn else []), ANSWERS[3], "Hi!"))
    (sums / count).backward()
    assert found == pytest.approx((sums / count).item(), rel=1e-5)
    for name, parameter in policy.parameters().items():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-4)
