"""Rollouts: on disk as JSON objects, read back as the records they were, and how far they are from the start model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from poise.files import atomic_write, json_line, plain, read_jsonl_tolerant
from poise.functional.statistics import bootstrap_mean
from poise.models.policy import Policy
from poise.models.shared_rows import SharedRows
from poise.rollout.engine import read_completion
from poise.train.rollout_batch import encode_rollouts
from poise.types import Comparison, Estimate, Origin, Prompt, Rollout, Scores


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Write rollouts as a whole."""
    atomic_write(path, b"".join(json_line(plain(rollout)) for rollout in rollouts))


def read_rollouts(path: Path) -> tuple[Rollout, ...]:
    """Read what `write_rollouts` or `Run.sample` wrote."""
    found = []
    for row in read_jsonl_tolerant(path):
        prompt, completion = _read_prompt(row["prompt"]), read_completion(row["completion"])
        found.append(Rollout(prompt=prompt, completion=completion, scores=Scores(**row["scores"])))
    return tuple(found)


def read_comparison(row: Mapping[str, Any]) -> Comparison:
    """The comparison that `poise.files.plain` made a JSON object of."""
    safe = None if row["safe"] is None else tuple(row["safe"])
    changed: dict[str, Any] = {
        "prompt": _read_prompt(row["prompt"]),
        "responses": tuple(row["responses"]),
        "safe": safe,
        "categories": tuple(tuple(names) for names in row["categories"]),
        "origin": Origin(**(row["origin"] | {"order": tuple(row["origin"]["order"])})),
    }
    return Comparison(**(dict(row) | changed))


def _read_prompt(row: Mapping[str, Any]) -> Prompt:
    return Prompt(id=row["id"], messages=tuple(row["messages"]), tags=row["tags"])


@torch.no_grad()
def sequence_kl(policy: Policy, answers: Sequence[Rollout], temperature: float) -> Estimate:
    """Mean over responses of the sampled log-ratio to the start model, in nats a sequence."""
    renderer, values = policy.backbone.renderer(), []
    bare = Scores(values={})  # an unscorable answer has a log-ratio too, but not every channel
    rollouts = [replace(r, scores=bare) for r in answers if r.completion.token_ids]
    for begin in range(0, len(rollouts), 16):
        part = rollouts[begin : begin + 16]
        rows = encode_rollouts(part, renderer, policy.backbone.device)
        shared = SharedRows.of(rows.token_ids, rows.prompt_lengths, rows.response_mask)
        reference, _ = policy.logprobs(shared, reference=True, temperature=temperature)
        sums = reference.sum(-1).tolist()
        values += [sum(r.completion.token_logprobs) - ref for r, ref in zip(part, sums, strict=True)]
    return bootstrap_mean(values, clusters=[r.prompt.id for r in rollouts], unit="nats/sequence")
