"""What tests of the stages' commands start from: a tiny model of one's own in a folder, and a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from own_files import Command
from poise.cli import main
from poise.models.load import load_backbone


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as transformers writes it, with a tiny model."""
    folder = tmp_path_factory.mktemp("own") / "model"
    backbone = load_backbone("random:llama?layers=2&hidden=32", seed=3)
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Run a recipe as the command line does, in a folder of its own, which is returned."""

    def run(recipe: str, *words: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / recipe
        with pytest.raises(SystemExit) as stop:
            main(["run", recipe, *words, "--folder", str(folder)])
        assert not stop.value.code
        return folder

    return run
