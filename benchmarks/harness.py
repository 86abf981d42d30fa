"""What every benchmark shares: two processes that take turns, medians, peak memory, the limit of this machine.

Ours and the peer each run in a process of their own, so that peak memory is honest, and take turns repeat by repeat,
so that a change of the machine's load meets both, and the ratio is the median of those of single turns. Both have the
malloc that `poise run` gives itself, so that no win is an allocator's. A repeat says which share of the machine other
processes took meanwhile; turns in which that was much are left out, where there are others. `--processor-time` compares
processor seconds of one thread instead of the clock: where others take most of the machine, the clock says little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from poise.allocator import TUNABLES, TUNED

RESULTS = Path(__file__).parent / "results"
Repeat = Callable[[], float | None]  # runs once; may return the seconds that count, where they are not all


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work one repeat is."""

    model: str = "smollm2-135m"
    rows: int = 16
    prompt: int = 64  # tokens
    response: int = 64  # tokens
    samples: int = 1
    lora: bool = False
    repeats: int = 5
    warm_up: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A row of the table: the same work for ours and for the peer, and the ratio that is wanted."""

    name: str
    peer_name: str
    bar: float
    ours: Callable[[Size], Repeat]
    peer: Callable[[Size], Repeat | None] | None  # whose result is None where it has served its own loop
    size: Size
    quick: dict[str, Any] = field(default_factory=dict)
    scales: Sequence[int] = (16, 32, 64, 128, 256)  # of rows
    bound: Callable[[Size], float] | None = None  # seconds that the matrix products alone need, measured in turn
    needs: str = ""  # a package that the peer needs


LENGTHS, LAYERS = (32, 64, 128, 256, 512), (4, 8, 16, 32)
AXES = ("rows", "response", "layers")  # what can grow: the batch, the length, the model
CALM = 0.1  # share of the machine that others may take of a turn that counts
QUICK = {
    "model": "random:llama?layers=2&hidden=64",
    "rows": 4,
    "prompt": 40,
    "response": 16,
    "repeats": 3,
    "warm_up": 1,
}


def main(benchmark: Benchmark) -> None:
    """The command line of a benchmark."""
    parser = argparse.ArgumentParser(description=f"{benchmark.name}: poise against {benchmark.peer_name}")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, under a minute: does it run?")
    parser.add_argument(
        "--scaling", nargs="?", const="rows", choices=AXES, help="ours alone at growing sizes; fit the exponents"
    )
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--warm-up", type=int)
    parser.add_argument("--rows", type=int, help="another number of prompts, comparisons or demonstrations")
    parser.add_argument(
        "--processor-time", action="store_true", help="processor seconds of one thread, on a busy machine"
    )
    parser.add_argument("--side", choices=["ours", "peer", "bound"], help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = replace(benchmark.size, **{**QUICK, **benchmark.quick}) if options.quick else benchmark.size
    given = {"repeats": options.repeats, "warm_up": options.warm_up, "rows": options.rows}
    size = replace(size, **{name: value for name, value in given.items() if value is not None})
    size = Size(**json.loads(options.size)) if options.size else size
    if options.side:
        _work(benchmark, options.side, size)
    elif options.scaling:
        _scaling(benchmark, size, options.scaling)
    else:
        _compare(benchmark, size, keep=not options.quick, clock="processor" if options.processor_time else "seconds")


def _compare(benchmark: Benchmark, size: Size, *, keep: bool, clock: str) -> None:
    if clock == "processor":
        os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other would count as work
    sides = ["ours"]
    if benchmark.needs and not _installed(benchmark.needs):
        print(f"{benchmark.needs} is not installed, so there is no peer here: pip install 'poise[bench]'")
    elif benchmark.peer is not None:
        sides.append("peer")
    sides += ["bound"] if benchmark.bound is not None else []
    workers = {side: _Worker(benchmark, side, size) for side in sides}
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for index in range(size.warm_up + size.repeats):
        for side, worker in workers.items():
            row = worker.repeat()
            if index >= size.warm_up:
                rows[side].append(row)
                print(f"{side:5} {row[clock]:8.3f} s   others {row['others']:.0%} of the machine", flush=True)
    memory = {side: worker.finish() for side, worker in workers.items()}
    result = figures(benchmark, rows, memory, clock) | {
        "clock": clock,
        "size": asdict(size),
        "repeats": rows,
        "machine": machine(),
    }
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{benchmark.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key not in ("size", "repeats", "machine")}))


def figures(
    benchmark: Benchmark, rows: dict[str, list[dict[str, float]]], memory: dict[str, float], clock: str
) -> dict[str, Any]:
    """The figures of a row: medians over turns; without a peer the ratio is the time over the bound."""
    turns = calm_turns(rows)
    seconds = {side: [found[turn][clock] for turn in turns] for side, found in rows.items()}
    ours, peer, bound = (seconds.get(side) for side in ("ours", "peer", "bound"))
    assert ours is not None
    over_bound = [mine / least for mine, least in zip(ours, bound, strict=True)] if bound else None
    ratios = [other / mine for other, mine in zip(peer, ours, strict=True)] if peer else None
    if peer is None and benchmark.peer is None:
        ratios = over_bound
    return {
        "benchmark": benchmark.name,
        "ratio": ratios and statistics.median(ratios),
        "ratio_range": ratios and [min(ratios), max(ratios)],
        "ours": statistics.median(ours),
        "peer": peer and statistics.median(peer),
        "unit": "s",
        "n": len(turns),
        "bar": benchmark.bar,
        "peer_name": benchmark.peer_name,
        "bound": bound and statistics.median(bound),
        "over_bound": over_bound and statistics.median(over_bound),
        "ours_rss_gib": memory["ours"],
        "peer_rss_gib": memory.get("peer"),
        "rss_ratio": memory["peer"] / memory["ours"] if peer else None,
    }


def calm_turns(rows: dict[str, list[dict[str, float]]]) -> list[int]:
    """The turns in which other processes took at most a tenth of the machine from every side; all, if those are few."""
    shares = [max(each["others"] for each in turn) for turn in zip(*rows.values(), strict=True)]
    calm = [number for number, share in enumerate(shares) if share <= CALM]
    return calm if len(calm) > 1 else list(range(len(shares)))


def scaled(benchmark: Benchmark, size: Size, axis: str) -> dict[int, Size]:
    """The sizes at which one thing grows; models grow by layers, random ones as wide as SmolLM2-135M."""
    if axis == "layers":
        return {n: replace(size, model=f"random:llama?layers={n}&hidden=576&heads=9") for n in LAYERS}
    return {n: replace(size, **{axis: n}) for n in (benchmark.scales if axis == "rows" else LENGTHS)}


def _scaling(benchmark: Benchmark, size: Size, axis: str) -> None:
    points = []
    for scale, grown in scaled(benchmark, size, axis).items():
        worker = _Worker(benchmark, "ours", grown)
        resting = worker.resting
        seconds = [worker.repeat()["seconds"] for _ in range(3)]
        points.append({"scale": scale, "seconds": min(seconds), "gib": worker.finish(), "resting_gib": resting})
        print(points[-1], flush=True)
    scales = [float(point["scale"]) for point in points]
    result = {
        "benchmark": benchmark.name,
        "scaled": axis,
        "time_exponent": exponent(scales, [point["seconds"] for point in points]),
        "memory_exponent": exponent(scales, [max(1e-3, point["gib"] - point["resting_gib"]) for point in points]),
        "points": points,
        "size": asdict(size),
        "machine": machine(),
    }
    (RESULTS / f"{benchmark.name}.scaling{'' if axis == 'rows' else f'-{axis}'}.json").write_text(
        json.dumps(result, indent=1) + "\n"
    )
    print(json.dumps({key: result[key] for key in ("benchmark", "time_exponent", "memory_exponent")}))


def exponent(scales: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a least-squares line through the logarithms: 1 where the value grows as the scale does.

    >>> round(exponent([1, 2, 4], [3, 6, 12]), 6)
    1.0
    """
    return statistics.linear_regression([math.log(x) for x in scales], [math.log(y) for y in values]).slope


class _Worker:
    """A side in a process of its own, that repeats when it is told to."""

    def __init__(self, benchmark: Benchmark, side: str, size: Size):
        self.side = side
        environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        if side != "bound":
            environment[TUNABLES] = TUNED
        command = [sys.executable, sys.argv[0], "--side", side, "--size", json.dumps(asdict(size))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.resting = float(self._read()["gib"])

    def repeat(self) -> dict[str, float]:
        return self._ask("repeat")

    def finish(self) -> float:
        """Peak resident memory in GiB."""
        found = self._ask("stop")["gib"]
        self.process.wait(timeout=60)
        return found

    def _ask(self, word: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("#bench "):
                return json.loads(line.removeprefix("#bench "))
        raise SystemExit(f"the {self.side} side ended before it answered; its error is above")


def _work(benchmark: Benchmark, side: str, size: Size) -> None:
    if side == "bound":
        assert benchmark.bound is not None
        bound = benchmark.bound
        _serve(lambda: bound(size))
    else:
        make = benchmark.ours if side == "ours" else benchmark.peer
        assert make is not None
        if (repeat := make(size)) is not None:
            _serve(repeat)


def _serve(repeat: Repeat) -> None:
    """Repeat at every word from the parent."""
    ready()
    while wait_for_turn():
        turn = Turn()
        turn.end(repeat())
    ready()


def ready() -> None:
    """Tell the parent the peak memory: when all is set up, and at the end."""
    _answer({"gib": peak_gib()})


def wait_for_turn() -> bool:
    """Wait for the parent's word; false when it is over."""
    return sys.stdin.readline().strip() == "repeat"


class Turn:
    """One repeat as the clock sees it, and what other processes took of the machine meanwhile."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.perf_counter(), busy_seconds(), own_seconds()

    def end(self, seconds: float | None = None) -> None:
        """Tell the parent."""
        wall, own = time.perf_counter() - self.began, own_seconds() - self.own
        share = max(0.0, (busy_seconds() - self.busy - own) / (wall * (os.cpu_count() or 1)))
        _answer({"seconds": wall if seconds is None else seconds, "processor": own, "others": min(1.0, share)})


def _answer(values: dict[str, float]) -> None:
    print("#bench " + json.dumps(values), flush=True)


def busy_seconds() -> float:
    """Seconds that all cores have spent on anything but waiting, since the machine started."""
    fields = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor seconds of this process."""
    spent = os.times()
    return spent.user + spent.system


def peak_gib() -> float:
    """Peak resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def machine() -> dict[str, Any]:
    """Where and with what a result was measured."""
    from importlib import metadata

    from poise import kernels

    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":")
    flags = Path("/proc/cpuinfo").read_text()
    versions = {}
    for package in ("torch", "transformers", "trl"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": cpu.split(":", 1)[1].strip(),
        "cores": os.cpu_count(),
        "amx_bf16": "amx_bf16" in flags,
        "kernels": kernels.compiled().library is not None,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **versions,
    }
