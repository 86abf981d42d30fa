"""The layers of a backbone on shared rows: whole, in parts, and by each way that there is.

Each distinct prompt is computed once; a response attends to its prompt's keys and to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from poise.errors import DataError
from poise.models.decoder import Decoder
from poise.models.flat import FlatLayers, runs_flat
from poise.models.shared_rows import SharedRows, States
from poise.ranks import current

Recomputation = Callable[[], AbstractContextManager[object]] | None


class _PromptKeys:
    """Keeps the keys and values of the prompts in one layer and puts them before those of the responses."""

    def __init__(self, owner: Tensor):
        self.owner = owner
        self.stored: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
        """Store the prompts' on the first call of a layer; return all that the responses attend to on the second."""
        if self.stored is None:
            self.stored = keys, values
            return keys, values
        (prompt_keys, prompt_values), self.stored = self.stored, None
        return torch.cat([prompt_keys[self.owner], keys], 2), torch.cat([prompt_values[self.owner], values], 2)


def run_shared(
    decoder: Decoder,
    rows: SharedRows,
    *,
    stop: int | None = None,
    recompute_in: Recomputation = None,
) -> SharedRows:
    """The rows with their states after layer `stop` (of all layers by default), from where they are now.

    Equal to running whole rows, prompt and response together; the gradient reaches a prompt from all its responses.
    With `recompute_in` only the states between layers are kept for the backward pass, which runs each layer again
    inside that context: the one that says which adapter is on.
    """
    stop = decoder.depth if stop is None else stop
    prompts, responses = _states_below(decoder, rows)
    run = _run_flat if runs_flat(decoder, rows) else _run_padded
    again = recompute_in if torch.is_grad_enabled() else None
    prompts, responses = run(decoder, rows, prompts, responses, stop, again)
    return replace(rows, states=States(prompts=prompts, responses=responses), depth=stop)


def run_every_way(decoder: Decoder, rows: SharedRows) -> Iterator[tuple[str, SharedRows]]:
    """The rows with their states after all layers, by each way that `run_shared` may choose, with its name."""
    ways = [("on shared prompts", _run_padded)]
    if runs_flat(decoder, rows):
        ways.append(("without padding", _run_flat))
    for name, run in ways:
        prompts, responses = run(decoder, rows, *_states_below(decoder, rows), decoder.depth, None)
        yield name, replace(rows, states=States(prompts=prompts, responses=responses), depth=decoder.depth)


def _states_below(decoder: Decoder, rows: SharedRows) -> tuple[Tensor, Tensor]:
    """States of prompts and responses where they are now: those known, or the embedded tokens."""
    if rows.states is not None:
        return rows.states.prompts, rows.states.responses
    _require_fits(decoder, rows)
    return decoder.embed(rows.prompt_ids), decoder.embed(rows.response_ids, rows.positions())


def _require_fits(decoder: Decoder, rows: SharedRows) -> None:
    """Raise DataError for a row beyond the model's context, or with a token that the embedding does not have."""
    prompts = rows.prompt_lengths[rows.owner]
    lengths = prompts + rows.response_lengths
    if len(lengths) and int(lengths.max()) > decoder.context:
        row = int(lengths.argmax())
        raise DataError(
            f"row {row} of {len(lengths)} has {int(lengths[row])} tokens, {int(prompts[row])} of them from the "
            f"prompt, but the model reads {decoder.context}: lower max_prompt_tokens or max_response_tokens, or "
            "leave it out"
        )
    for kind, ids in (("prompt", rows.prompt_ids), ("response", rows.response_ids)):
        if ids.numel() and int(ids.max()) >= decoder.vocabulary:
            row = int(ids.amax(-1).argmax())
            raise DataError(
                f"{kind} {row} of {len(ids)} has the token {int(ids.max())}, and the model's embedding has "
                f"{decoder.vocabulary}: tokenizer and model do not match, or the embedding was not resized"
            )


def _run_flat(
    decoder: Decoder, rows: SharedRows, prompts: Tensor, responses: Tensor, stop: int, recompute_in: Recomputation
) -> tuple[Tensor, Tensor]:
    layers = FlatLayers(decoder, rows)
    hidden = layers.flat(prompts, responses)
    rotation = layers.rotation(hidden)

    def layer(index: int, hidden: Tensor) -> Tensor:
        with recompute_in() if recompute_in else nullcontext():
            return layers.layer(index, hidden, rotation)

    for index in range(rows.depth, stop):
        hidden = checkpoint(layer, index, hidden, use_reentrant=False) if recompute_in else layer(index, hidden)
    return layers.padded(hidden)


def _run_padded(
    decoder: Decoder, rows: SharedRows, prompts: Tensor, responses: Tensor, stop: int, recompute_in: Recomputation
) -> tuple[Tensor, Tensor]:
    for_prompts, for_responses = decoder.position_inputs(prompts), decoder.position_inputs(responses, rows.positions())
    places = torch.arange(prompts.shape[1], device=prompts.device)[None]
    of_keys = torch.cat([places.expand(len(rows.owner), -1), rows.positions()], 1)
    prompt_masks = decoder.masks(None, places)
    masks = decoder.masks(rows.attention_mask(), rows.positions(), of_keys)

    def layer(index: int, prompts: Tensor, responses: Tensor) -> tuple[Tensor, Tensor]:
        keys = _PromptKeys(rows.owner)
        with recompute_in() if recompute_in else nullcontext():
            prompts = decoder.layer(index, prompts, for_prompts, masks=prompt_masks, cache=keys)
            if rows.width:
                responses = decoder.layer(index, responses, for_responses, masks=masks, cache=keys)
        return prompts, responses

    for index in range(rows.depth, stop):
        if recompute_in:
            prompts, responses = checkpoint(layer, index, prompts, responses, use_reentrant=False)
        else:
            prompts, responses = layer(index, prompts, responses)
    return prompts, responses


def run_in_parts(decoder: Decoder, rows: SharedRows, *, stop: int, tokens: int) -> SharedRows:
    """`run_shared` without gradient, `tokens` at a time."""
    if stop == rows.depth:
        return rows
    parts = current().pad_to_equal_steps(rows.buckets(tokens), rows.owner.new_zeros(1))
    with torch.no_grad():
        found = [(i, decoder.in_one_pass(partial(run_shared, decoder, rows.select(i), stop=stop))) for i, _ in parts]
    return rows.with_states(found)
