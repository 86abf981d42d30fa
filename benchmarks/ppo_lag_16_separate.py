"""One PPO-Lag step of 16 samples with six separate models, all weights trained: the reference's own setting.

Actor, reference, reward, cost and two critics are models of their own in bf16; actor and critics are updated once.
The peer is written plainly: transformers' `generate`, then a forward pass of each model over whole rows with the
actor's and the reference's logits at every position, then the updates. Ours keeps the sampler's log-probabilities,
computes logits at response positions only and runs the rows in parts of 1,024 tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _models import backbone, peer_inputs, prompts
from _training import TOKENS, full_length
from harness import Benchmark, Repeat, Size, main
from torch import Tensor

from poise.functional.logprobs import chunked_token_logprobs
from poise.functional.policy_losses import clipped_surrogate
from poise.models.policy import Policy
from poise.models.trunk import Trunk, pad_rows
from poise.rollout.native import NativeEngine
from poise.types import Sampling

CLIP, KL_COEF, MULTIPLIER = 0.2, 0.02, 1.0


class Scored(torch.nn.Module):
    """A decoder of its own with a value at every token."""

    def __init__(self, model: Any):
        super().__init__()
        self.decoder = copy.deepcopy(model.get_decoder()).requires_grad_(True)
        self.head = torch.nn.Linear(model.config.hidden_size, 1, dtype=torch.bfloat16)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        values: Tensor = self.head(self.decoder(ids, attention_mask=mask, use_cache=False).last_hidden_state)
        return values[..., 0].float()


class Study:
    """Six models and what both sides do alike: advantages from the scores, and the optimizers."""

    def __init__(self, model: Any, actor: Any):
        self.reference, self.actor = model.requires_grad_(False), actor
        self.scorers = [Scored(model).requires_grad_(False) for _ in range(2)]
        self.critics = [Scored(model) for _ in range(2)]
        self.optimizers = [
            torch.optim.AdamW(each.parameters(), lr=1e-6, weight_decay=0.0) for each in (actor, *self.critics)
        ]

    def step(self) -> None:
        for optimizer in self.optimizers:
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
    study = Study(found.model, actor.model)
    engine = full_length(NativeEngine(actor, batch_size=size.rows))
    asked, draws, reference = prompts(size, size.rows), iter(range(1_000_000)), Trunk(found.model)
    heads = [engine.renderer.prompt_ids(prompt.messages)[0] for prompt in asked]

    def logprobs(trunk: Trunk, ids: Tensor, start: int) -> Tensor:
        hidden = trunk.final_norm(trunk.run(trunk.embed(ids))[:, start - 1 : -1])
        found = chunked_token_logprobs(hidden.flatten(0, 1), trunk.head.weight, ids[:, start:].flatten(), chunk=1536)
        return found.logprobs.view(len(ids), -1)

    def in_parts(run: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        return torch.cat([run(part) for part in ids.split(max(1, TOKENS // ids.shape[1]))])

    def repeat() -> None:
        made = engine.generate(asked, Sampling(max_tokens=size.response, seed=next(draws)))
        rows = [head + list(each.token_ids) for head, each in zip(heads, made, strict=True)]
        ids, start = pad_rows(rows, 0)[0], max(map(len, heads))
        old = torch.tensor([each.token_logprobs for each in made])
        with torch.no_grad():
            known = in_parts(lambda part: logprobs(reference, part, start), ids)
            scores = [in_parts(scorer, ids)[:, -1] for scorer in study.scorers]
            values = [in_parts(critic, ids)[:, start - 1 : -1] for critic in study.critics]
        advantages, returns = study.advantages(scores, values, old - known)
        size_of_part = max(1, TOKENS // ids.shape[1])
        for rows_of_part in torch.arange(len(ids)).split(size_of_part):
            part, inside = ids[rows_of_part], torch.ones_like(old[rows_of_part], dtype=torch.bool)
            new = logprobs(actor.trunk, part, start)
            losses = clipped_surrogate(new, old[rows_of_part], advantages[rows_of_part], inside)
            (losses.sum() / old.numel()).backward()
            for critic, target in zip(study.critics, returns, strict=True):
                value = critic(part)[:, start - 1 : -1]
                ((value - target[rows_of_part]).square().sum() / old.numel()).backward()
        study.step()
        actor.version += 1

    return repeat


def peer(size: Size) -> Repeat:
    model, _, inputs = peer_inputs(size, size.rows)
    study = Study(copy.deepcopy(model), model)
    start = inputs["input_ids"].shape[1]

    def logprobs(causal: Any, ids: Tensor, mask: Tensor) -> Tensor:
        logits = causal(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]

    def repeat() -> None:
        settings = {"do_sample": True, "top_k": 0, "max_new_tokens": size.response, "min_new_tokens": size.response}
        ids = model.generate(**inputs, **settings, pad_token_id=0)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, start:])], 1)
        with torch.no_grad():
            old, known = (logprobs(each, ids, mask) for each in (model, study.reference))
            scores = [scorer(ids, mask)[:, -1] for scorer in study.scorers]
            values = [critic(ids, mask)[:, :-1] for critic in study.critics]
        advantages, returns = study.advantages(scores, values, old - known)
        ratio = (logprobs(model, ids, mask) - old).exp()[:, start - 1 :]
        chosen = advantages[:, start - 1 :]
        torch.maximum(-chosen * ratio, -chosen * ratio.clamp(1 - CLIP, 1 + CLIP)).mean().backward()
        for critic, target in zip(study.critics, returns, strict=True):
            (critic(ids, mask)[:, :-1] - target)[:, start - 1 :].square().mean().backward()
        study.step()

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
