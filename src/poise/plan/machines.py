"""Machines by what a run asks of them: matrix products, memory traffic, calls, and links between devices."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from poise.errors import ConfigError
from poise.models.load import fastest_dtype
from poise.plan.model_sizes import ModelSize

_WIDEST = 4096  # of the matrices that are measured: larger ones are no faster and take seconds
_ROWS = (32, 1024)  # measured rows; the rate between and beyond follows a curve through both
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One or several equal devices.

    A product of r rows runs at peak * r / (r + half_rows).
    """

    name: str
    devices: int = 1
    memory: float  # bytes of one device
    peak: float  # FLOP/s of one device in matrix products of many rows
    half_rows: float  # rows at which half of the peak is reached
    bandwidth: float  # bytes/s of one device's memory
    call: float  # seconds to start one operation
    link: float = 0.0  # bytes/s between devices, of one device
    element_bytes: int = 2  # of a weight of the backbone
    is_gpu: bool = True
    is_measured: bool = False

    def rate(self, rows: float) -> float:
        """FLOP/s of a matrix product with so many rows."""
        return self.peak * rows / (rows + self.half_rows)


# Peaks are two thirds of the makers' dense bf16 figures, which large products reach; bandwidths 80 % of theirs.
_H100 = Machine(
    name="h100", memory=80e9, peak=660e12, half_rows=160, bandwidth=2.7e12, call=6e-6, link=360e9
)  # fmt: skip
DEVICES = {
    "h100": _H100,
    "h200": replace(_H100, name="h200", memory=141e9, bandwidth=3.8e12),
    "a100": replace(_H100, name="a100", memory=80e9, peak=208e12, half_rows=80, bandwidth=1.6e12, link=240e9),
    "l40s": replace(_H100, name="l40s", memory=48e9, peak=241e12, half_rows=250, bandwidth=0.69e12, link=25e9),
    "rtx4090": replace(_H100, name="rtx4090", memory=24e9, peak=110e12, half_rows=100, bandwidth=0.8e12, link=12e9),
}
_PER_NODE, _NETWORK = 8, 40e9  # beyond a node: one 400 Gb/s card for each device, at 80 %


def named_machine(name: str) -> Machine:
    """The machine that a name such as h100x8 stands for; more than 8 devices are several nodes.

    Raises ConfigError for an unknown name, or a number of devices below 1.

    >>> named_machine("a100x16").devices
    16
    """
    found = re.fullmatch(r"([a-z0-9]+?)(?:x(\d+))?", name.lower())
    if found is None or found[1] not in DEVICES:
        known = ", ".join(DEVICES)
        raise ConfigError(f"no machine {name!r}: give {known} with a number of devices, such as h100x8, or omit it")
    device, number = DEVICES[found[1]], int(found[2] or 1)
    if number < 1:
        raise ConfigError(f"machine {name!r} has no devices: give at least one, such as {found[1]}x1")
    return replace(device, name=name.lower(), devices=number, link=device.link if number <= _PER_NODE else _NETWORK)


def this_machine(size: ModelSize) -> Machine:
    """This machine, measured for a few seconds with matrices of the model's widths."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = fastest_dtype(device)
    slow, fast = (_product_rate(size, rows, dtype, device) for rows in _ROWS)
    peak, half_rows = _curve(slow, fast)
    return Machine(
        name="this machine",
        devices=max(1, torch.cuda.device_count()),
        memory=_memory(device),
        peak=peak,
        half_rows=half_rows,
        bandwidth=_bandwidth(device),
        call=_call(device),
        link=DEVICES["a100"].link if device == "cuda" else 1e9,
        element_bytes=dtype.itemsize,
        is_gpu=device == "cuda",
        is_measured=True,
    )


def _curve(slow: float, fast: float) -> tuple[float, float]:
    """Peak and half rows of the curve through the rates at both numbers of rows."""
    few, many = _ROWS
    # 1 / rate is a straight line in 1 / rows
    half_over_peak = max(0.0, (1 / slow - 1 / fast) / (1 / few - 1 / many))
    peak = 1 / max(1 / fast - half_over_peak / many, 0.5 / fast)
    return peak, half_over_peak * peak


def _product_rate(size: ModelSize, rows: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a layer's products, each with other weights, as a pass through a model reads them."""
    wide, narrow = min(size.intermediate, _WIDEST), min(size.hidden, _WIDEST)
    sizes = [(narrow, narrow), (wide, narrow), (narrow, wide)] * 4
    weights = [torch.ones(out, inner, dtype=dtype, device=device) for out, inner in sizes]
    inputs = {inner: torch.ones(rows, inner, dtype=dtype, device=device) for _, inner in sizes}

    def products() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return sum(2 * rows * weight.numel() for weight in weights) / _seconds(products, device)


def _bandwidth(device: str) -> float:
    """Bytes/s of reading and writing a tensor that no cache holds."""
    source = torch.ones(64 * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _call(device: str) -> float:
    """Seconds to start one small operation."""
    small, number = torch.ones(8, device=device), 500

    def calls() -> None:
        for _ in range(number):
            small.add_(1.0)

    return _seconds(calls, device) / number


def _seconds(work: Callable[[], object], device: str, *, repeats: int = 5) -> float:
    """The shortest of several times; others on the machine only ever add to it."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def _memory(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
