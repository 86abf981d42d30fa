"""Several score models on one frozen backbone as one scorer: the layers that they share run once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poise.data.chat import Encoded
from poise.errors import ConfigError
from poise.models.completion_rows import masks_of
from poise.models.heads import TOKENS_PER_PASS, ScoreModel
from poise.models.shared_pass import run_shared
from poise.models.shared_rows import OwnRows, SharedRows
from poise.ranks import current
from poise.types import Completion, Prompt, Scorer, Scores


class OnePass:
    """Score models of one backbone, without adapters of their own, that read the same of each answer.

    The deepest decides what a pass takes; another head beside it costs next to nothing.

    Raises ConfigError for models that cannot share a pass, or two that fill one channel.
    """

    def __init__(self, models: Sequence[ScoreModel]):
        self.models = tuple(sorted(models, key=lambda model: model.depth))
        self.names = tuple(name for model in self.models for name in model.names)
        first = self.models[0]
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"two score models fill one channel: {', '.join(self.names)}")
        for model in self.models:
            if model.lora is not None or model.backbone[0].decoder is not first.backbone[0].decoder:
                raise ConfigError(f"{_said(model)} has an adapter or another backbone: it cannot share a pass")
            if _window(model) != _window(first):
                raise ConfigError(
                    f"{_said(model)} reads a window of {_window(model)} (prompt, response, cut or not), {_said(first)} "
                    f"one of {_window(first)}: give both the same windows to share a pass"
                )

    @property
    def max_response_tokens(self) -> int:
        """How much of a response it reads; a longer one has no score."""
        return self.models[0].max_response_tokens

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Between what the values of each channel with a bound lie."""
        return {name: ends for model in self.models for name, ends in model.bounds.items()}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """Scores of completions on the channels of all models: the Scorer protocol."""
        first, source = self.models[0], " + ".join(model.adapter for model in self.models)
        rows = [first.reader.read(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        read = [row for row in rows if isinstance(row, Encoded)]
        values = iter(self._values(read).tolist())
        return [
            Scores(values={}, source=source, unscorable=row)
            if isinstance(row, str)
            else Scores(values=dict(zip(self.names, next(values), strict=True)), source=source)
            for row in rows
        ]

    @torch.no_grad()
    def _values(self, rows: Sequence[Encoded]) -> Tensor:
        """Scores [B, C] of all models, in each channel's units; each process runs its part of the rows."""
        device = self.models[0].backbone[0].device
        pooled = [torch.zeros(len(rows), len(model.feature_mean), device=device) for model in self.models]
        if rows:
            starts = [row.prompt_length for row in rows]
            shared = SharedRows.of_lists([row.ids for row in rows], starts, masks=masks_of(rows), device=device)
            own = OwnRows.of(shared)
            for chosen, weight in own.passes(TOKENS_PER_PASS):
                for result, part in zip(pooled, self._pooled(own.rows.select(chosen)), strict=True):
                    result[own.places[chosen]] = weight * part
        summed = [current().sum(result) for result in pooled]
        return torch.cat([m.in_units(m(part)) for m, part in zip(self.models, summed, strict=True)], -1)

    def _pooled(self, rows: SharedRows) -> list[Tensor]:
        """Each model's features, from the states where it reads them."""
        decoder = self.models[0].backbone[0].decoder

        def through() -> list[Tensor]:
            found, states = [], rows
            for model in self.models:
                states = run_shared(decoder, states, stop=model.depth)
                found.append(model.pool(states))
            return found

        return decoder.in_one_pass(through)


def one_pass(scorers: Sequence[Scorer]) -> list[Scorer]:
    """The scorers, of which those that are score models share a pass where they can."""
    models = [each for each in scorers if isinstance(each, ScoreModel)]
    if len(models) < 2:
        return list(scorers)
    try:
        shared = OnePass(models)
    except ConfigError:
        return list(scorers)
    return [shared, *(each for each in scorers if not isinstance(each, ScoreModel))]


def _window(model: ScoreModel) -> tuple[int, int, bool]:
    return model.renderer.max_prompt_tokens, model.renderer.max_response_tokens, model.reader.cuts_prompts


def _said(model: ScoreModel) -> str:
    return f"the score model of {', '.join(model.names)}"
