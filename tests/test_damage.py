"""Whatever happens to a file of a run, the run comes to the same result or says which file is damaged."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from poise.checksums import read_sealed, write_sealed
from poise.cli import main
from poise.errors import RunError
from poise.files import append_line, json_line, read_jsonl_tolerant
from poise.models.adapters import Lora
from poise.models.features import FeatureCache
from poise.models.heads import ScoreModel, load_score_model
from poise.models.load import load_backbone
from poise.models.policy import Policy, load_policy
from poise.run import Run
from poise.train.checkpoint import write_tensors
from poise.train.loop import adamw, fit

STEPS = 4
STATES = ("finished", "stopped at step 3", "killed at step 3", "killed at report")


class Line:
    """Fits a line: a trainer with weights, an optimizer and nothing that costs time."""

    def __init__(self) -> None:
        self.weights = {"w": nn.Parameter(torch.zeros(3))}
        self.optimizer = adamw(self.weights.values(), lr=0.1)

    def step_at(self, index: int) -> dict[str, float]:
        loss = (self.weights["w"] - torch.arange(3.0) - index).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": float(loss.detach())}

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(self.weights), "optimizer": self.optimizer.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.weights["w"].copy_(state["weights"]["w"])
        groups = self.optimizer.state_dict()["param_groups"]
        kept = {int(key): value for key, value in state["optimizer"].items()}
        self.optimizer.load_state_dict({"state": kept, "param_groups": groups})


class Stopped(BaseException):
    """Ctrl-C, or with a copy of the folder as it is at that moment a kill."""


def recipe(folder: Path, *, stop_at: str = "", killed: Path | None = None) -> dict[str, Any]:
    """Features, training, answers, a report: what the recipes do, in milliseconds; returns every figure."""

    def stop(place: str) -> None:
        if place == stop_at:
            if killed is not None:
                shutil.copytree(folder, killed)
            raise Stopped

    with Run.open(folder, recipe="damage", arguments={"steps": STEPS}) as run:
        cache = FeatureCache(run.stage("features").path)
        rows = cache.get([f"row-{i}" for i in range(300)], lambda numbers: torch.tensor([[i, i / 7] for i in numbers]))
        stage = run.stage("policy")
        if not stage.finished:
            trainer = Line()

            def after_step(step: int, _: Any) -> None:
                run.logs.append("samples.jsonl", "policy", {"stage": "policy", "step": step, "text": f"answer {step}"})
                stop(f"step {step}")

            fit(trainer, run=run, stage="policy", steps=STEPS, save_every=2, after_step=after_step)
            (stage.path / "model").mkdir(exist_ok=True)
            write_tensors(stage.path / "model" / "adapter.safetensors", trainer.weights)
            stage.finish({"final": trainer.weights["w"], "steps": STEPS})
        final, answers = run.stage("policy").result["final"], run.stage("evaluate")
        path = answers.path / "rollouts.jsonl"
        if not answers.finished:
            path.unlink(missing_ok=True)
            for number in range(5):
                append_line(path, json_line({"number": number, "reward": final[0] * number}))
            answers.finish({"answers": 5})
        stop("report")
        curve = [{"step": row["step"], "loss": row["loss"]} for row in run.metrics("policy")]
        texts = [row["text"] for row in run.samples("policy")]
        rewards = [row["reward"] for row in read_jsonl_tolerant(path)]
        told = {"features": float(rows.sum()), "final": final, "curve": curve, "texts": texts, "rewards": rewards}
        return run.finish(told) | {"minutes": 0, "peak_rss_gib": 0}


def flipped(data: bytes, place: float) -> bytes:
    at = min(int(len(data) * place), len(data) - 1)
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def as_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "half is missing": rewritten(lambda data: data[: len(data) // 2]),
    "last byte is missing": rewritten(lambda data: data[:-1]),
    "last line is missing": rewritten(lambda data: b"".join(data.splitlines(keepends=True)[:-1])),
    "first line is missing": rewritten(lambda data: b"".join(data.splitlines(keepends=True)[1:])),
    "last line is there twice": rewritten(lambda data: data + data.splitlines(keepends=True)[-1]),
    "zeros": rewritten(lambda data: bytes(len(data))),
    "zeros in the middle": rewritten(lambda data: data[: len(data) // 2] + bytes(8) + data[len(data) // 2 + 8 :]),
    "a bit near the beginning": rewritten(lambda data: flipped(data, 0.1)),
    "a bit in the middle": rewritten(lambda data: flipped(data, 0.5)),
    "a bit near the end": rewritten(lambda data: flipped(data, 0.97)),
    "empty": rewritten(lambda data: b""),
    "a list": rewritten(lambda data: b"[1, 2]\n"),
    "a list of pairs": rewritten(lambda data: b'[["recipe", 1]]\n'),
    "an empty object": rewritten(lambda data: b"{}\n"),
    "a number": rewritten(lambda data: b"5\n"),
    "nested too deeply": rewritten(lambda data: b"[" * 100_000),
    "no UTF-8": rewritten(lambda data: b"\xff\xfe" + data),
    "deleted": Path.unlink,
    "a folder in its place": as_a_folder,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run: finished, and stopped or killed in a stage or between stages."""
    folder = tmp_path_factory.mktemp("damage")
    recipe(folder / "finished")
    for place in ("step 3", "report"):
        with pytest.raises(Stopped):
            recipe(folder / f"stopped at {place}", stop_at=place, killed=folder / f"killed at {place}")
    return {place.name: place for place in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return recipe(tmp_path_factory.mktemp("damage") / "undamaged")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("state", STATES)
def test_a_damaged_file_gives_the_same_figures_or_an_error_that_names_it(
    runs: dict[str, Path], expected: dict[str, Any], tmp_path: Path, state: str, damage: str
) -> None:
    names = [str(file.relative_to(runs[state])) for file in sorted(runs[state].rglob("*")) if file.is_file()]
    assert len(names) >= 8
    for name in names:
        folder = tmp_path / f"{zlib.crc32(name.encode())}"
        shutil.copytree(runs[state], folder)
        DAMAGES[damage](folder / name)
        try:
            found = recipe(folder)
        except RunError as error:
            message = str(error)
            assert name.split("/")[-1] in message or name.split("/")[-2] in message, f"{name}: {message}"
        else:
            assert found == expected, f"{name} with {damage}"


@pytest.mark.parametrize("name", ["features", "policy", "policy/checkpoints", "policy/model", "evaluate"])
def test_a_file_in_the_place_of_a_folder_is_an_error_that_names_it(
    runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    for state in ("finished", "stopped at step 3"):
        folder = tmp_path / state
        shutil.copytree(runs[state], folder)
        if not (folder / name).exists() or (name.endswith("checkpoints") and state == "finished"):
            continue
        shutil.rmtree(folder / name)
        (folder / name).write_text("in the way")
        with pytest.raises(RunError, match=name.rsplit("/", maxsplit=1)[-1]):
            recipe(folder)


def test_what_the_error_says_to_delete_makes_the_run_whole_again(
    runs: dict[str, Path], expected: dict[str, Any], tmp_path: Path
) -> None:
    for state, damaged, deleted in (
        ("finished", "evaluate/rollouts.jsonl", "evaluate"),
        ("finished", "policy/model/adapter.safetensors", "policy"),
        ("finished", "policy/stage.json", "policy/stage.json"),
        ("finished", "features/part-00001.safetensors", "features"),
        ("stopped at step 3", "policy/checkpoints/step-000002/tensors.safetensors", "policy/checkpoints/step-000002"),
    ):
        folder = tmp_path / damaged.replace("/", "-")
        shutil.copytree(runs[state], folder)
        DAMAGES["a bit in the middle"](folder / damaged)
        with pytest.raises(RunError, match=r"[Dd]elete"):
            recipe(folder)
        remove = shutil.rmtree if (folder / deleted).is_dir() else Path.unlink
        remove(folder / deleted)
        assert recipe(folder) == expected, damaged


@pytest.mark.parametrize("other", ["policy", "evaluate"])
def test_a_stage_in_the_place_of_another_is_an_error_that_names_both(
    runs: dict[str, Path], tmp_path: Path, other: str
) -> None:
    shutil.copytree(runs["finished"], tmp_path / "run")
    first, second = ("policy", "evaluate") if other == "evaluate" else ("evaluate", "policy")
    shutil.rmtree(tmp_path / "run" / first)
    shutil.copytree(runs["finished"] / second, tmp_path / "run" / first)
    with pytest.raises(RunError, match=f"{first}/stage.json is damaged: it belongs to stage '{second}'"):
        recipe(tmp_path / "run")


@pytest.mark.parametrize("sessions", [["x"], [{}], [{"minutes": "x", "peak_rss_gib": 1.0}], [None]], ids=str)
def test_a_record_whose_sessions_have_other_types_is_an_error(
    runs: dict[str, Path], tmp_path: Path, sessions: list[Any]
) -> None:
    shutil.copytree(runs["finished"], tmp_path / "run")
    record, _ = read_sealed(tmp_path / "run" / "run.json", remedy="")
    write_sealed(tmp_path / "run" / "run.json", {**record, "sessions": sessions})
    with pytest.raises(RunError, match=r"run\.json is damaged: it has the session"):
        recipe(tmp_path / "run")


def test_rows_that_are_missing_are_counted(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["finished"], tmp_path / "run")
    path = tmp_path / "run" / "evaluate" / "rollouts.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    with pytest.raises(RunError, match=r"rollouts\.jsonl is damaged: it has 2 rows but 5 were written.*delete"):
        recipe(tmp_path / "run")


def test_a_report_is_not_written_again_from_damaged_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.open(tmp_path / "run", recipe="own", arguments={}) as run:
        (tmp_path / "run" / "report.json").write_text('{"title": "Helpful and harmless", "notes": ["12 seeds"]}')
        run.finish({})
    main_status = []
    for text in (None, '{"title": "Helpful and harmless", "notes": ["13 seeds"]}'):
        if text is not None:
            (tmp_path / "run" / "report.json").write_text(text)
        with pytest.raises(SystemExit) as caught:
            main(["report", str(tmp_path / "run")])
        main_status.append(caught.value.code)
    assert main_status == [0, 2]
    assert "report.json is damaged" in capsys.readouterr().err


def test_a_record_of_another_version_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("run.json", "policy/stage.json"):
        shutil.copytree(runs["finished"], tmp_path / "run")
        record = json.loads((tmp_path / "run" / name).read_text())
        record["seal"]["version"] = 99
        (tmp_path / "run" / name).write_text(json.dumps(record))
        with pytest.raises(RunError, match="written by another version of poise: its seal has version 99"):
            recipe(tmp_path / "run")
        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("damage", ["half is missing", "a bit near the end", "deleted", "zeros"])
def test_a_model_of_a_run_is_not_used_when_it_is_damaged(tmp_path: Path, damage: str) -> None:
    with Run.open(tmp_path / "run", recipe="own", arguments={}) as run:
        stage, model = run.stage("policy"), run.stage("scores")
        Policy(load_backbone("random:llama"), Lora(rank=2)).save_pretrained(stage.path / "model")
        ScoreModel(load_backbone("random:llama")).save_pretrained(model.path / "model")
        stage.finish({})
        model.finish({})
    load_policy(str(stage.path / "model"))
    load_score_model(model.path / "model")
    DAMAGES[damage](stage.path / "model" / "adapter_model.safetensors")
    DAMAGES[damage](model.path / "model" / "score_head.safetensors")
    with pytest.raises(RunError, match=r"adapter_model\.safetensors is (damaged|missing).*repeat the run's command"):
        load_policy(str(stage.path / "model"))
    with pytest.raises(RunError, match=r"score_head\.safetensors is (damaged|missing).*repeat the run's command"):
        load_score_model(model.path / "model")


def test_a_damaged_part_is_found_whatever_the_order_of_rows(tmp_path: Path) -> None:
    def compute(numbers: Any) -> torch.Tensor:
        return torch.tensor([[float(number)] for number in numbers])

    keys = [f"row-{i}" for i in range(300)]
    FeatureCache(tmp_path).get(keys, compute)
    parts = sorted(tmp_path.glob("part-*"))
    assert len(parts) == 3
    parts[0].unlink()
    with pytest.raises(RunError, match="part-00000"):
        FeatureCache(tmp_path)
