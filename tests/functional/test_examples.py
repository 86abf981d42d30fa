"""The examples in the docstrings run and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

from poise import functional

MODULES = [module.name for module in pkgutil.iter_modules(functional.__path__)]


def modules():
    return [importlib.import_module(f"poise.functional.{name}") for name in MODULES]


@pytest.mark.parametrize("module", modules(), ids=MODULES)
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("module", modules(), ids=MODULES)
def test_every_public_function_has_an_example(module):
    functions = [
        thing
        for name, thing in vars(module).items()
        if not name.startswith("_") and callable(thing) and not isinstance(thing, type)
        if thing.__module__ == module.__name__
    ]
    assert functions
    assert [function.__name__ for function in functions if ">>>" not in (function.__doc__ or "")] == []
