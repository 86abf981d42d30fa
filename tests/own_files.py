"""Files of a user's own, as tests write them, and short texts for scorers by name to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from poise.types import Completion, Prompt

Command = Callable[..., Path]
TEXTS = (
    ("How are you?", "Fine, and you?"),
    ("Why?", "No."),
    ("A longer question, for the padding", "Because it is so."),
)
PROMPTS = [Prompt.of(question) for question, _ in TEXTS]
ANSWERS = [Completion(prompt_id="", text=answer) for _, answer in TEXTS]


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """A JSONL file of the rows; its path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)
