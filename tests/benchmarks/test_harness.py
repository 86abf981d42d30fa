"""The harness of the benchmarks: two processes in turn, honest memory, and a fit that finds a known exponent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SCRIPT = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import harness
from harness import Benchmark, Size, main

def side(seconds, megabytes):
    def make(size):
        kept = bytearray((megabytes << 20) + 1)
        kept[::4096] = b"x" * len(kept[::4096])
        return lambda: kept and seconds * size.rows
    return make

main(Benchmark(name="sleeping", peer_name="a sleeper", bar=2, ours=side(0.01, 0), peer=side(0.04, 300),
               bound=lambda size: 0.02, size=Size(rows=4, repeats=3, warm_up=0), needs=sys.argv.pop()))
"""


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness

    return harness


def run(tmp_path, needs):
    script = tmp_path / "sleeping.py"
    script.write_text(SCRIPT.replace("sys.argv.pop()", repr(needs)))
    found = subprocess.run([sys.executable, str(script), "--quick"], capture_output=True, text=True, check=True)
    return found.stdout.strip().splitlines()


def test_sides_take_turns_and_the_last_line_has_the_ratio(tmp_path):
    *turns, last = run(tmp_path, "")
    assert [line.split()[0] for line in turns] == ["ours", "peer", "bound"] * 3
    result = json.loads(last)
    assert result["benchmark"] == "sleeping"
    assert result["ratio"] == pytest.approx(4)
    assert result["over_bound"] == pytest.approx(result["ours"] / result["bound"])
    assert result["peer_rss_gib"] > result["ours_rss_gib"] + 0.25


def test_without_its_package_there_is_no_peer_and_a_message_says_so(tmp_path):
    first, *_, last = run(tmp_path, "a_package_that_nobody_has")
    assert "a_package_that_nobody_has is not installed" in first
    assert json.loads(last)["ratio"] is None


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(harness, power):
    scales = [16, 32, 64, 256]
    assert harness.exponent(scales, [3 * scale**power for scale in scales]) == pytest.approx(power)


def test_the_ratio_is_the_median_of_those_of_calm_turns(harness):
    def side(*turns):
        return [{"seconds": seconds, "others": others} for seconds, others in turns]

    rows = {
        "ours": side((1.0, 0.0), (2.0, 0.05), (5.0, 0.6), (4.0, 0.0)),
        "peer": side((3.0, 0.0), (8.0, 0.0), (9.0, 0.0), (8.0, 0.0)),
    }
    benchmark = harness.Benchmark(name="x", peer_name="y", bar=2, ours=None, peer=len, size=harness.Size())
    found = harness.figures(benchmark, rows, {"ours": 1.0, "peer": 3.0}, "seconds")
    assert (found["ratio"], found["ratio_range"], found["n"], found["rss_ratio"]) == (3.0, [2.0, 4.0], 3, 3.0)
    busy = {name: [dict(each, others=0.5) for each in found] for name, found in rows.items()}
    assert harness.calm_turns(busy) == [0, 1, 2, 3]


def test_one_thing_grows_at_a_time(harness):
    benchmark = harness.Benchmark(name="x", peer_name="y", bar=2, ours=None, peer=None, size=harness.Size())
    for axis in harness.AXES:
        sizes = harness.scaled(benchmark, benchmark.size, axis)
        assert len({str(size) for size in sizes.values()}) == len(sizes) >= 4
        usual = vars(benchmark.size)
        changed = {name for size in sizes.values() for name, value in vars(size).items() if value != usual[name]}
        assert changed == {"model" if axis == "layers" else axis}


def test_what_other_processes_take_is_counted(harness):
    turn = harness.Turn()
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    busy = harness.busy_seconds() - turn.busy
    own = harness.own_seconds() - turn.own
    assert busy > own


def test_memory_is_told_by_what_came_into_it():
    script = f"""
import json, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import memory_shares
from harness import Benchmark, Size

def grown(megabytes):
    kept = bytearray(megabytes << 20)
    kept[::4096] = b"x" * len(kept[::4096])
    return kept

def ours(size):
    kept = grown(300)
    return lambda: kept and len(grown(500))

print(json.dumps(memory_shares.measured(Benchmark(name="", peer_name="", bar=1, ours=ours, peer=None, size=Size()),
                                        "ours", quick=True)))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert found["set up"] - found["libraries"] == pytest.approx(300 / 1024, abs=0.05)
    assert found["highest"] - found["set up"] == pytest.approx(500 / 1024, abs=0.05)
    assert found["between repeats"] < found["highest"] - 0.3
