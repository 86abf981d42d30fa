"""LoRA adapters on a shared frozen backbone: several by name, one or none active.

A plain peft module computes the low-rank product in fp32 and casts around it; here the fp32 master weights are cast
once to the backbone's dtype, so that the product runs as two small GEMMs in bf16. Folders are in peft's own format.
Source: LoRA (Hu et al., arXiv:2106.09685), y = x W + (alpha / r) x A B.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from poise.errors import ConfigError, ModelError
from poise.ranks import by_main

PROJECTIONS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc",
    "qkv_proj", "gate_up_proj", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2",
)  # fmt: skip
ADAPTER_CARD = "poise_adapter.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A low-rank adapter: rank, scale and the layers it touches.

    `top` is the share of layers, counted from the last, that get an adapter: the layers below are computed once for
    the policy and its reference, and no gradient flows through them.
    """

    rank: int = 16
    alpha: float = 32.0
    top: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.top <= 1:
            raise ConfigError(f"Lora(rank={self.rank}, top={self.top}): rank must be >= 1 and top in (0, 1]")


class LoraLinear(nn.Module):
    """A frozen linear layer with named low-rank additions; `active` names the one in use."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = cast("nn.Linear", base)
        self.transposed = not isinstance(base, nn.Linear)  # GPT-2's Conv1D stores [in, out]
        if self.transposed:
            self.inputs, self.outputs = self.base.weight.shape
        else:  # not from the weight, whose entries may be packed, four bits each
            self.inputs, self.outputs = self.base.in_features, self.base.out_features
        self.lora_a, self.lora_b = nn.ParameterDict(), nn.ParameterDict()
        self.scale: dict[str, float] = {}
        self.active: str | None = None

    def add(self, name: str, spec: Lora, generator: torch.Generator) -> None:
        """Add an adapter that starts as the identity: A uniform as in peft, B zero."""
        device = self.base.weight.device
        bound = math.sqrt(3.0) * math.sqrt(2.0 / 6.0) / math.sqrt(self.inputs)  # kaiming_uniform(a=sqrt(5))
        a = (torch.rand(spec.rank, self.inputs, generator=generator) * 2 - 1) * bound
        self.lora_a[name] = nn.Parameter(a.to(device))
        self.lora_b[name] = nn.Parameter(torch.zeros(self.outputs, spec.rank, device=device))
        self.scale[name] = spec.alpha / spec.rank

    def product(self, name: str) -> Tensor:
        """What the adapter adds to the base weight, in its layout and in fp32."""
        product = self.scale[name] * (self.lora_b[name] @ self.lora_a[name])
        return (product.t() if self.transposed else product).detach()

    def merged(self, name: str, dtype: torch.dtype) -> Tensor:
        """The base weight [outputs, inputs] with what the adapter adds, by one product in that dtype."""
        a, b = self.lora_a[name].detach().to(dtype), self.lora_b[name].detach().to(dtype)
        return torch.addmm(self.base.weight.detach().to(dtype), b, a, alpha=self.scale[name])

    def forward(self, x: Tensor) -> Tensor:
        """The frozen product plus, when an adapter is active, its low-rank addition."""
        y: Tensor = self.base(x)
        name = self.active
        if name is None or name not in self.scale:
            return y
        low = nn.functional.linear(x, self.lora_a[name].to(x.dtype))
        flat = torch.addmm(
            y.reshape(-1, self.outputs),
            low.reshape(-1, low.shape[-1]),
            self.lora_b[name].to(x.dtype).t(),
            alpha=self.scale[name],
        )
        return flat.view_as(y)


def add_adapter(
    model: nn.Module, layers: nn.ModuleList, name: str, spec: Lora, *, stop: int | None = None, seed: int = 0
) -> int:
    """Put adapter `name` on the projections of the top layers below `stop`; returns the first adapted layer's index.

    The backbone is frozen. Raises ConfigError if the name is taken.
    """
    if any(name in module.scale for _, module in lora_modules(model)):
        raise ConfigError(f"this model already has an adapter {name!r}: give the new one another name")
    stop = len(layers) if stop is None else stop
    first = stop - max(1, round(stop * spec.top))
    generator = torch.Generator().manual_seed(seed)
    adapted = {id(p) for _, module in lora_modules(model) for p in (*module.lora_a.values(), *module.lora_b.values())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in adapted)
    for index in range(first, stop):
        for parent in list(layers[index].modules()):
            for child_name, child in list(parent.named_children()):
                if child_name in PROJECTIONS:
                    adapted_child = child if isinstance(child, LoraLinear) else LoraLinear(child)
                    adapted_child.add(name, spec, generator)
                    setattr(parent, child_name, adapted_child)
    return first


def lora_modules(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every layer that carries adapters, with its name in the original model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def strip_adapters(model: nn.Module) -> None:
    """Put the frozen linear layers back in the place of those with adapters."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.base)


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The fp32 master weights of one adapter, named as in peft's files."""
    found: dict[str, nn.Parameter] = {}
    for path, module in lora_modules(model):
        if name in module.scale:
            found[f"base_model.model.{path}.lora_A.weight"] = module.lora_a[name]
            found[f"base_model.model.{path}.lora_B.weight"] = module.lora_b[name]
    return found


@contextmanager
def use_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Compute with adapter `name` inside the block; None is the bare backbone."""
    modules = [module for _, module in lora_modules(model)]
    before = [module.active for module in modules]
    for module in modules:
        module.active = name
    try:
        yield
    finally:
        for module, active in zip(modules, before, strict=True):
            module.active = active


@by_main
def save_adapter(
    model: nn.Module, name: str, spec: Lora, folder: Path, *, base: str, task: str | None = "CAUSAL_LM"
) -> None:
    """Write the adapter as a folder that peft loads: adapter_config.json and adapter_model.safetensors.

    peft warns of fields it does not know, so `top` has a small file of its own beside them.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    parameters = adapter_parameters(model, name)
    modules = [(path, module) for path, module in lora_modules(model) if name in module.scale]
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]
        target_modules=sorted(path for path, _ in modules),
        task_type=task,  # type: ignore[arg-type]
        base_model_name_or_path=base,
        fan_in_fan_out=any(module.transposed for _, module in modules),
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    (folder / ADAPTER_CARD).write_text(json.dumps({"top": spec.top}) + "\n")
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in parameters.items()},
        folder / "adapter_model.safetensors",
    )


def load_adapter(model: nn.Module, name: str, folder: Path) -> None:
    """Fill an existing adapter from a peft folder; ModelError unless every tensor fits."""
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise ModelError(f"{folder} has no adapter ({path.name} is missing); give a folder that save_pretrained wrote")
    stored = load_file(path)
    parameters = adapter_parameters(model, name)
    strange = sorted(stored.keys() ^ parameters.keys()) or [
        key for key, parameter in parameters.items() if stored[key].shape != parameter.shape
    ]
    if strange:
        raise ModelError(
            f"{folder}: the adapter does not fit this model or its Lora; first differing tensors: {strange[:3]}"
        )
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(stored[key])
