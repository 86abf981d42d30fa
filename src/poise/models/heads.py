"""Score models: heads on a shared backbone.

A `ScoreModel` has named channels ("reward", "cost", ...) over one pass through the first `depth` layers. Each
channel knows which way is worse and, once fitted, how its value maps to a probability.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from poise.checksums import require_whole
from poise.data.chat import Encoded
from poise.errors import ConfigError, ModelError
from poise.functional.masked import last_index
from poise.functional.statistics import PlattScale
from poise.models.adapters import Lora, adapter_parameters, add_adapter, load_adapter, save_adapter, use_adapter
from poise.models.channels import COST, REWARD, Channel
from poise.models.completion_rows import CompletionReader, masks_of
from poise.models.decoder import Decoder
from poise.models.features import FeatureCache, row_key
from poise.models.load import Backbone, load_backbone
from poise.models.runs import SCORE_MODEL_CARD
from poise.models.score_heads import CLASSIFIER, make_head, make_own_heads
from poise.models.shared_pass import run_in_parts, run_shared
from poise.models.shared_rows import OwnRows, SharedRows
from poise.ranks import by_main, current
from poise.types import Completion, Prompt, Scores

__all__ = ["COST", "REWARD", "Channel", "Pooling", "ScoreModel", "length_buckets", "load_score_model"]

Pooling = Literal["mean", "last", "mean+prompt", "mean+last+prompt", "classifier"]
TOKENS_PER_PASS = 4096


class ScoreModel(nn.Module):
    """Heads on pooled hidden states of the first `depth` layers, with or without a LoRA adapter of its own.

    pooling "mean"         mean over the response tokens (robust to where a response is cut)
    pooling "last"         the last response token
    pooling "mean+prompt"  the mean, and the state of the last prompt token
    pooling "mean+last+prompt"  the mean, the last response token and the last prompt token
    pooling "classifier"   the last token after the last norm, and a head without a bias: what a sequence classifier of
                           transformers reads, so that one can be written (`models/classifier.py`)
    depth                  number of layers read, from 1 to all; by default 60 % of them
    opening                an attribute: the number of response tokens that are pooled, from the first; None pools all
    hidden                 width of a hidden layer in the head; 0 is a linear head
    cuts_prompts           whether a prompt longer than the window is cut to its last turns, or makes its answer
                           unscorable
    cache                  stores the features of rows that are read again; used if the backbone is frozen

    Raises ConfigError for a depth that the backbone does not have.

    >>> model = ScoreModel(load_backbone("random:llama"), depth=1)
    >>> model.names, model.values([Prompt.of("Tea?"), Prompt.of("Tea?")], ["Yes.", "No."]).shape
    (('reward', 'cost'), torch.Size([2, 2]))
    """

    feature_mean: Tensor
    feature_std: Tensor
    opening: int | None = None

    def __init__(
        self,
        backbone: Backbone,
        channels: Sequence[Channel] = (REWARD, COST),
        *,
        depth: int | None = None,
        pooling: Pooling = "mean+prompt",
        hidden: int = 64,
        lora: Lora | None = None,
        adapter: str = "score",
        seed: int = 0,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        cuts_prompts: bool = False,
        cache: FeatureCache | None = None,
    ):
        super().__init__()
        layers = backbone.decoder.depth
        self.depth = max(1, round(layers * 0.6)) if depth is None else depth
        if not 1 <= self.depth <= layers:
            raise ConfigError(f"depth {self.depth} of a backbone with {layers} layers: choose 1 to {layers}")
        self.is_classifier = pooling == CLASSIFIER
        if self.is_classifier and (self.depth < layers or hidden or any(each.hidden for each in channels)):
            raise ConfigError(
                f"a sequence classifier is a linear head on all {layers} layers; depth {self.depth} or hidden {hidden} "
                "need another pooling, such as last or mean+prompt"
            )
        self.backbone = [backbone]  # in a list: the backbone's weights are shared, not this module's
        self.channels, self.pooling, self.hidden = tuple(channels), pooling, hidden
        self.lora, self.adapter = lora, adapter
        windows = {"max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens}
        self.reader = CompletionReader(backbone, **windows, cuts_prompts=cuts_prompts)
        self.renderer, self.cache = self.reader.renderer, cache
        self.split = self.depth  # layers below are frozen, so their states can be computed once per row
        if lora is not None:
            self.split = add_adapter(backbone.model, backbone.decoder.layers, adapter, lora, stop=self.depth, seed=seed)
        width = backbone.decoder.width * len(pooling.split("+"))
        sizes = [hidden if channel.hidden is None else channel.hidden for channel in self.channels]
        is_shared = all(channel.hidden is None for channel in self.channels)
        self.head = (
            make_head(width, hidden, len(sizes), seed, bias=not self.is_classifier)
            if is_shared or self.is_classifier
            else make_own_heads(width, sizes, seed)
        ).to(backbone.device)
        self.register_buffer("feature_mean", torch.zeros(width, device=backbone.device))
        self.register_buffer("feature_std", torch.ones(width, device=backbone.device))
        self.eval()

    @property
    def max_response_tokens(self) -> int:
        """The longest response that it scores, in tokens; a longer one is unscorable."""
        return self.renderer.max_response_tokens

    @property
    def names(self) -> tuple[str, ...]:
        """Channel names in the order of the outputs."""
        return tuple(channel.name for channel in self.channels)

    def channel(self, name: str) -> Channel:
        """The channel with this name. Raises ConfigError if there is none."""
        for channel in self.channels:
            if channel.name == name:
                return channel
        raise ConfigError(f"this score model has channels {', '.join(self.names)}, not {name!r}")

    def with_channel(self, channel: Channel) -> None:
        """Replace the record of a channel (its scale or calibration)."""
        self.channels = tuple(channel if old.name == channel.name else old for old in self.channels)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The head, and the adapter where there is one."""
        found = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        if self.lora is not None:
            found |= adapter_parameters(self.backbone[0].model, self.adapter)
        return found

    @contextmanager
    def _decoder(self) -> Iterator[Decoder]:
        with use_adapter(self.backbone[0].model, self.adapter if self.lora else None):
            yield self.backbone[0].decoder

    def pooled(self, rows: SharedRows) -> Tensor:
        """Pooled hidden states [B, P] in fp32 of B rows; P is the width of the backbone times the parts of the pooling.

        Rows that `frozen_states` returned continue from there. An empty response is pooled at its last prompt token.
        """
        with self._decoder() as decoder:
            return decoder.in_one_pass(lambda: self.pool(run_shared(decoder, rows, stop=self.depth)))

    def pool(self, rows: SharedRows) -> Tensor:
        """Pooled states [B, H] in fp32 of rows whose states are those after `depth` layers."""
        prompt = rows.prompt_ends().float()
        places = torch.arange(rows.width, device=rows.response_mask.device)
        inside = rows.response_mask[:, : rows.width] & (places < (rows.width if self.opening is None else self.opening))
        sizes = inside.sum(-1, keepdim=True)
        last = places == last_index(inside)[:, None]
        states = rows.known_states.responses.float()

        def average(tokens: Tensor) -> Tensor:
            weights = tokens / tokens.sum(-1, keepdim=True).clamp(min=1)
            return torch.where(sizes > 0, torch.einsum("br,brh->bh", weights, states), prompt)

        def normed() -> Tensor:
            normed: Tensor = self.backbone[0].decoder.final_norm(average(last).to(rows.known_states.responses.dtype))
            return normed.float()

        parts = {
            "mean": lambda: average(inside),
            "last": lambda: average(last),
            "prompt": lambda: prompt,
            CLASSIFIER: normed,
        }
        return torch.cat([parts[name]() for name in self.pooling.split("+")], -1)

    def frozen_states(self, rows: SharedRows) -> SharedRows:
        """The rows with their states below the first trained layer: constant while the adapter is trained."""
        with self._decoder() as decoder:
            return run_in_parts(decoder, rows, stop=self.split, tokens=TOKENS_PER_PASS)

    def forward(self, pooled: Tensor) -> Tensor:
        """Raw scores [B, C] of pooled hidden states [B, P], before the scale and shift of the channels."""
        scores: Tensor = self.head((pooled - self.feature_mean) / self.feature_std)
        return scores

    @torch.no_grad()
    def pooled_all(
        self,
        rows: Sequence[Sequence[int]],
        prompt_lengths: Sequence[int],
        masks: Sequence[Sequence[bool]] | None = None,
    ) -> Tensor:
        """Features [N, P] of N token rows, in their order; row i has a prompt of `prompt_lengths[i]` tokens.

        `masks` has one flag per token of each response: whether the assistant said it.

        Each process runs its part of the rows and has the features of all of them.
        """
        result = torch.zeros(len(rows), len(self.feature_mean), device=self.backbone[0].device)
        if len(rows) == 0:
            return result
        own = OwnRows.of(SharedRows.of_lists(rows, prompt_lengths, masks=masks, device=result.device))
        for chosen, weight in own.passes(TOKENS_PER_PASS):
            result[own.places[chosen]] = weight * self.pooled(own.rows.select(chosen))
        return current().sum(result)

    def features(self, rows: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> Tensor:
        """`pooled_all` [N, P] with the cache, if there is one and the backbone is frozen: each row is computed once."""
        if self.cache is None or self.lora is not None:
            return self.pooled_all(rows, prompt_lengths)
        backbone = self.backbone[0]
        keys = [
            row_key(backbone.checksum, backbone.dtype, self.depth, self.pooling, start, self._seen(row, start))
            for row, start in zip(rows, prompt_lengths, strict=True)
        ]

        def compute(numbers: Sequence[int]) -> Tensor:
            return self.pooled_all([rows[n] for n in numbers], [prompt_lengths[n] for n in numbers])

        return self.cache.get(keys, compute).to(backbone.device)

    def _seen(self, row: Sequence[int], start: int) -> tuple[int, ...]:
        """The tokens that features follow from: no later one reaches the opening."""
        return tuple(row if self.opening is None else row[: start + self.opening])

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The smallest and largest value of each bounded channel, in its unit."""
        return {each.name: each.range for each in self.channels if each.range is not None}

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[list[Any], list[int]]:
        """Token rows and prompt lengths (in tokens) of N prompts and their responses."""
        encoded = [self.renderer.encode(p, r, finished=False) for p, r in zip(prompts, responses, strict=True)]
        return [e.ids for e in encoded], [e.prompt_length for e in encoded]

    @torch.no_grad()
    def values(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Tensor:
        """Scores [N, C] of responses to prompts, in the unit of each channel; a cut response is scored on what fits."""
        rows, starts = self.encode(prompts, responses)
        return self.in_units(self(self.pooled_all(rows, starts)))

    def sees_all(self, prompt: Prompt, response: str) -> bool:
        """Whether prompt and response fit into the window, so that the score covers all of them."""
        completion = Completion(prompt_id=prompt.id, text=response)
        return isinstance(self.reader.read(prompt, completion), Encoded) or bool(completion.unfit)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Scores]:
        """Score completions: the Scorer protocol.

        A completion that is empty, failed, or is longer than the window (or whose prompt is) is unscorable: unread text
        is never judged. A completion of several turns is read as the template renders the conversation, and only the
        answers of the assistant are judged.
        """
        rows = [self.reader.read(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        read = [row for row in rows if isinstance(row, Encoded)]
        with torch.no_grad():
            raw = self(self._pooled_encoded(read))
        values = iter(self.in_units(raw).tolist())
        return [
            Scores(values={}, source=self.adapter, unscorable=row)
            if isinstance(row, str)
            else Scores(values=dict(zip(self.names, next(values), strict=True)), source=self.adapter)
            for row in rows
        ]

    def _pooled_encoded(self, rows: Sequence[Encoded]) -> Tensor:
        return self.pooled_all([row.ids for row in rows], [row.prompt_length for row in rows], masks_of(rows))

    def in_units(self, raw: Tensor) -> Tensor:
        """Scores [B, C] in each channel's units, of raw ones."""
        return torch.stack([channel.value(raw[:, i]) for i, channel in enumerate(self.channels)], -1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder: peft adapter (if any), head as safetensors, and a card with names, signs and calibration."""
        folder, backbone = Path(folder), self.backbone[0]
        if self.lora is not None:
            save_adapter(backbone.model, self.adapter, self.lora, folder, base=backbone.name, task=None)
        self._save_head(folder)

    @by_main
    def _save_head(self, folder: Path) -> None:
        from safetensors.torch import save_file

        backbone = self.backbone[0]
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, folder / "score_head.safetensors"
        )
        card = {
            "base_model": backbone.name,
            "chat_template": backbone.tokenizer.chat_template,
            "depth": self.depth,
            "pooling": self.pooling,
            "hidden": self.hidden,
            "opening": self.opening,
            "max_prompt_tokens": self.renderer.max_prompt_tokens,
            "max_response_tokens": self.renderer.max_response_tokens,
            "cuts_prompts": self.reader.cuts_prompts,
            "lora": asdict(self.lora) if self.lora else None,
            "channels": [asdict(channel) for channel in self.channels],
        }
        (folder / SCORE_MODEL_CARD).write_text(json.dumps(card, indent=2) + "\n")


def load_score_model(
    folder: str | Path,
    *,
    backbone: Backbone | None = None,
    adapter: str = "score",
    expect: Mapping[str, bool] | None = None,
    cache: FeatureCache | None = None,
) -> ScoreModel:
    """Load a saved score model onto a backbone (the one it names by default).

    `expect` maps channel names to whether higher is worse; ModelError if the folder says otherwise, so that a cost
    is never used upside down.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    require_whole(folder)
    if not (folder / SCORE_MODEL_CARD).exists():
        raise ModelError(f"{folder} is not a score model: it has no {SCORE_MODEL_CARD}")
    card = json.loads((folder / SCORE_MODEL_CARD).read_text())
    channels = [
        replace(
            Channel(**{key: value for key, value in stored.items() if key != "calibration"}),
            calibration=PlattScale(**stored["calibration"]) if stored["calibration"] else None,
        )
        for stored in card["channels"]
    ]
    directions = {channel.name: channel.higher_is_worse for channel in channels}
    for name, worse in (expect or {}).items():
        if directions.get(name) != worse:
            raise ModelError(
                f"{folder}: channel {name!r} should have higher_is_worse={worse}, the folder has "
                f"{directions.get(name, 'there is no such channel')}"
            )
    model = ScoreModel(
        backbone or load_backbone(card["base_model"], chat_template=card.get("chat_template")),
        channels,
        depth=card["depth"],
        pooling=card["pooling"],
        hidden=card["hidden"],
        lora=Lora(**card["lora"]) if card["lora"] else None,
        adapter=adapter,
        max_prompt_tokens=card.get("max_prompt_tokens", 512),
        max_response_tokens=card.get("max_response_tokens", 256),
        cuts_prompts=card.get("cuts_prompts", False),
        cache=cache,
    )
    model.opening = card.get("opening")
    model.load_state_dict(load_file(folder / "score_head.safetensors"))
    if model.lora is not None:
        load_adapter(model.backbone[0].model, adapter, folder)
    return model


def length_buckets(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Row indices in groups of similar length whose padded size stays within `tokens` (at least one row each)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[index] <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
