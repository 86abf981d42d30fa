"""The examples in docstrings run and give what they show, in every module that has any."""

import doctest
import importlib
from pathlib import Path

import pytest

import poise

ROOT = Path(poise.__file__).parent
MODULES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text("utf-8") and "functional" not in path.parts  # those have a test of their own
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
