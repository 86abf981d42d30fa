"""A recipe is one whole file of public parts: whoever copies it owns it."""

import ast

import pytest

from poise.cli.recipes import read_card, recipe_files

STUDIES = {name: path.read_text("utf-8") for name, path in recipe_files().items() if read_card(path).method}


@pytest.mark.parametrize("name", STUDIES)
def test_a_recipe_imports_public_modules_and_names_only(name):
    imports = [node for node in ast.walk(ast.parse(STUDIES[name])) if isinstance(node, ast.ImportFrom)]
    parts = [part for node in imports for part in [*(node.module or "").split("."), *(a.name for a in node.names)]]
    assert not [part for part in parts if part.startswith("_") and part != "__future__"]
    assert not [node.module for node in imports if (node.module or "").startswith("poise.recipes")]
