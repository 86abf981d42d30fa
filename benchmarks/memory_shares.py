"""Where the memory of a benchmark comes from: resident memory as libraries, models and work are added, on both sides.

    python benchmarks/memory_shares.py rollout_fixed ppo_lag_16_separate

Writes results/NAME.memory.json, which `render.py` puts beside the ratios. It is for benchmarks whose peer repeats when
it is told to: one that trains in a loop of its own, as TRL's do, cannot be looked at in between.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import QUICK, RESULTS, Benchmark, machine, peak_gib

from poise.allocator import TUNABLES, TUNED


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", help="benchmarks, such as rollout_fixed")
    parser.add_argument("--quick", action="store_true", help="a tiny random model; nothing is written")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        benchmark = importlib.import_module(options.names[0]).BENCHMARK
        print(json.dumps(measured(benchmark, options.side, quick=options.quick)))
        return
    for name in options.names:
        result = {"benchmark": name, "machine": machine()} | {
            side: _in_a_process(name, side, quick=options.quick) for side in ("ours", "peer")
        }
        if not options.quick:
            (RESULTS / f"{name}.memory.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result))


def measured(benchmark: Benchmark, side: str, *, quick: bool) -> dict[str, Any]:
    """GiB of resident memory after imports, when all is set up, after two repeats, and at the highest."""
    size = replace(benchmark.size, **{**QUICK, **benchmark.quick}) if quick else benchmark.size
    found = {"libraries": resident_gib()}
    repeat = benchmark.ours(size) if side == "ours" else benchmark.peer and benchmark.peer(size)
    if repeat is None:
        return found
    found["set up"] = resident_gib()
    for _ in range(2):
        repeat()
    gc.collect()
    return found | {"between repeats": resident_gib(), "highest": peak_gib()}


def resident_gib() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def _in_a_process(name: str, side: str, *, quick: bool) -> dict[str, Any]:
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", **{TUNABLES: TUNED})
    command = [sys.executable, __file__, name, "--side", side, *(["--quick"] if quick else [])]
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
