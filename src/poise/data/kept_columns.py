"""Columns of a user's files that become tags of the prompt, whatever a format would read them as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEPT = "poise: kept columns"  # where they travel among the columns of a row


def with_kept(further: Mapping[str, Any]) -> dict[str, Any]:
    """The further columns of a row, with those that were kept under their own names.

    >>> with_kept({"id": 3, KEPT: {"answer": "4"}})
    {'id': 3, 'answer': '4'}
    """
    return {name: value for name, value in further.items() if name != KEPT} | dict(further.get(KEPT, {}))
