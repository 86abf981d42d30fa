"""Rollouts and comparisons on disk: JSON objects, read back as the records that they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.files import atomic_write, json_line, read_jsonl_tolerant, to_jsonable
from poise.types import Comparison, Completion, Origin, Prompt, Rollout, RolloutTurn, SafetyLabel, Scores, Span


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Write rollouts as a whole."""
    atomic_write(path, b"".join(json_line(to_jsonable(rollout)) for rollout in rollouts))


def read_rollouts(path: Path) -> tuple[Rollout, ...]:
    """Read what `write_rollouts` or `Run.sample` wrote."""
    found = []
    for row in read_jsonl_tolerant(path):
        prompt, completion = _read_prompt(row["prompt"]), read_completion(row["completion"])
        found.append(Rollout(prompt=prompt, completion=completion, scores=read_scores(row["scores"])))
    return tuple(found)


def read_scores(row: Mapping[str, Any]) -> Scores:
    """The scores that `poise.files.plain` made a JSON object of."""
    changed: dict[str, Any] = {
        "spans": {name: tuple(Span(**span) for span in spans) for name, spans in row.get("spans", {}).items()},
        "token_values": {name: tuple(values) for name, values in row.get("token_values", {}).items()},
    }
    return Scores(**(dict(row) | changed))


def read_completion(row: Mapping[str, Any]) -> Completion:
    """The completion that `poise.files.plain` made a JSON object of."""
    changed: dict[str, Any] = _with_tuples(row) | {"turns": tuple(map(_read_turn, row.get("turns", ())))}
    return Completion(**(dict(row) | changed))


def _read_turn(row: Mapping[str, Any]) -> RolloutTurn:
    return RolloutTurn(**(dict(row) | _with_tuples(row)))


def _with_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(row[name]) for name in ("token_ids", "token_logprobs")}


def read_comparison(row: Mapping[str, Any]) -> Comparison:
    """The comparison that `poise.files.plain` made a JSON object of."""
    safe = None if row["safe"] is None else tuple(row["safe"])
    changed: dict[str, Any] = {
        "prompt": _read_prompt(row["prompt"]),
        "responses": tuple(row["responses"]),
        "safe": safe,
        "categories": tuple(tuple(names) for names in row["categories"]),
        "ranking": tuple(row.get("ranking", ())),
        "origin": Origin(**(row["origin"] | {"order": tuple(row["origin"]["order"])})),
    }
    return Comparison(**(dict(row) | changed))


def read_label(row: Mapping[str, Any]) -> SafetyLabel:
    """The safety label that `poise.files.plain` made a JSON object of."""
    changed: dict[str, Any] = {
        "prompt": _read_prompt(row["prompt"]),
        "categories": tuple(row["categories"]),
        "origin": Origin(**(row["origin"] | {"order": tuple(row["origin"]["order"])})),
    }
    return SafetyLabel(**(dict(row) | changed))


def _read_prompt(row: Mapping[str, Any]) -> Prompt:
    tools = tuple(row.get("tools", ()))
    return Prompt(id=row["id"], messages=tuple(row["messages"]), tags=row["tags"], tools=tools)
