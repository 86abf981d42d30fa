"""What all tests share: no test reaches the network, and real data is used where POISE_DATA names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The same examples on every machine and in every run; HYPOTHESIS_PROFILE=default searches for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture
def poise_data() -> Path:
    """The folder of real data sets that POISE_DATA names."""
    folder = os.environ.get("POISE_DATA", "")
    if not folder:
        pytest.skip("POISE_DATA is not set: it names the folder with the real data sets (docs/data.md)")
    return Path(folder)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: archives hold the time, so that two processes would collect different tests."""
    return argname if isinstance(val, bytes) else None
