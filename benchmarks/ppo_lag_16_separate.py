"""One PPO-Lag step of 16 samples with six separate models, all weights trained: the reference's own setting.

Actor, reference, reward, cost and two critics are models of their own in bf16; actor and critics are updated once.
The peer is written plainly: transformers' `generate`, then a forward pass of each model over whole rows with the
actor's and the reference's logits at every position, then the updates. Ours keeps the sampler's log-probabilities,
computes logits at response positions only, runs the layers on flat tokens, half the rows at a time, and updates one
model after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from _models import backbone, peer_inputs, prompts
from _training import full_length
from harness import Benchmark, Repeat, Size, main
from torch import Tensor

from poise.functional.policy_losses import clipped_surrogate
from poise.models.decoder import Decoder
from poise.models.policy import Policy
from poise.models.shared_pass import run_shared
from poise.models.shared_rows import SharedRows
from poise.rollout.native import NativeEngine
from poise.types import Sampling

CLIP, KL_COEF, MULTIPLIER = 0.2, 0.02, 1.0
PARTS = 2  # that our side takes its gradients in


class Scored(torch.nn.Module):
    """A decoder of its own with a value at every token."""

    def __init__(self, model: Any):
        super().__init__()
        self.decoder = copy.deepcopy(model.get_decoder()).requires_grad_(True)
        self.head = torch.nn.Linear(model.config.hidden_size, 1, dtype=torch.bfloat16)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        values: Tensor = self.head(self.decoder(ids, attention_mask=mask, use_cache=False).last_hidden_state)
        return values[..., 0].float()


class ScoredRows(torch.nn.Module):
    """The same with our layers on rows: a value at the state that predicts each response token, and at the last one."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(True)
        self.decoder = Decoder(self.model)
        self.head = torch.nn.Linear(model.config.hidden_size, 1, dtype=torch.bfloat16)

    def forward(self, rows: SharedRows) -> tuple[Tensor, Tensor]:
        above = run_shared(self.decoder, rows)
        states = torch.cat([above.predicting(), above.known_states.responses[:, -1:]], 1)
        values: Tensor = self.head(self.decoder.final_norm(states))[..., 0].float()
        return values[:, :-1], values[:, -1]


class Study:
    """What both sides do alike: two frozen score models, two critics, advantages, and the optimizers."""

    def __init__(self, actor: Any, scored: Sequence[Any]):
        self.scorers, self.critics = [each.requires_grad_(False) for each in scored[:2]], scored[2:]
        self.optimizers = [
            torch.optim.AdamW(each.parameters(), lr=1e-6, weight_decay=0.0) for each in (actor, *self.critics)
        ]

    @staticmethod
    def step(optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @staticmethod
    def advantages(scores: list[Tensor], values: list[Tensor], kl: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns less values, reward against cost: both sides share it, and it costs nothing."""
        returns = [score[:, None].expand_as(value) for score, value in zip(scores, values, strict=True)]
        reward, cost = (each - value for each, value in zip(returns, values, strict=True))
        return (reward - MULTIPLIER * cost) / (1 + MULTIPLIER) - KL_COEF * kl, returns


def ours(size: Size) -> Repeat:
    found = backbone(size.model)
    actor = Policy(found, None, weights=torch.bfloat16)
    study = Study(actor.model, [ScoredRows(found.model) for _ in range(4)])
    engine = full_length(NativeEngine(actor, batch_size=size.rows))
    asked, draws = prompts(size, size.rows), iter(range(1_000_000))
    heads = [engine.renderer.prompt_ids(prompt.messages)[0] for prompt in asked]

    def repeat() -> None:
        made = engine.generate(asked, Sampling(max_tokens=size.response, seed=next(draws)))
        tokens = [head + list(each.token_ids) for head, each in zip(heads, made, strict=True)]
        rows = SharedRows.of_lists(tokens, [len(head) for head in heads])
        old = torch.tensor([each.token_logprobs for each in made])
        with torch.no_grad():
            known, _ = actor.logprobs(rows, reference=True)
            scores = [scorer(rows)[1] for scorer in study.scorers]
            values = [critic(rows)[0] for critic in study.critics]
        advantages, returns = study.advantages(scores, values, old - known)
        parts = [(part, rows.select(part)) for part in torch.arange(size.rows).chunk(PARTS)]
        for at, part in parts:
            new, _ = actor.logprobs(part)
            losses = clipped_surrogate(new, old[at], advantages[at], part.response_mask)
            (losses.sum() / old.numel()).backward()
        study.step(study.optimizers[:1])  # before the next model has a gradient as well
        for critic, target, optimizer in zip(study.critics, returns, study.optimizers[1:], strict=True):
            for at, part in parts:
                ((critic(part)[0] - target[at]).square().sum() / old.numel()).backward()
            study.step([optimizer])
        actor.version += 1

    return repeat


def peer(size: Size) -> Repeat:
    model, _, inputs = peer_inputs(size, size.rows)
    reference = copy.deepcopy(model).requires_grad_(False)
    study = Study(model, [Scored(model) for _ in range(4)])
    start = inputs["input_ids"].shape[1]

    def logprobs(causal: Any, ids: Tensor, mask: Tensor) -> Tensor:
        logits = causal(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

    def repeat() -> None:
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": size.response, "min_new_tokens": size.response}
        ids = model.generate(**inputs, **settings, pad_token_id=0)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, start:])], 1)
        with torch.no_grad():
            old, known = (logprobs(each, ids, mask) for each in (model, reference))
            scores = [scorer(ids, mask)[:, -1] for scorer in study.scorers]
            values = [critic(ids, mask)[:, :-1] for critic in study.critics]
        advantages, returns = study.advantages(scores, values, old - known)
        ratio = (logprobs(model, ids, mask) - old).exp()[:, start - 1 :]
        chosen = advantages[:, start - 1 :]
        torch.maximum(-chosen * ratio, -chosen * ratio.clamp(1 - CLIP, 1 + CLIP)).mean().backward()
        for critic, target in zip(study.critics, returns, strict=True):
            (critic(ids, mask)[:, :-1] - target)[:, start - 1 :].square().mean().backward()
        study.step(study.optimizers)

    return repeat


BENCHMARK = Benchmark(
    name="ppo_lag_16_separate",
    peer_name="transformers generate and plain passes",
    bar=1.5,
    ours=ours,
    peer=peer,
    size=Size(rows=16, repeats=4, warm_up=1),
)

if __name__ == "__main__":
    main(BENCHMARK)
