"""The policy: a backbone with a trained adapter, or fully fine-tuned weights, and its own reference.

With LoRA the reference is the same backbone with the adapter off, and the layers below the first adapted one are
computed once for both.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.checksums import require_whole
from poise.data.chat import ChatRenderer
from poise.errors import ModelError
from poise.functional.logprobs import chunked_token_logprobs
from poise.models.adapters import (
    ADAPTER_CARD,
    Lora,
    adapter_parameters,
    add_adapter,
    load_adapter,
    lora_modules,
    save_adapter,
    strip_adapters,
    use_adapter,
)
from poise.models.decoder import Decoder
from poise.models.elementwise import missing_rows
from poise.models.load import Backbone, load_backbone, read_template
from poise.models.runs import model_of
from poise.models.shared_pass import run_in_parts, run_shared
from poise.models.shared_rows import SharedRows
from poise.ranks import current

_RECOMPUTE = "POISE_RECOMPUTE"
_CHUNK = 1536  # response positions whose logits are held at once


class Policy:
    """A language model that is trained, with its reference.

    `adapter` is the name of its LoRA adapter on the shared backbone. With `lora=None` all weights of a copy are
    trained, and the backbone itself is the reference. These weights have the dtype `weights`: fp32 computes in the
    backbone's dtype by autocast; bf16 needs half of the memory but loses updates below 1/256 of a weight. With
    `recompute` (the default if POISE_RECOMPUTE is 1) the backward pass recomputes each layer instead of storing its
    activations: less memory, more time.

    >>> policy = Policy(load_backbone("random:llama"))
    >>> rows = SharedRows.of_lists([[5, 6, 7, 8], [5, 9]], [2, 1])
    >>> logprobs, entropies = policy.logprobs(rows)  # two responses: 7 8, and 9
    >>> logprobs.shape, bool((logprobs[0] < 0).all()), logprobs[1, 1].item()
    (torch.Size([2, 2]), True, 0.0)
    """

    def __init__(
        self,
        backbone: Backbone,
        lora: Lora | None = Lora(),
        *,
        adapter: str = "policy",
        seed: int = 0,
        weights: torch.dtype = torch.float32,
    ):
        self.backbone, self.lora, self.adapter = backbone, lora, adapter
        self.version = 0
        self.recompute = os.environ.get(_RECOMPUTE, "0") == "1"
        if lora is None:
            self.model = _trainable_copy(backbone, weights)
            self.decoder, self.split = Decoder(self.model), 0
        else:
            self.model, self.decoder = backbone.model, backbone.decoder
            self.split = add_adapter(self.model, self.decoder.layers, adapter, lora, seed=seed)

    @property
    def tokenizer(self) -> Any:
        """The backbone's tokenizer."""
        return self.backbone.tokenizer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.device

    @property
    def width(self) -> int:
        """H, the width of a hidden state."""
        return self.decoder.width

    @property
    def context(self) -> int | None:
        """Tokens of the longest row that it reads; None without a bound."""
        return self.backbone.context

    def renderer(self, *, max_prompt_tokens: int | None = None, max_response_tokens: int | None = None) -> ChatRenderer:
        """How it reads conversations: the backbone's renderer."""
        return self.backbone.renderer(max_prompt_tokens=max_prompt_tokens, max_response_tokens=max_response_tokens)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained weights by name."""
        if self.lora is None:
            return dict(self.model.named_parameters())
        return adapter_parameters(self.model, self.adapter)

    @contextmanager
    def policy_mode(self) -> Iterator[Decoder]:
        """Compute as the policy: the backbone with its adapter on."""
        cast = torch.autocast(self.backbone.device.type, torch.bfloat16) if self._mixed else nullcontext()
        with cast, use_adapter(self.model, self.adapter if self.lora else None):
            yield self.decoder

    @contextmanager
    def reference(self) -> Iterator[Decoder]:
        """Compute as the reference: the backbone with every adapter off."""
        with use_adapter(self.backbone.model, None):
            yield self.backbone.decoder

    @property
    def _mixed(self) -> bool:
        kept = next(iter(self.model.parameters())).dtype
        return self.lora is None and kept == torch.float32 and self.backbone.dtype == torch.bfloat16

    def frozen_states(self, rows: SharedRows, *, tokens: int = 4096) -> SharedRows:
        """The rows with their states below the first trained layer, equal for policy and reference."""
        with self.reference() as decoder:
            return run_in_parts(decoder, rows, stop=self.split, tokens=tokens)

    def critic_states(self, rows: SharedRows, *, tokens: int = 4096) -> SharedRows:
        """The rows with the states that the critics read: frozen, or from the middle of a fully trained model."""
        if self.split > 0:
            return rows
        with self.policy_mode() as decoder:
            return run_in_parts(decoder, rows, stop=max(1, round(decoder.depth * 0.6)), tokens=tokens)

    def logprobs(self, rows: SharedRows, *, reference: bool = False, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the response tokens, each [B, T] in nats; 0 where the mask is false.

        Rows that `frozen_states` returned continue from there. `reference` computes them under the reference.
        """

        def compute() -> tuple[Tensor, Tensor]:
            above = run_shared(decoder, rows, recompute_in=computing if self.recompute else None)
            inside = above.response_mask[:, : above.width]
            states, ids = above.predicting()[inside], above.response_ids[inside]
            spare = missing_rows(len(ids), ids.device)
            states, ids = decoder.final_norm(F.pad(states, (0, 0, 0, spare))), F.pad(ids, (0, spare))
            weight, rule = decoder.head.weight.to(states.dtype), decoder.logit_rule
            cooled = temperature / rule.scale  # scaled logits are logits at another temperature
            return chunked_token_logprobs(
                states, weight, ids, chunk=_CHUNK, bias=decoder.head.bias, temperature=cooled, cap=rule.cap
            )

        computing = self.reference if reference else self.policy_mode
        with computing() as decoder:
            values, entropy = decoder.in_one_pass(compute)
        empty = torch.zeros(rows.response_mask.shape, dtype=values.dtype, device=values.device)
        return empty.masked_scatter(rows.response_mask, values), empty.masked_scatter(rows.response_mask, entropy)

    def save_pretrained(self, folder: str | Path, *, merge: bool = False) -> None:
        """Write a folder that transformers (full or merged weights) or peft (adapter) can load."""
        folder = Path(folder)
        if current().is_main:
            self.tokenizer.save_pretrained(folder)
        if self.lora is not None and not merge:
            save_adapter(self.model, self.adapter, self.lora, folder, base=self._base_folder())
            return
        state = merged_state(self.model, self.adapter, self.backbone.dtype)
        if current().is_main:
            self.model.save_pretrained(folder, state_dict=state)
        current().wait()

    def copy_from(self, folder: str | Path) -> None:
        """Load the trained weights from a folder that `save_pretrained` wrote for the same kind of policy.

        Raises ModelError if the folder has no weights, or weights that do not fit.
        """
        folder = Path(folder)
        if self.lora is not None:
            load_adapter(self.model, self.adapter, folder)
            return
        stored = load_backbone(str(folder), dtype=torch.float32, device=str(self.backbone.device)).model
        _copy_weights(stored, self.model)

    def merge(self) -> None:
        """Add the adapter to the backbone's weights permanently, and start a new adapter.

        The policy becomes the reference, for every role on this backbone. Raises ModelError if there is no adapter.
        """
        if self.lora is None:
            raise ModelError(
                "a fully fine-tuned policy has no adapter to merge; save it and load it as the new backbone"
            )
        digest = hashlib.sha256(self.decoder.merged.encode())
        with torch.no_grad():
            for _, module in lora_modules(self.model):
                if self.adapter in module.scale:
                    weight, added = module.base.weight, module.product(self.adapter)
                    digest.update(added.cpu().numpy().tobytes())
                    product = current().like(weight, added)
                    weight.copy_((weight.float() + product).to(weight.dtype))
                    module.lora_b[self.adapter].zero_()
        self.decoder.merged = f"+{digest.hexdigest()}"

    def _base_folder(self) -> str:
        """What the adapter names as its base: a folder by its whole path, so that it is found from anywhere."""
        path = str(self.backbone.model.config.name_or_path) or self.backbone.name
        return str(Path(path).resolve()) if Path(path).is_dir() else path


def load_policy(
    name: str,
    *,
    lora: Lora | None = None,
    device: str | None = None,
    seed: int = 0,
    chat_template: str | None = None,
) -> Policy:
    """Load a policy for use or further training: any model name, or a folder with a saved adapter.

    For a folder with a plain adapter on all projections, the base model it names is loaded, `lora` is read from it, and
    so is the chat template that it was trained with, where `chat_template` gives no other. Any other adapter that peft
    wrote is merged into its base, which is the reference then.
    """
    name = model_of(name)
    require_whole(Path(name))
    folder = Path(name)
    if (folder / "adapter_config.json").exists():
        try:
            spec, base = read_adapter_config(folder / "adapter_config.json")
            backbone = load_backbone(base, device=device, chat_template=chat_template or _template_in(folder))
            policy = Policy(backbone, spec)
            load_adapter(policy.model, policy.adapter, folder)
        except ModelError:
            if (folder / ADAPTER_CARD).exists():
                raise
        else:
            return policy
    backbone = load_backbone(name, device=device, seed=seed, chat_template=chat_template)
    return Policy(backbone, lora or Lora(rank=1), seed=seed)


def _template_in(folder: Path) -> str | None:
    """The chat template that a tokenizer was saved with in a folder."""
    file = folder / "chat_template.jinja"
    return read_template(file) if file.is_file() else None


def read_adapter_config(path: Path) -> tuple[Lora, str]:
    """The Lora record and the base model's name from a peft adapter_config.json.

    Raises ModelError for a kind of adapter that would be computed differently from how it was trained.
    """
    stored: Mapping[str, Any] = json.loads(path.read_text())
    strange = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if stored.get(key)]
    if stored.get("peft_type") != "LORA" or strange:
        what = ", ".join(strange) or f"peft_type={stored.get('peft_type')}"
        raise ModelError(
            f"{path}: only plain LoRA adapters are supported, this one has {what}; merge it with peft first"
        )
    base = stored.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{path}: names no base model (base_model_name_or_path)")
    card = path.with_name(ADAPTER_CARD)
    top = json.loads(card.read_text())["top"] if card.exists() else 1.0
    return Lora(rank=stored["r"], alpha=stored["lora_alpha"], top=top), base


def _trainable_copy(backbone: Backbone, dtype: torch.dtype) -> Any:
    """The backbone's weights once more, in that dtype and without adapters."""
    if not current().is_sharded:
        model = copy.deepcopy(backbone.model)
        strip_adapters(model)
        return model.to(dtype).requires_grad_(True)
    # a sharded module cannot be copied; one that is loaded again is sharded alike, so that shards can be copied
    model = load_backbone(backbone.name, dtype=dtype, device=str(backbone.device)).model
    _copy_weights(backbone.model, model)
    return model.requires_grad_(True)


@torch.no_grad()
def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy weights between models of one shape; adapters around the source's weights are left out."""
    weights = {name.replace(".base.", "."): weight for name, weight in source.named_parameters()}
    for name, weight in target.named_parameters():
        weight.copy_(current().like(weight, weights[name]))


def merged_state(model: nn.Module, adapter: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights under their original names, with the adapter's product added where there is one."""
    stored = {key.replace(".base.", "."): value for key, value in model.state_dict().items() if ".lora_" not in key}
    state = {key: current().whole(value) for key, value in stored.items()}
    for path, module in lora_modules(model):
        if adapter in module.scale:
            key = f"{path}.weight"
            state[key] = state[key].float() + module.product(adapter)
    return {key: value.detach().to(dtype).contiguous() for key, value in state.items()}
