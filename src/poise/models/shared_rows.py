"""Token rows that share prompts: every distinct prompt is stored, and computed, once.

Several responses to one prompt are the rule in reinforcement learning and in feedback. Hidden states come as a pair,
those of the prompts and those of the responses; a response attends to its prompt's keys and to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poise.errors import ConfigError
from poise.functional.masked import last_index, length_mask
from poise.models.decoder import pad_rows
from poise.ranks import current


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Hidden states of shared rows above some layer."""

    prompts: Tensor  # [G, P, H]
    responses: Tensor  # [B, R, H]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRows:
    """B responses on G distinct prompts, right-padded; R is the longest response, T >= R the width of the mask.

    The mask says which tokens of a response are asked for: a response of several turns has holes, where a tool or
    another speaker has its say, which later tokens read all the same. `states` are those below layer `depth`, where
    they are known already.

    >>> rows = SharedRows.of(torch.tensor([[5, 6, 7], [5, 6, 8]]), torch.tensor([2, 2]), torch.ones(2, 1).bool())
    >>> rows.prompt_ids, rows.owner
    (tensor([[5, 6]]), tensor([0, 0]))
    """

    prompt_ids: Tensor  # [G, P]
    prompt_lengths: Tensor  # [G], at least 1 each
    response_ids: Tensor  # [B, R]
    response_lengths: Tensor  # [B] tokens of each response, those in holes of the mask included
    response_mask: Tensor  # [B, T] bool, true on no more than the first response_lengths positions
    owner: Tensor  # [B] index of the response's prompt
    states: States | None = None
    depth: int = 0

    @classmethod
    def of(cls, token_ids: Tensor, prompt_lengths: Tensor, response_mask: Tensor) -> SharedRows:
        """Split right-padded rows [B, L], whose responses start at prompt_lengths [B], with mask [B, T].

        A response ends with the last token in the mask: nothing that is asked for depends on what follows.
        """
        lengths, sizes = prompt_lengths.tolist(), (last_index(response_mask) + 1).tolist()
        rows = [ids[: start + size] for ids, start, size in zip(token_ids.tolist(), lengths, sizes, strict=True)]
        is_whole = sizes == response_mask.sum(-1).tolist()
        masks = None if is_whole else [flags[:size] for flags, size in zip(response_mask.tolist(), sizes, strict=True)]
        return cls.of_lists(rows, lengths, masks=masks, width=response_mask.shape[1], device=token_ids.device)

    @classmethod
    def of_lists(
        cls,
        rows: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int],
        *,
        masks: Sequence[Sequence[bool]] | None = None,
        width: int | None = None,
        device: torch.device | str = "cpu",
    ) -> SharedRows:
        """Split rows of token ids whose responses start at prompt_lengths; `width` T defaults to the longest one.

        `masks` has one flag per token of each response; without, all of them are asked for.

        Raises ConfigError for an empty prompt.
        """
        if any(start < 1 for start in prompt_lengths):
            raise ConfigError("a row has an empty prompt: there is nothing to predict its first response token from")
        numbers: dict[tuple[int, ...], int] = {}
        owner = [
            numbers.setdefault(tuple(row[:start]), len(numbers))
            for row, start in zip(rows, prompt_lengths, strict=True)
        ]
        prompt_ids, lengths = pad_rows(list(numbers), 0, device)
        response_ids, sizes = pad_rows(
            [row[start:] for row, start in zip(rows, prompt_lengths, strict=True)], 0, device
        )
        mask = length_mask(sizes, response_ids.shape[1] if width is None else width)
        if masks is not None:
            mask = mask.masked_scatter(mask, torch.tensor([flag for row in masks for flag in row], device=sizes.device))
        return cls(
            prompt_ids=prompt_ids,
            prompt_lengths=lengths,
            response_ids=response_ids,
            response_lengths=sizes,
            response_mask=mask,
            owner=torch.tensor(owner, device=sizes.device),
        )

    def select(self, rows: Tensor) -> SharedRows:
        """The rows named by index [b], with their prompts and states, padded no further than they need."""
        kept, owner = self.owner[rows].unique(return_inverse=True)
        lengths, sizes = self.prompt_lengths[kept], self.response_lengths[rows]
        longest, widest = int(lengths.max()), int(sizes.max())
        states = self.states and States(
            prompts=self.states.prompts[kept, :longest], responses=self.states.responses[rows, :widest]
        )
        return replace(
            self,
            prompt_ids=self.prompt_ids[kept, :longest],
            prompt_lengths=lengths,
            response_ids=self.response_ids[rows, :widest],
            response_lengths=sizes,
            response_mask=self.response_mask[rows],
            owner=owner,
            states=states,
        )

    def with_states(self, parts: Sequence[tuple[Tensor, SharedRows]]) -> SharedRows:
        """These rows with the states of their parts (row index [b], selected rows after `run_shared`) put together."""
        sample = parts[0][1].known_states.responses
        responses = sample.new_zeros(*self.response_ids.shape, sample.shape[-1])
        prompts = sample.new_zeros(*self.prompt_ids.shape, sample.shape[-1])
        for index, part in parts:
            responses[index, : part.width] = part.known_states.responses
            prompts[self.owner[index].unique(), : part.prompt_ids.shape[1]] = part.known_states.prompts
        return replace(self, states=States(prompts=prompts, responses=responses), depth=parts[0][1].depth)

    def buckets(self, tokens: int) -> list[Tensor]:
        """Row indices in parts of similar length; prompts stay whole while their padded part is within `tokens`.

        Rows that are all within it are one part, as they stand.
        """
        if len(self.owner) and self.prompt_ids.numel() + self.response_ids.numel() <= tokens:
            return [torch.arange(len(self.owner), device=self.owner.device)]
        sizes = self.response_lengths.tolist()
        groups: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.owner.tolist()):
            groups.setdefault(prompt, []).append(row)
        lengths, device = self.prompt_lengths.tolist(), self.owner.device
        parts: list[_Part] = []
        for prompt in sorted(groups, key=lambda g: (lengths[g], max(sizes[row] for row in groups[g]))):
            for row in groups[prompt]:
                if not parts or not parts[-1].admits(prompt, lengths[prompt], sizes[row], tokens):
                    parts.append(_Part())
                parts[-1].add(row, prompt, lengths[prompt], sizes[row])
        return [torch.tensor(part.rows, device=device) for part in parts]

    @property
    def known_states(self) -> States:
        """The states; it is our own mistake to ask before `run_shared`."""
        assert self.states is not None
        return self.states

    @property
    def width(self) -> int:
        """R, the length of the longest response."""
        return self.response_ids.shape[1]

    def prompt_ends(self) -> Tensor:
        """States [B, H] of the last prompt token of each row."""
        hidden = self.known_states.prompts
        ends = hidden[torch.arange(len(hidden), device=hidden.device), self.prompt_lengths - 1]
        return ends[self.owner]

    def predicting(self) -> Tensor:
        """States [B, R, H] that predict each response token: the last prompt token's, then the response's own."""
        states = self.known_states
        return torch.cat([self.prompt_ends()[:, None], states.responses], 1)[:, : self.width]

    def positions(self) -> Tensor:
        """Positions [B, R] of the response tokens in their rows."""
        return self.prompt_lengths[self.owner][:, None] + torch.arange(self.width, device=self.owner.device)

    def attention_mask(self) -> Tensor:
        """What each response token attends to, bool [B, 1, R, P + R]: its prompt, and itself and what is before it."""
        device = self.owner.device
        prompt = torch.arange(self.prompt_ids.shape[1], device=device) < self.prompt_lengths[self.owner][:, None]
        own = torch.ones(self.width, self.width, dtype=torch.bool, device=device).tril()
        shape = (len(self.owner), self.width, -1)
        return torch.cat([prompt[:, None].expand(shape), own[None].expand(shape)], -1)[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRows:
    """The rows of a batch that this process computes; in one process, all of them.

    Whole prompts go to one process, dealt so that tokens are about equal.
    """

    rows: SharedRows
    places: Tensor  # [b] where they stand among all rows
    num_rows: int  # B, of all rows
    weight: float = 1.0  # 0 where there are too few rows and another process has these

    @classmethod
    def of(cls, rows: SharedRows) -> OwnRows:
        """This process's part of rows that all processes know."""
        ranks = current()
        if ranks.size == 1:
            return cls.of_main(rows)
        prompts: dict[int, list[int]] = {}
        for row, prompt in enumerate(rows.owner.tolist()):
            prompts.setdefault(prompt, []).append(row)
        groups = list(prompts.values()) if len(prompts) >= ranks.size else [[row] for row in range(len(rows.owner))]
        sizes, lengths = rows.response_lengths.tolist(), rows.prompt_lengths[rows.owner].tolist()
        costs = [lengths[group[0]] + sum(sizes[row] for row in group) for group in groups]
        own, weight = ranks.partition(groups, costs)
        places = torch.tensor(sorted(row for group in own for row in group), device=rows.owner.device)
        return cls(rows=rows.select(places), places=places, num_rows=len(rows.owner), weight=weight)

    @classmethod
    def of_main(cls, rows: SharedRows) -> OwnRows:
        """All rows, for work that is too small to be parted: they count in the main process alone."""
        places = torch.arange(len(rows.owner), device=rows.owner.device)
        return cls(rows=rows, places=places, num_rows=len(places), weight=float(current().is_main))

    def passes(self, tokens: int, *, keep: Tensor | None = None) -> list[tuple[Tensor, float]]:
        """Indices into these rows in parts of at most `tokens`, each with its weight, equally many in each process.

        `keep` [B] says which rows of the whole batch are wanted; a part that is only there for the others' sake has
        weight 0.
        """
        parts = self.rows.buckets(tokens)
        if keep is not None:
            mine = keep[self.places]
            parts = [part for every in parts if len(part := every[mine[every]])]
        return current().pad_to_equal_steps(parts, self.places.new_zeros(1), self.weight)

    def joined(self, values: Tensor) -> Tensor:
        """The values [B, ...] of all rows from those [b, ...] of these, with the gradient of these."""
        if current().size == 1:
            return values
        empty = values.new_zeros(self.num_rows, *values.shape[1:])
        return current().all_reduce(empty.index_put((self.places,), self.weight * values))


class _Part:
    """A part under construction: its rows, its prompts and the longest of either."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.prompts: set[int] = set()
        self.longest = self.widest = 0

    def admits(self, prompt: int, length: int, size: int, tokens: int) -> bool:
        prompts = len(self.prompts | {prompt}) * max(self.longest, length)
        return prompts + (len(self.rows) + 1) * max(self.widest, size) <= tokens

    def add(self, row: int, prompt: int, length: int, size: int) -> None:
        self.rows.append(row)
        self.prompts.add(prompt)
        self.longest, self.widest = max(self.longest, length), max(self.widest, size)
