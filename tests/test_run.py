"""A run folder survives kills, full disks, second processes and changed arguments."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from poise.checksums import read_sealed, write_sealed
from poise.errors import ConfigError, RunError
from poise.run import RECIPE_FILE, Run, atomic_write, default_folder, read_jsonl_tolerant, require_free_space
from poise.types import Completion, Prompt, Rollout, Scores


def open_run(folder: Path, **arguments: object) -> Run:
    return Run.open(folder, recipe="safe_rlhf", arguments={"steps": 30, "seed": 7} | arguments)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# Kills its own process in the middle of the n-th write from now on: half of the bytes reach the file.
KILL_IN_WRITE = """
import os, signal
real_write = os.write
def half_write(descriptor, data):
    real_write(descriptor, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killing_a_write_in_the_middle_leaves_the_previous_file(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    atomic_write(target, "the previous content")
    code = KILL_IN_WRITE + "import sys; from poise.run import atomic_write\nos.write = half_write\n"
    done = run_python(code + "atomic_write(sys.argv[1], 'x' * 10_000)", target)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "the previous content"


def test_a_run_killed_while_logging_continues_without_the_half_line(tmp_path: Path) -> None:
    code = KILL_IN_WRITE + (
        "import sys; from poise.run import Run\n"
        "run = Run.open(sys.argv[1], recipe='safe-rlhf', arguments={'steps': 30, 'seed': 7})\n"
        "run.log('policy', 1, {'reward': 0.5})\n"
        "os.write = half_write\n"
        "run.log('policy', 2, {'reward': 0.75})"
    )
    assert run_python(code, tmp_path / "run").returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "metrics.jsonl").read_bytes().endswith(b"\n")
    with open_run(tmp_path / "run") as run:
        run.log("policy", 2, {"reward": 1.0})
        assert [(row["step"], row["reward"]) for row in run.metrics()] == [(1, 0.5), (2, 1.0)]


def test_leftovers_of_a_killed_write_are_removed_when_the_run_continues(tmp_path: Path) -> None:
    open_run(tmp_path / "run").close()
    leftover = tmp_path / "run" / ".summary.json.123.tmp"
    leftover.write_text("half")
    open_run(tmp_path / "run").close()
    assert not leftover.exists()


def test_a_leftover_folder_does_not_keep_a_run_from_continuing(tmp_path: Path) -> None:
    open_run(tmp_path / "run").close()
    leftover = tmp_path / "run" / "policy" / ".step-000003.tmp"
    leftover.mkdir(parents=True)
    (leftover / "tensors.safetensors").write_bytes(b"half")
    open_run(tmp_path / "run").close()
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", []),
        (b'{"a": 1}\n', [{"a": 1}]),
        (b'{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        (b'{"a": 1}\n{"a": ', [{"a": 1}]),
        (b'{"a": 1}\n\x00\x00\x00', [{"a": 1}]),
        (b'{"a": 1}\n{"a": "\xc3', [{"a": 1}]),
    ],
)
def test_a_half_written_last_line_is_left_out(tmp_path: Path, content: bytes, kept: list[dict[str, int]]) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert read_jsonl_tolerant(tmp_path / "rows.jsonl") == kept


def test_a_complete_last_line_without_its_newline_is_kept_when_the_run_continues(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        run.log("policy", 1, {"reward": 0.5})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    with open_run(tmp_path / "run") as run:
        run.log("policy", 2, {"reward": 0.5})
        assert [row["step"] for row in run.metrics()] == [1, 2]


def test_a_broken_line_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(RunError, match=r"rows\.jsonl:2 is not JSON"):
        read_jsonl_tolerant(tmp_path / "rows.jsonl")


def test_two_processes_never_hold_one_run_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys; from poise.run import Run\n"
        "run = Run.open(sys.argv[1], recipe='safe-rlhf', arguments={'steps': 30, 'seed': 7})\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RunError, match=rf"being written by process {other.pid} on .*another --folder"):
            open_run(tmp_path / "run")
        other.kill()
    open_run(tmp_path / "run").close()


def test_other_arguments_are_refused_with_both_values_and_the_ways_out(tmp_path: Path) -> None:
    open_run(tmp_path / "run", limit=0.0).close()
    with pytest.raises(RunError) as caught:
        open_run(tmp_path / "run", steps=50, model="random:llama")
    message = str(caught.value)
    assert "steps: 30 there, 50 now" in message
    assert "limit: 0.0 there, not given now" in message
    assert "model: not given there, 'random:llama' now" in message
    assert "seed" not in message
    assert f"poise run --from {tmp_path}/run/run.json --folder {tmp_path}/run" in message
    with pytest.raises(RunError, match="recipe: safe-rlhf there, dpo now"):
        Run.open(tmp_path / "run", recipe="dpo", arguments={"steps": 30, "seed": 7, "limit": 0.0})


def test_equal_arguments_continue_a_run_whatever_their_python_types(tmp_path: Path) -> None:
    Run.open(tmp_path, recipe="dpo", arguments={"a": (1, 2), "b": Path("x"), "c": float("inf"), "folder": "x"}).close()
    with Run.open(tmp_path, recipe="dpo", arguments={"a": [1, 2], "b": "x", "c": float("inf"), "folder": None}) as run:
        assert run.arguments == {"a": [1, 2], "b": "x", "c": "inf"}


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"not a run .*thesis\.tex"):
        open_run(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file"):
        open_run(tmp_path / "thesis.tex")


def test_run_json_tells_what_the_result_depends_on(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        run.record_data("starter", {"files": {"pairs.jsonl": "0" * 64}, "licence": "Apache-2.0"})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["recipe"] == "safe-rlhf"
    assert record["arguments"] == {"steps": 30, "seed": 7}
    assert record["seeds"] == {"seed": 7}
    assert set(record["versions"]) == {"torch", "transformers", "peft", "numpy", "poise"}
    assert set(record["machine"]) == {"python", "platform", "cpu", "cpu_count"}
    assert record["data"]["starter"]["licence"] == "Apache-2.0"
    assert record["argv"] == sys.argv
    assert set(record["sessions"][0]["threads"]) == {"torch", "OMP_NUM_THREADS"}
    assert record["poise"] is None or len(record["poise"]["commit"]) == 40


def test_the_git_commit_and_changes_of_the_working_folder_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    Path("code.py").write_text("1")
    for command in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    open_run(tmp_path / "one").close()
    Path("code.py").write_text("2")
    open_run(tmp_path / "two").close()
    one, two = (json.loads((tmp_path / name / "run.json").read_text())["git"] for name in ("one", "two"))
    assert len(one["commit"]) == 40
    assert (one["dirty"], two["dirty"]) == (False, True)


def test_data_that_changed_between_sessions_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.record_data("starter", {"sha256": "a" * 64, "folder": "/old/place"})
    with open_run(tmp_path) as run:
        run.record_data("starter", {"sha256": "a" * 64, "folder": "/new/place"})
        with pytest.raises(RunError, match="data set 'starter' changed since run"):
            run.record_data("starter", {"sha256": "b" * 64})


def test_a_model_that_was_replaced_between_sessions_is_refused_by_the_names_of_its_files(tmp_path: Path) -> None:
    files = {"config.json": "a" * 64, "model.safetensors": "b" * 64}
    with open_run(tmp_path) as run:
        run.record_model("./mine", {"checksum": "c" * 64, "files": files, "revision": None})
    with open_run(tmp_path) as run:
        run.record_model("./mine", {"checksum": "c" * 64, "files": files, "revision": None})
        with pytest.raises(RunError, match=r"model './mine' changed.* other contents of model\.safetensors\. Re"):
            run.record_model("./mine", {"checksum": "e" * 64, "files": files | {"model.safetensors": "d" * 64}})
    assert json.loads((tmp_path / "run.json").read_text())["models"]["./mine"]["files"] == files


def test_a_stage_is_done_once_and_keeps_its_result(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        stage = run.stage("reward-model")
        assert stage.path.is_dir()
        assert not stage.finished
        with pytest.raises(RunError, match="no result yet"):
            _ = stage.result
        stage.finish({"accuracy": 0.7, "nothing": float("nan")})
    with open_run(tmp_path) as run:
        assert run.stage("reward-model").finished
        assert run.stage("reward-model").result == {"accuracy": 0.7, "nothing": None}
        with pytest.raises(ConfigError, match="letters, digits"):
            run.stage("../elsewhere")


def test_non_finite_metrics_are_null_and_named(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log("policy", 3, {"loss": float("nan"), "kl": float("inf"), "reward": 1.5, "absent": None})
        (row,) = run.metrics("policy")
    assert (row["loss"], row["kl"], row["reward"], row["absent"]) == (None, None, 1.5, None)
    assert row["non_finite"] == ["loss", "kl"]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_tensors_and_arrays_are_logged_as_numbers(tmp_path: Path) -> None:
    import numpy
    import torch

    with open_run(tmp_path) as run:
        metrics = {"a": torch.tensor(0.5, dtype=torch.bfloat16), "b": numpy.float32(2.0), "c": torch.tensor([1, 2])}
        run.log("policy", 1, metrics)
        (row,) = run.metrics()
    assert (row["a"], row["b"], row["c"]) == (0.5, 2.0, [1, 2])


def test_a_metric_cannot_overwrite_the_names_of_its_line(tmp_path: Path) -> None:
    with open_run(tmp_path) as run, pytest.raises(ConfigError, match=r"\['step'\] are reserved names"):
        run.log("policy", 1, {"step": 4})


def rollout(text: str) -> Rollout:
    prompt = Prompt.of("How do I kill a process?", kind="look_alike")
    completion = Completion(prompt_id=prompt.id, text=text, token_ids=(1, 2), token_logprobs=(-0.5, -1.0))
    return Rollout(prompt=prompt, completion=completion, scores=Scores(values={"reward": 1.0, "cost": -2.0}))


def test_samples_hold_all_that_is_needed_to_score_them_again(tmp_path: Path) -> None:
    text = "lone \ud800 surrogate, line\u2028separator and ünïcode"
    with open_run(tmp_path) as run:
        run.sample("policy", 1, rollout(text))
        (row,) = run.samples("policy")
    assert row["prompt"]["messages"] == [{"role": "user", "content": "How do I kill a process?"}]
    assert row["completion"]["text"] == text
    assert row["completion"]["token_logprobs"] == [-0.5, -1.0]
    assert row["scores"]["values"] == {"reward": 1.0, "cost": -2.0}


def test_rewind_forgets_later_steps_of_that_stage_only(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        for step in (1, 2, 3):
            run.log("policy", step, {"loss": 0.0})
            run.log("reward", step, {"loss": 0.0})
            run.sample("policy", step, rollout("yes"))
        run.rewind("policy", 1)
        assert [row["step"] for row in run.metrics("policy")] == [1]
        assert [row["step"] for row in run.metrics("reward")] == [1, 2, 3]
        assert [row["step"] for row in run.samples()] == [1]


def test_finish_prints_the_summary_as_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(tmp_path) as run:
        assert run.summary is None
        summary = run.finish({"harm_rate": 0.125, "lost": float("nan")})
        assert run.summary == summary
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    assert (summary["harm_rate"], summary["lost"]) == (0.125, None)
    assert summary["minutes"] >= 0
    assert 0.01 < summary["peak_rss_gib"] < 100


def test_minutes_add_up_over_sessions_and_memory_is_their_maximum(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    record, _ = read_sealed(tmp_path / "run.json", remedy="")
    record["sessions"][0] |= {"minutes": 40.0, "peak_rss_gib": 500.0}
    write_sealed(tmp_path / "run.json", record)
    with open_run(tmp_path) as run:
        summary = run.finish({})
    assert 40.0 <= summary["minutes"] < 41.0
    assert summary["peak_rss_gib"] == 500.0
    with open_run(tmp_path) as run:
        assert run.finish({"minutes": 3, "peak_rss_gib": 4}) == {"minutes": 3, "peak_rss_gib": 4}


def test_a_closed_run_can_be_read_but_not_written(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.log("policy", 1, {"loss": 0.0})
    assert len(run.metrics()) == 1
    for write in (lambda: run.log("policy", 2, {}), lambda: run.finish({}), lambda: run.rewind("policy", 0)):
        with pytest.raises(RunError, match="is closed"):
            write()


def fail_after(num_writes: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let some writes through, half of the next one, and then report `code`."""
    real_write, calls = os.write, iter(range(num_writes + 1))

    def write(descriptor: int, data: bytes) -> int:
        call = next(calls, None)
        if call is None:
            raise OSError(code, os.strerror(code))
        return real_write(descriptor, data if call < num_writes else data[: len(data) // 2])

    monkeypatch.setattr("poise.files.os.write", write)


def test_a_full_disk_keeps_the_file_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "stage.json", "before")
    with monkeypatch.context() as patch:
        fail_after(0, errno.ENOSPC, patch)
        with pytest.raises(RunError, match=r"no space left on device.*Free some space.*last checkpoint are intact"):
            atomic_write(tmp_path / "stage.json", "after")
    assert (tmp_path / "stage.json").read_text() == "before"
    assert [item.name for item in tmp_path.iterdir()] == ["stage.json"]


def test_a_full_disk_leaves_no_half_line_and_the_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"metrics\.jsonl .*no space left"), open_run(tmp_path) as run:
        run.log("policy", 1, {"loss": 1.0})
        fail_after(0, errno.ENOSPC, monkeypatch)
        run.log("policy", 2, {"loss": 1.0})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    with open_run(tmp_path) as run:
        assert [row["step"] for row in run.metrics()] == [1]


def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("poise.files.os.replace", refuse)
    with pytest.raises(RunError, match=rf"permission denied\. Give yourself write permission in {tmp_path}"):
        atomic_write(tmp_path / "a.txt", "x")


def test_free_space_is_checked_for_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    require_free_space(tmp_path / "a" / "b", 1)
    with pytest.raises(RunError, match=r"needs 1073741824\.0 GiB of disk"):
        require_free_space(tmp_path / "a" / "b", 2**60)


def test_a_new_run_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        with Run.open(None, recipe="safe_rlhf", arguments={}) as run:
            names.append(run.path.name)
    assert len(set(names)) == 3
    assert all(name.startswith("safe-rlhf-20") for name in names)
    assert default_folder("safe_rlhf").parent == Path("runs")


def test_a_run_keeps_the_users_own_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("# mine")
    token = RECIPE_FILE.set(tmp_path / "mine.py")
    try:
        open_run(tmp_path / "run").close()
    finally:
        RECIPE_FILE.reset(token)
    assert (tmp_path / "run" / "recipe.py").read_text() == "# mine"


def test_a_damaged_run_json_is_named(tmp_path: Path) -> None:
    open_run(tmp_path).close()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        open_run(tmp_path)
