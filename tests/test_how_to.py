"""The pages that show how to do something do it."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from poise.cli import main

PAGES = sorted((Path(__file__).parents[1] / "docs" / "how-to").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_the_page_run(page: Path) -> None:
    found = doctest.testfile(str(page), module_relative=False)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_recipe_of_the_page_on_papers_runs_as_it_stands(tmp_path: Path) -> None:
    page = next(page for page in PAGES if page.stem == "add-a-paper").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(block.splitlines()) < 100
    (tmp_path / "two_limits.py").write_text(block)
    with pytest.raises(SystemExit) as stop:
        main(["run", str(tmp_path / "two_limits.py"), "--quick", "--folder", str(tmp_path / "run")])
    assert not stop.value.code
    assert "Limits are kept closer" in (tmp_path / "run" / "two-limits.md").read_text("utf-8")
