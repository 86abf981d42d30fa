"""What a CPU computes between matrix products, in C++ that is compiled for this machine when it is first needed.

A pass through memory costs a CPU as much as a good part of a matrix product, and torch needs five or ten where one is
enough. The functions here do the same as their neighbours that are written with torch, which stay in use where there is
no compiler, on other devices and for other dtypes than bfloat16. POISE_KERNELS=0 switches them off; `poise doctor` says
whether they are there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poise.caches import private_cache, written_by_others
from poise.checksums import facts_of
from poise.errors import ConfigError
from poise.files import sync

SWITCH = "POISE_KERNELS"
_SOURCES = ("elementwise.cpp", "attention.cpp", "weight_gradients.cpp")
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *(("-mprefer-vector-width=512",) if platform.machine() == "x86_64" else ()),
    # sums may be reordered, so that they vectorise; infinities and NaN keep their meaning
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 120
_NARROW = 64  # below it, a sum over tokens is no faster than torch's


class Kernels(NamedTuple):
    """The compiled library, or the reason why there is none."""

    library: Any
    reason: str


@cache
def compiled() -> Kernels:
    """The library, compiled once for this processor and kept in the cache folder."""
    if os.environ.get(SWITCH) == "0":
        return Kernels(None, f"{SWITCH}=0")
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return Kernels(None, f"not available for {platform.system()} on {platform.machine()}")
    try:
        folder = private_cache()
        return Kernels(ctypes.CDLL(str(_kept(folder) or _compile(_compiler(), folder))), "")
    except subprocess.SubprocessError as error:
        told = getattr(error, "stderr", None) or str(error)
        return Kernels(None, f"{_compiler()} failed: {(str(told).strip() or str(error)).splitlines()[-1]}")
    except OSError as error:
        return Kernels(None, f"{error}; set POISE_CACHE to compile into another folder")
    except ConfigError as error:
        return Kernels(None, str(error))


def _compiler() -> str:
    found = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if found is None:
        raise ConfigError("no C++ compiler; on Debian and Ubuntu: apt-get install g++")
    return found


def _kept(folder: Path) -> Path | None:
    """The library that an earlier process compiled, unless it is damaged: its name holds its checksum.

    A library that was cut ends the process when it is loaded, and one that was changed computes something else.
    """
    for path in sorted(folder.glob(_file_name(_version(), "*"))):
        if path.is_file() and path.name == _file_name(_version(), facts_of(path)["sha256"]):
            if path.stat().st_uid == os.geteuid() and not written_by_others(path):
                return path
        elif path.is_file():
            path.unlink(missing_ok=True)
    return None


def _file_name(version: str, checksum: str) -> str:
    return f"kernels-{version}-{checksum[:32]}.so"


def _version() -> str:
    """A name that changes with the source, the flags and what the processor can do."""
    here, found = Path(__file__).parent, hashlib.sha256(" ".join(_FLAGS).encode())
    for name in ("common.h", "tiles.h", *_SOURCES):
        found.update((here / name).read_bytes())
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found.update("\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))})).encode())
    return found.hexdigest()[:16]


def _compile(compiler: str, folder: Path) -> Path:
    """Compile beside the target and move it there, so that no process ever sees half a file."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / "kernels.so"
        command = [*shlex.split(compiler), *_FLAGS, *(str(here / name) for name in _SOURCES), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        made.chmod(0o755)
        sync(made)
        return made.replace(folder / _file_name(_version(), facts_of(made)["sha256"]))


def supports_tensors(*tensors: Tensor, apart: bool = False) -> bool:
    """Whether the kernels take these: bfloat16 on a CPU and contiguous, or in rows that may lie `apart`."""
    return (
        all(each.dtype == torch.bfloat16 and each.device.type == "cpu" for each in tensors)
        and all(each.stride(-1) == 1 if apart else each.is_contiguous() for each in tensors)
        and compiled().library is not None
    )


@cache
def has_tiles() -> bool:
    """Whether this processor has a matrix unit that the attention kernel can use."""
    library = compiled().library
    return library is not None and bool(library.has_tiles())


def _call(name: str, *arguments: Any) -> None:
    """Call a kernel: tensors by their address, None as no address, whole numbers as 64 bits, floats as 32."""
    getattr(compiled().library, name)(*map(_as_c, arguments))


def _as_c(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_void_p(None) if value is None else ctypes.c_long(value)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """X / sqrt(mean(x^2) + epsilon) * weight of states [N, H], and the inverse roots [N, 1] in float32."""
    rows = x.numel() // x.shape[-1]  # heads of tokens are rows as well
    found, inverse = torch.empty_like(x), torch.empty(rows, 1)
    _call("rms_norm", x, weight, found, inverse, rows, x.shape[-1], float(epsilon))
    return found, inverse


def rms_norm_backward(
    slope: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, *, for_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the states [N, H] and, where it is asked for, of the weight [H] in float32."""
    found, summed = torch.empty_like(x), torch.zeros(weight.shape) if for_weight else None
    _call("rms_norm_backward", slope, x, weight, inverse, found, summed, len(x), x.shape[-1])
    return found, summed


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up of [N, I] each, which may be halves of the rows of one tensor."""
    found = torch.empty(gate.shape, dtype=gate.dtype)
    _call("swiglu", gate, up, found, len(gate), gate.shape[-1], gate.stride(0))
    return found


def swiglu_backward(slope: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up [N, I]."""
    for_gate, for_up = torch.empty_like(gate), torch.empty_like(up)
    _call("swiglu_backward", slope, gate, up, for_gate, for_up, gate.numel())
    return for_gate, for_up


def apply_rope(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [N, heads D] turned by the angles of their tokens, cos and signed sin [N, 1, D]."""
    width, found = cos.shape[-1], torch.empty_like(states)
    _call("apply_rope", states, cos, sin, found, len(states), states.shape[-1] // width, width)
    return found


def supports_decoding(states: Tensor, heads: int, key_heads: int) -> bool:
    """Whether `attend_step` takes these states [N, Hq + 2 Hkv, D]."""
    return states.shape[-1] in (64, 128) and heads // key_heads in range(1, 9) and supports_tensors(states)


def attend_step(
    states: Tensor,  # [N, Hq + 2 Hkv, D]
    rotation: tuple[Tensor, Tensor],  # cos and signed sin [N, D]
    cache: Tensor,  # [2, rows, Hkv, columns, D] of one layer
    sizes: Tensor,  # [N] columns of each row that are filled, the new one included
    prompts: tuple[Tensor, Tensor, Tensor] | None = None,  # cache of one layer, owner [N], filled columns [slots]
) -> Tensor:
    """Attention [N, Hq, D] of one new token per row to its prompt and to itself and those before it.

    Queries and keys are turned, and the new keys and values go into the cache.
    """
    (_, rows, key_heads, columns, width), heads = cache.shape, states.shape[1] - 2 * cache.shape[2]
    found = torch.empty(len(states), heads, width, dtype=states.dtype)
    shared, owner, filled = prompts or (None, None, None)
    slots, prompt_columns = (0, 0) if shared is None else (shared.shape[1], shared.shape[3])
    places = (len(states), heads, key_heads, width, rows, columns, slots, prompt_columns)
    _call("attend_step", states, *rotation, cache, sizes, shared, owner, filled, found, *places, width**-0.5)
    return found


class Rows(NamedTuple):
    """Where sequences lie among flat tokens: those of the prompts, then those of responses to them."""

    begins: Tensor  # int64 [G + B]
    lengths: Tensor  # int64 [G + B]
    owner: Tensor  # int64 [B], the prompt of each response

    @classmethod
    def of(cls, prompts: Tensor, responses: Tensor, owner: Tensor) -> Rows:
        """The rows of so many tokens each, end to end."""
        lengths = torch.cat([prompts, responses])
        return cls(lengths.cumsum(0) - lengths, lengths, owner.contiguous())

    @property
    def counts(self) -> tuple[int, int]:
        """How many prompts and how many responses."""
        return len(self.lengths) - len(self.owner), len(self.owner)


def supports_attention(queries: Tensor, keys: Tensor, values: Tensor, *, width: int) -> bool:
    """Whether `attend` takes these: heads of whole tiles, and a processor with a matrix unit."""
    return width % 32 == 0 and supports_tensors(queries, keys, values, apart=True) and has_tiles()


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, rows: Rows, *, width: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention [N, Hq D] of flat tokens, and its log-normalisers [N, Hq]; 0 for a token of no row.

    Prompts attend to themselves, responses to their prompt and themselves. Queries [N, Hq D]; keys and values
    [N, Hkv D] of equal strides.
    """
    heads, key_heads = queries.shape[-1] // width, keys.shape[-1] // width
    found = torch.zeros(queries.shape, dtype=queries.dtype)
    logs = torch.empty(len(queries), heads)
    sizes = (*rows.counts, heads, key_heads, width, queries.stride(0), keys.stride(0), float(scale))
    _call("attend", queries, keys, values, found, logs, *rows, *sizes)
    return found, logs


def attend_backward(
    slope: Tensor, queries: Tensor, keys: Tensor, values: Tensor, logs: Tensor, rows: Rows, *, width: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of `attend`, whose log-normalisers are `logs`; 0 for a token of no row."""
    heads, key_heads = queries.shape[-1] // width, keys.shape[-1] // width
    found = torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
    sizes = (*rows.counts, heads, key_heads, width, queries.stride(0), keys.stride(0), float(scale))
    _call("attend_backward", slope, queries, keys, values, logs, *found, *rows, *sizes)
    return found


def supports_token_sums(slope: Tensor, x: Tensor) -> bool:
    """Whether `sum_over_tokens` takes these: widths in whole tiles and worth it, a processor with a matrix unit."""
    widths = slope.shape[-1], x.shape[-1]
    return all(width >= _NARROW and width % 16 == 0 for width in widths) and supports_tensors(slope, x) and has_tiles()


def sum_over_tokens(slope: Tensor, x: Tensor, *, add_to: Tensor | None = None) -> Tensor:
    """slope^T x [O, I] of slope [N, O] and x [N, I] in their dtype, or added to a sum [O, I] in float32."""
    found = torch.empty(slope.shape[1], x.shape[1], dtype=x.dtype) if add_to is None else add_to
    rounded, wide = (found, None) if add_to is None else (None, found)
    _call("sum_over_tokens", slope, x, rounded, wide, len(x), slope.shape[1], x.shape[1])
    return found


def read_logits(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of ids [N], entropies and log-normalisers [N] in nats of logits [N, V] over a temperature."""
    found = torch.empty(3, len(ids))
    _call("read_logits", logits, ids, found[0], found[1], found[2], *logits.shape, 1.0 / temperature)
    return found[0], found[1], found[2]


def read_logits_backward(
    slope: Tensor, logits: Tensor, ids: Tensor, normaliser: Tensor, temperature: float, *, out: Tensor
) -> Tensor:
    """The gradient of the logits [N, V] from that of the log-probabilities [N]; `out` may be the logits themselves."""
    _call("read_logits_backward", logits, ids, slope, normaliser, out, *logits.shape, 1.0 / temperature)
    return out


def sample_tokens(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token of each row of logits [N, V] by inverse CDF from uniforms float64 [N], and its log-probability."""
    ids, logprobs = torch.empty(len(logits), dtype=torch.long), torch.empty(len(logits))
    _call("sample_tokens", logits, uniforms, ids, logprobs, *logits.shape, 1.0 / temperature)
    return ids, logprobs
