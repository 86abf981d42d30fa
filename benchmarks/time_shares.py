"""Where the time of a benchmark goes on our side: shares of one repeat, by operation.

    python benchmarks/time_shares.py ppo_lag_16 sft

Writes results/NAME.profile.json, which `render.py` puts beside the ratios.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from typing import Any

from harness import QUICK, RESULTS, Benchmark, machine

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "mkldnn::_linear_pointwise")
LEAST = 0.01  # shares below it are summed up as the rest


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", help="benchmarks, such as ppo_lag_16")
    parser.add_argument("--quick", action="store_true", help="a tiny random model; nothing is written")
    options = parser.parse_args()
    for name in options.names:
        result = profiled(importlib.import_module(name).BENCHMARK, quick=options.quick)
        if not options.quick:
            (RESULTS / f"{name}.profile.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result))


def profiled(benchmark: Benchmark, *, quick: bool) -> dict[str, Any]:
    """Shares of the third repeat by operation, kernels of ours included."""
    from dataclasses import replace

    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from poise import kernels

    call = kernels._call

    def recorded(name: str, *arguments: Any) -> None:
        with record_function(f"poise::{name}"):
            call(name, *arguments)

    kernels._call = recorded
    size = replace(benchmark.size, **{**QUICK, **benchmark.quick}) if quick else benchmark.size
    repeat = benchmark.ours(size)
    for _ in range(2):
        repeat()
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        repeat()
    seconds = time.perf_counter() - began
    kernels._call = call
    shares = shares_of({event.key: event.self_cpu_time_total for event in found.key_averages()})
    return {
        "benchmark": benchmark.name,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "shares": shares,
        "machine": machine(),
    }


def shares_of(times: dict[str, float]) -> dict[str, float]:
    """Shares of a time by operation, matrix products as one, the largest first and small ones as the rest."""
    whole, shares = sum(times.values()), {"matrix products": 0.0, "the rest": 0.0}
    for name, spent in times.items():
        share = spent / whole
        kind = "matrix products" if name in PRODUCTS else name if share >= LEAST else "the rest"
        shares[kind] = shares.get(kind, 0.0) + share
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
