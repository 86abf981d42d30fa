"""A run that is killed at any moment, and started again with the same command, ends bit for bit as one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from poise.files import read_jsonl_tolerant
from poise.train.checkpoint import latest_checkpoint

WORKER = Path(__file__).parent / "resume_worker.py"
STEPS = 12
LOOPS = {  # what moves
    "supervised": "version",
    "scores": "random",
    "decayed_average": "average",
    "mean_of_last": "validated",
    "preference": "labels",
}
CLOCKS = {"time", "seconds", "tokens_per_s"}
CHECKPOINTS = Path("train") / "checkpoints"


class Server:
    """The worker process, whose children train."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, loop: str, folder: Path, save_every: int, pause: float = 0.0) -> int:
        """Start training in a new process; returns its id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{loop} {folder} {save_every} {pause}\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> int:
        """The next number the worker prints: the id of a process, or the exit code of the one that runs."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server():
    started = Server()
    yield started
    started.close()


def steps_logged(folder: Path) -> list[int]:
    return [row["step"] for row in read_jsonl_tolerant(folder / "metrics.jsonl")]


def kill_when(server: Server, process: int, ready: Callable[[], bool]) -> int:
    """Kill the training process as soon as `ready`; returns its exit code."""
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline, "the training process never came so far"
        time.sleep(0.0005)
    with suppress(ProcessLookupError):  # it may have finished meanwhile
        os.kill(process, signal.SIGKILL)
    return server.read()


def contents(folder: Path):
    """What a run leaves: the last checkpoint with its step, and the logged lines without clock times."""
    rows = read_jsonl_tolerant(folder / "metrics.jsonl")
    return latest_checkpoint(folder / CHECKPOINTS), [
        {name: value for name, value in row.items() if name not in CLOCKS} for row in rows
    ]


def assert_same(found, expected, path=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for name, value in expected.items():
            assert_same(found[name], value, f"{path}/{name}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{path}/{index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


def train_unbroken(server: Server, loop: str, folder: Path):
    server.start(loop, folder, 3)
    assert server.read() == 0
    return contents(folder)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_killed_at_any_moment_ends_as_one_that_never_was(server, tmp_path, loop):
    expected = train_unbroken(server, loop, tmp_path / "unbroken")
    state = expected[0][1]
    assert {"optimizer", LOOPS[loop]} < state.keys()
    seed = random.randrange(10**6)
    print(f"{loop}: seed {seed} of the moments to kill at")
    chance = random.Random(seed)
    for save_every in (1, 3):
        folder = tmp_path / f"killed-{save_every}"
        kills = 0
        for moment in sorted(chance.sample(range(STEPS - 1), 3)):
            process = server.start(loop, folder, save_every, pause=0.02)

            def reached(moment: int = moment, folder: Path = folder) -> bool:
                if max(steps_logged(folder), default=0) <= moment:
                    return False
                time.sleep(chance.random() * 0.02)
                return True

            kills += kill_when(server, process, reached) == -signal.SIGKILL
        server.start(loop, folder, save_every)
        assert server.read() == 0
        assert kills >= 1
        found = contents(folder)
        assert [row["step"] for row in found[1]] == list(range(1, STEPS + 1))
        assert_same(found, expected)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_killed_while_it_writes_a_checkpoint_ends_as_one_that_never_was(server, tmp_path, loop):
    expected = train_unbroken(server, loop, tmp_path / "unbroken")
    seed = random.randrange(10**6)
    print(f"{loop}: seed {seed} of the delays")
    chance, folder, caught = random.Random(seed), tmp_path / "killed", 0
    for count in (0, 1, 2):  # complete checkpoints before the one that is interrupted
        process = server.start(loop, folder, 3, pause=0.04)

        def writing(count: int = count) -> bool:
            places = [place.name for place in (folder / CHECKPOINTS).glob("*")]
            done = max([int(name[5:]) for name in places if name.startswith("step-")], default=0)
            if done < 3 * count or not any(name.startswith("unfinished") for name in places):
                return False
            time.sleep(chance.random() * 0.03)
            return True

        assert kill_when(server, process, writing) == -signal.SIGKILL
        caught += any((folder / CHECKPOINTS).glob("unfinished-*"))
    assert caught >= 1
    server.start(loop, folder, 3)
    assert server.read() == 0
    assert not list((folder / CHECKPOINTS).glob("unfinished-*"))
    assert_same(contents(folder), expected)
