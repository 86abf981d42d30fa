"""Two processes do what one does: the same metrics and weights for every loop, and each continues the other's run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from poise.files import read_jsonl_tolerant
from poise.ranks import Ranks

STEPS, NUM_LOOPS = 4, 12  # of the worker
pytestmark = pytest.mark.timeout(900)  # seconds of work, but in five processes

OTHERS = {"seconds", "tokens_per_s", "time", "stage"}
HOW = ("all-weights", "recomputed")
PLACES = ("two", "alone-then-two", "two-then-alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the worker left."""
    path = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks_worker.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(path)], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return path


def loops(folder: Path) -> list[str]:
    names = sorted(path.name for path in (folder / "alone").iterdir())
    assert len(names) == NUM_LOOPS
    return names


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_those_of_one_process(folder, place):
    for name in loops(folder):
        alone = load_file(folder / "alone" / name / "weights.safetensors")
        found = load_file(folder / place / name / "weights.safetensors")
        assert found.keys() == alone.keys()
        for key, expected in alone.items():
            torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=5e-7, msg=f"{name}: {key}")


@pytest.mark.parametrize("place", PLACES)
def test_metrics_are_those_of_one_process(folder, place):
    for name in loops(folder):
        alone, found = (read_jsonl_tolerant(folder / each / name / "metrics.jsonl") for each in ("alone", place))
        assert [row["step"] for row in found] == list(range(1, STEPS + 1))
        for expected, row in zip(alone, found, strict=True):
            assert row.keys() == expected.keys()
            values = {key: value for key, value in expected.items() if key not in OTHERS}
            assert {key: row[key] for key in values} == pytest.approx(values, rel=2e-3, abs=2e-5), name


def test_saved_models_are_those_of_one_process(folder):
    for name in ("supervised-adapter", "supervised-all-weights"):
        alone, found = (load_file(folder / each / name / "model" / "model.safetensors") for each in ("alone", "two"))
        for key in alone:
            torch.testing.assert_close(found[key], alone[key], rtol=1e-5, atol=5e-7, msg=f"{name}: {key}")


def test_every_step_moves_the_weights(folder):
    for name in loops(folder):
        rows = read_jsonl_tolerant(folder / "two" / name / "metrics.jsonl")
        assert all(row["gradient_norm"] > 0 for row in rows), name


def test_what_is_recomputed_has_the_same_gradient(folder):
    kept, again = (load_file(folder / "alone" / f"supervised-{how}" / "weights.safetensors") for how in HOW)
    for key, expected in kept.items():
        torch.testing.assert_close(again[key], expected, rtol=1e-6, atol=1e-8)


def test_weights_trained_whole_are_saved_in_pieces(folder):
    for name, pieces in (("supervised-all-weights", 2), ("supervised-adapter", 0)):
        newest = folder / "two" / name / "stage" / "checkpoints" / f"step-{STEPS:06d}"
        assert len(list(newest.glob("pieces-*"))) == pieces, name


class Third(Ranks):
    """The third of four processes, for what needs no other."""

    rank, size = 2, 4


def test_parts_are_disjoint_and_about_equal():
    costs = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0]
    parts = []
    for rank in range(4):
        each = Third()
        each.rank = rank
        parts.append(each.partition(range(8), costs))
    assert sorted(item for items, _ in parts for item in items) == list(range(8))
    assert all(sum(costs[item] for item in items) == 10.0 for items, _ in parts)
    assert all(weight == 1.0 for _, weight in parts)


def test_a_process_without_work_repeats_some_at_weight_zero():
    assert Third().partition(["a", "b"]) == (["a"], 0.0)
