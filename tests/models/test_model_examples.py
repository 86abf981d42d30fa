"""The examples in the docstrings of data, models and rollout run and give what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "data.batching",
    "models.tiny",
    "models.decoder",
    "rollout.native",
    "rollout.scripted",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f"poise.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
