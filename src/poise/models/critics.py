"""Critics: value heads on a policy's hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from poise.models.shared_rows import SharedRows


class Critics(nn.Module):
    """One value head per channel on the policy's hidden states: V_t from the prompt and the response before token t.

    The features are the last prompt state and the running mean of the response states, without a gradient into the
    backbone, so training the critics needs no pass through it. Values start at 0.

    channels  names of the value heads
    width     H, the width of the backbone

    >>> critics = Critics(["reward", "cost"], width=4, device=torch.device("cpu"))
    >>> {name: values.shape for name, values in critics(torch.ones(2, 3, 8)).items()}
    {'reward': torch.Size([2, 3]), 'cost': torch.Size([2, 3])}
    """

    def __init__(self, channels: Sequence[str], width: int, device: torch.device):
        super().__init__()
        self.names = tuple(channels)
        self.head = nn.Linear(2 * width, len(self.names)).to(device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Values by channel, each [...], of features [..., 2H]; in the unit of the channel's return."""
        values = self.head(features)
        return {name: values[..., index] for index, name in enumerate(self.names)}

    @staticmethod
    def features(rows: SharedRows) -> Tensor:
        """Features [B, T, 2H] of rows with states; token t has those of the prompt and the tokens before t."""
        prompt = rows.prompt_ends().float()
        width = rows.response_mask.shape[1]
        response = torch.nn.functional.pad(rows.known_states.responses.float(), (0, 0, 0, width - rows.width))
        count = torch.arange(1, width + 1, device=prompt.device)[None, :, None]
        running = response.cumsum(1) / count
        before = torch.cat([prompt[:, None], running[:, :-1]], 1)  # what is known before token t
        features = torch.cat([prompt[:, None].expand_as(before), before], -1)
        return features / features.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
