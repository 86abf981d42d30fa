"""Responses to learn from: each distinct one numbered once, and its log-probabilities under policy and reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from poise.checksums import read_sealed, write_sealed
from poise.data.chat import Encoded
from poise.models.load import Backbone
from poise.models.policy import Policy
from poise.models.shared_rows import OwnRows, SharedRows
from poise.models.trainable import TrainablePolicy
from poise.ranks import current
from poise.types import Comparison, Prompt

Item = TypeVar("Item")

_ENTRIES_HASHED = 256  # of each weight: enough to tell a model from one that was trained further


class Responses:
    """Distinct responses to prompts, numbered in the order in which they are first asked for."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}
        self.prompts: list[Prompt] = []
        self.texts: list[str] = []

    def number(self, prompt: Prompt, text: str) -> int:
        """The number of a response to a prompt."""
        key = (prompt.id, text)
        if key not in self._numbers:
            self._numbers[key] = len(self.texts)
            self.prompts.append(prompt)
            self.texts.append(text)
        return self._numbers[key]

    def by_prompt(self, items: Sequence[Item], number_of: Callable[[Item], int]) -> list[list[Item]]:
        """Items in groups that share a prompt, told by the number of one of their responses."""
        groups: dict[str, list[Item]] = {}
        for item in items:
            groups.setdefault(self.prompts[number_of(item)].id, []).append(item)
        return list(groups.values())


def ranked_pairs(comparison: Comparison) -> Iterator[tuple[int, int, float]]:
    """Pairs (better, other, probability that it is better) of a comparison: the winner against each different response.

    Of a full ranking it is each response against every one behind it. The record's probability speaks of its first two
    responses alone.
    """
    if comparison.ranking:
        texts = [comparison.responses[i] for i in comparison.ranking]
        for (best, better), (other, worse) in combinations(zip(comparison.ranking, texts, strict=True), 2):
            if better != worse:
                yield best, other, 1.0
        return
    best = 0 if comparison.winner is None else comparison.winner
    others = [1] if comparison.winner is None else [i for i in range(len(comparison.responses)) if i != best]
    for other in others:
        if comparison.responses[other] != comparison.responses[best]:
            soft = comparison.probability if {best, other} == {0, 1} else None
            yield best, other, 1.0 if soft is None else soft if best == 0 else 1 - soft


def shared_rows(policy: TrainablePolicy, rows: Sequence[Encoded]) -> SharedRows:
    """Encoded rows as the policy reads them, each distinct prompt once."""
    return SharedRows.of_lists(
        [row.ids for row in rows],
        [row.prompt_length for row in rows],
        masks=[row.response_mask[row.prompt_length :] for row in rows] if any(row.mask for row in rows) else None,
        device=policy.device,
    )


def sequence_logprobs(policy: Policy, rows: Sequence[Encoded], *, tokens: int, reference: bool = False) -> Tensor:
    """Log-probabilities [N] in nats of whole responses, without gradient; at most `tokens` padded tokens at once.

    Each process runs its part of the rows and has the figures of all of them.
    """
    own = OwnRows.of(shared_rows(policy, rows))
    dtype = torch.promote_types(policy.backbone.dtype, torch.float32)
    found = torch.zeros(len(rows), dtype=dtype, device=policy.backbone.device)
    with torch.no_grad():
        for part, counts in own.passes(tokens):
            logprobs, _ = policy.logprobs(policy.frozen_states(own.rows.select(part)), reference=reference)
            found[own.places[part]] = counts * logprobs.sum(-1)
    return current().sum(found)


def reference_logprobs(policy: Policy, rows: Sequence[Encoded], *, tokens: int, cache: Path | None = None) -> Tensor:
    """Log-probabilities [N] in nats of whole responses under the reference, computed once.

    `cache` keeps them with a checksum of the rows and of the reference's weights; where the checksum is another one
    they are computed again. They follow from data and model alone, so that a resumed run reads what it wrote.
    """
    checksum = _checksum(policy.backbone, rows)
    stored = current().broadcast_object(None if cache is None or not current().is_main else _stored(cache))
    if stored is not None and stored["checksum"] == checksum:
        return torch.tensor(stored["logprobs"], device=policy.backbone.device)
    logprobs = sequence_logprobs(policy, rows, tokens=tokens, reference=True)
    if cache is not None and current().is_main:
        write_sealed(cache, {"checksum": checksum, "logprobs": logprobs.tolist()})
    return logprobs


def _stored(cache: Path) -> dict[str, Any] | None:
    if not cache.exists():
        return None
    return read_sealed(cache, remedy="Delete this file: the same command then recomputes it")[0]


@torch.no_grad()
def _checksum(backbone: Backbone, rows: Sequence[Encoded]) -> str:
    digest = hashlib.sha256(f"{backbone.checksum} {backbone.dtype}".encode())
    for row in rows:
        digest.update(json.dumps([row.prompt_length, row.ids, *([row.mask] if row.mask else [])]).encode())
    for name, weight in backbone.model.named_parameters():
        if ".lora_" not in name:
            entries = current().whole(weight).flatten()[:: max(1, weight.numel() // _ENTRIES_HASHED)]
            plain = name.replace(".base.", ".")  # where an adapter has been put around a weight
            digest.update(plain.encode() + entries.float().cpu().numpy().tobytes())
    return digest.hexdigest()
