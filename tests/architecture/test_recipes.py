"""A recipe that is a study is one whole file: short, of public parts, and no copy of another one."""

import ast
from collections import defaultdict

import pytest

from poise.cli.recipes import read_card, recipe_files

STUDIES = {name: path.read_text("utf-8") for name, path in recipe_files().items() if read_card(path).method}
SHARED = 8  # lines


@pytest.mark.parametrize("name", STUDIES)
def test_a_recipe_has_60_to_150_lines(name):
    assert 60 <= len(STUDIES[name].splitlines()) <= 150


@pytest.mark.parametrize("name", STUDIES)
def test_a_recipe_imports_public_modules_and_names_only(name):
    imports = [node for node in ast.walk(ast.parse(STUDIES[name])) if isinstance(node, ast.ImportFrom)]
    parts = [part for node in imports for part in [*(node.module or "").split("."), *(a.name for a in node.names)]]
    assert not [part for part in parts if part.startswith("_") and part != "__future__"]
    assert not [node.module for node in imports if (node.module or "").startswith("poise.recipes")]


def test_no_two_recipes_share_a_run_of_eight_lines():
    places = defaultdict(set)
    for name, text in STUDIES.items():
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        for start in range(len(lines) - SHARED + 1):
            places["\n".join(lines[start : start + SHARED])].add(name)
    assert not {run: names for run, names in places.items() if len(names) > 1}
