"""The page on papers names what is there, and all of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from poise.cli.recipes import load_recipe, recipe_files

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "papers.md").read_text("utf-8")
NAMES = re.findall(r"\[`(\w+)`\]\(\.\./(src/[\w/]+\.py)\)", PAGE)


@pytest.mark.parametrize("path", sorted({path for _, path in NAMES}))
def test_every_function_is_where_its_link_leads(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    there |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert {name for name, where in NAMES if where == path} <= there


def test_every_recipe_named_is_there_and_every_recipe_is_named() -> None:
    cells = [line.split(" | ")[1] for line in PAGE.splitlines() if line.count(" | ") == 3 and "`" in line]
    named = {words.split()[0] for cell in cells for words in re.findall(r"`([^`]+)`", cell)}
    assert named == set(recipe_files())


def test_losses_named_are_those_of_the_recipe() -> None:
    from typing import get_args

    from poise.recipes.dpo import LossName

    assert set(re.findall(r"`dpo --loss ([\w-]+)`", PAGE)) <= set(get_args(LossName))
    assert callable(load_recipe(recipe_files()["dpo"]))


def test_every_paper_in_the_code_is_on_the_page() -> None:
    parts = (
        "functional",
        "models",
        "train",
        "worlds",
        "evaluate",
        "recipes",
    )  # papers of data sets stand in docs/data.md
    code = "".join(path.read_text("utf-8") for part in parts for path in (ROOT / "src" / "poise" / part).rglob("*.py"))
    missing = set(re.findall(r"arXiv:(\d{4}\.\d{5})", code)) - set(re.findall(r"abs/(\d{4}\.\d{5})", PAGE))
    assert not missing
    strangers = set(re.findall(r"abs/(\d{4}\.\d{4,5})", PAGE)) - set(re.findall(r"(\d{4}\.\d{4,5})", code))
    assert not strangers
