"""Files of a user's own, as tests write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Command = Callable[..., Path]


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """A JSONL file of the rows; its path."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)
