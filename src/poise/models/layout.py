"""Where the tokens of shared rows stand when they are laid end to end, and where in padded rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from poise import kernels
from poise.functional.masked import length_mask
from poise.models.elementwise import missing_rows
from poise.models.shared_rows import SharedRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where tokens stand in padded rows."""

    shape: tuple[int, int]  # rows and columns
    padded: Tensor  # [n] of each token, its place among rows x columns
    flat: Tensor  # [rows x columns] of each place, its token; 0 where there is none

    @classmethod
    def of(cls, inside: Tensor) -> Places:
        """The places where a mask [rows, columns] is true."""
        padded = inside.flatten().nonzero()[:, 0]
        flat = torch.zeros(inside.numel(), dtype=torch.long, device=inside.device)
        flat[padded] = torch.arange(len(padded), device=inside.device)
        return cls(shape=(inside.shape[0], inside.shape[1]), padded=padded, flat=flat)

    def put(self, states: Tensor) -> Tensor:
        """States [rows, columns, H] from those [n, H] of the tokens, 0 elsewhere."""
        zeros = states.new_zeros(len(self.flat), states.shape[-1])
        return zeros.index_copy(0, self.padded, states).view(*self.shape, states.shape[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What all layers need to know of shared rows."""

    prompts: Places
    responses: Places
    owner: Tensor  # [B]
    count: int  # tokens; what follows them up to N belongs to no row
    positions: Tensor  # [N]
    causal: Tensor  # bool [1, 1, P, P], for the prompts
    seen: Tensor  # bool [B, 1, R, P + R], for the responses
    rows: kernels.Rows  # the same, as the kernel of attention takes them

    @classmethod
    def of(cls, rows: SharedRows) -> Layout:
        """The layout of rows."""
        device, length = rows.owner.device, rows.prompt_ids.shape[1]
        columns = torch.arange(length, device=device)
        prompts = Places.of(columns < rows.prompt_lengths[:, None])
        responses = Places.of(length_mask(rows.response_lengths, rows.width))
        places = columns.expand(len(rows.prompt_ids), -1).flatten(), rows.positions().flatten()
        positions = torch.cat([places[0][prompts.padded], places[1][responses.padded]])
        return cls(
            prompts=prompts,
            responses=responses,
            owner=rows.owner,
            count=len(positions),
            positions=F.pad(positions, (0, missing_rows(len(positions), device))),
            causal=(columns <= columns[:, None])[None, None],
            seen=rows.attention_mask(),
            rows=kernels.Rows.of(rows.prompt_lengths, rows.response_lengths, rows.owner),
        )
