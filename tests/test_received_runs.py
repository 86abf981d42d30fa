"""A run from somebody else is data until its reader says otherwise: its recipe is code, and runs only when trusted."""

from __future__ import annotations

import compileall
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from poise.cli import main

HARMLESS = '''"""Count."""

from pathlib import Path

from poise.run import Run

Path("was-run").write_text("by the recipe")


def mine(*, steps: int = 3, folder: str | None = None) -> Run:
    """Count to a number.

    Args:
        steps: how far to count.
    """
    with Run.open(folder, recipe="mine", arguments={"steps": steps}) as run:
        run.finish({"steps": steps})
    return run
'''


@pytest.fixture
def received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was made elsewhere, with the recipe that made it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HARMLESS)
    assert call("run", "mine.py", "--folder", "received") == 0
    Path("was-run").unlink()
    Path("mine.py").unlink()
    return Path("received")


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code if isinstance(caught.value.code, int) else 0


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--from", "received/run.json", "--help"),
        ("run", "--from", "received", "--help"),
        ("run", "--from=received", "--steps", "2"),
        ("run", "--from", "received/run.json", "--trust-recipe", "--help"),
        ("run", "received/recipe.py"),
        ("run", "received/recipe.py", "--help"),
        ("plan", "received/recipe.py"),
        ("list",),
        ("report", "received"),
        ("copy", "received/recipe.py", "copied.py"),
    ],
)
def test_no_command_runs_a_recipe_that_came_with_a_run(received: Path, words: tuple[str, ...]) -> None:
    call(*words)
    assert not Path("was-run").exists()


def test_the_refusal_shows_the_file_its_checksum_and_the_flag(
    received: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "--from", "received") == 2
    told = capsys.readouterr().err
    checksum = sha256((received / "recipe.py").read_bytes()).hexdigest()
    assert (
        f"received/recipe.py is code stored in the run, and it would run with your permissions (sha256 {checksum}"
        in told
    )
    assert "--trust-recipe" in told
    assert call("run", "--from", "received", "--trust-recipe", "--folder", "again") == 0
    assert checksum in capsys.readouterr().err
    assert Path("was-run").exists()


def test_help_of_a_received_recipe_is_read_from_its_source(received: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--from", "received", "--help") == 0
    told = capsys.readouterr().out
    assert "--steps  how far to count." in told
    assert "was not executed for this help" in told


def test_a_compiled_file_beside_the_recipe_is_never_run(received: Path) -> None:
    source = received / "recipe.py"
    kept = source.read_text()
    source.write_text(kept.replace("by the recipe", "by a hidden one"))
    compileall.compile_file(str(source), quiet=1, invalidation_mode=None)
    (compiled,) = (received / "__pycache__").glob("recipe.*.pyc")
    data = bytearray(compiled.read_bytes())
    data[4:8] = (1).to_bytes(4, "little")  # not checked against the source
    compiled.write_bytes(data)
    source.write_text(kept)
    assert call("run", "--from", "received", "--trust-recipe", "--folder", "again") == 0
    assert Path("was-run").read_text() == "by the recipe"


def test_a_recipe_that_is_not_the_one_the_run_was_made_with_is_refused(
    received: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (received / "recipe.py").write_text(HARMLESS + "\n# more\n")
    assert call("run", "--from", "received", "--trust-recipe") == 2
    assert "recipe.py is damaged" in capsys.readouterr().err
    (received / "recipe.py").unlink()
    assert call("run", "--from", "received", "--trust-recipe") == 2
    assert "recipe.py is missing" in capsys.readouterr().err
    assert not Path("was-run").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff\xfe", b"[" * 50_000, b'{"recipe": 1, "arguments": {}}'])
def test_a_record_that_is_none_is_an_error_in_one_line(
    received: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (received / "run.json").write_bytes(content)
    assert call("run", "--from", "received/run.json") == 2
    told = capsys.readouterr().err
    assert "is not the run.json of a run" in told
    assert "Traceback" not in told


def test_a_changed_record_is_refused(received: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((received / "run.json").read_text())
    record["arguments"]["steps"] = 4
    (received / "run.json").write_text(json.dumps(record))
    assert call("run", "--from", "received", "--trust-recipe") == 2
    assert "run.json is damaged" in capsys.readouterr().err
    shutil.rmtree(received)
    assert call("run", "--from", "received") == 2
    assert "received" in capsys.readouterr().err
