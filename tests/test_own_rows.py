"""Rows of a reader's own, such as those of the tutorial: they work alone, or an error says what they lack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from poise.cli import main

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
QUICK = (
    "--most-prompts",
    "0",
    "--quick",
    "--arms",
    "lagrangian",
    "--steps",
    "1",
    "--samples-per-step",
    "8",
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[:2],
            r"no prompt is left to evaluate on: of 1 prompts .*--data starter\+own\.jsonl",
        ),
        (lambda rows: [row | {"kind": None} for row in rows], "no test prompt says its kind"),
        (lambda rows: rows[0::2], r"is a judgement for cost \(criterion safe\)"),
        (lambda rows: rows[1::2], r"is a judgement for reward \(criterion helpful\)"),
        (lambda rows: rows[:36], "of which 0 are held back"),
        (lambda rows: rows, ""),  # harmful prompts alone: nothing can be won, and the run ends all the same
    ],
    ids=["two rows", "no kinds", "helpful alone", "safe alone", "few", "harmful alone"],
)
def test_rows_like_those_of_the_tutorial_work_alone_or_say_what_they_lack(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```jsonl\n(.*?)```", TUTORIAL.read_text("utf-8"), re.S)
    rows = [json.loads(line) for i in range(120) for line in block.replace("a lock", f"lock {i}").splitlines()]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, change(rows))), "utf-8")
    words = [
        "run",
        "safe-rlhf",
        *QUICK,
        "--model",
        "random:llama",
        "--data",
        "own.jsonl",
        "--folder",
        "runs/own",
        "--most-prompts",
        "0",
    ]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code in ((2,) if message else (0, None))
    assert re.search(message, capsys.readouterr().err)
