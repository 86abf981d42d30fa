"""The README's example runs as it stands, with a tiny model and few steps in place of its own; its links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
TINY = (  # what the README says, as a pattern, and what the test says instead
    (r'"smollm2-135m"', '"random:llama"'),
    (r"steps=\d+", "steps=2"),
    (r"prompts=data\.prompts", "prompts=data.prompts[:3]"),
    (r"data\.comparisons, data\.labels", "data.comparisons[:40], data.labels[:10]"),
)


def example() -> str:
    """The one block of Python in the README."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    return block


def test_the_example_is_short() -> None:
    assert len(example().splitlines()) <= 25


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = example()
    for pattern, replacement in TINY:
        code, count = re.subn(pattern, replacement, code)
        assert count, f"the example no longer holds {pattern}"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    run = tmp_path / "runs" / "mine"
    assert (run / "model" / "adapter_model.safetensors").exists()
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert sum('"stage": "policy"' in row for row in rows) == 2
    assert all('"multiplier"' in row for row in rows if '"stage": "policy"' in row)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing


def test_every_command_in_the_table_exists() -> None:
    from typer.main import get_command

    from poise.cli import app

    named = set(re.findall(r"`poise ([\w-]+)", README))
    assert named <= set(get_command(app).commands)  # type: ignore[attr-defined]
    assert set(get_command(app).commands) <= named  # type: ignore[attr-defined]


def test_recipe_options_named_in_the_pages_exist() -> None:
    import inspect

    from poise.cli.recipes import find_recipe, load_recipe

    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for recipe, options in re.findall(
            r"poise run ([a-z][a-z-]*[a-z])(?![\w.-])([^`\n#]*)", page.read_text("utf-8")
        ):
            function = load_recipe(find_recipe(recipe))
            known = {name.replace("_", "-") for name in inspect.signature(function).parameters} | {"help"}
            assert set(re.findall(r"--([a-z-]+)", options)) <= known, f"{page.name}: {recipe} {options}"
