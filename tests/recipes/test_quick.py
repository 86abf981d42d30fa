"""`quick` fills what was not given, and what was given counts: in every recipe."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from poise.cli import main
from poise.cli.recipes import find_recipe, load_recipe, recipe_files
from poise.run import Run

RECIPES = sorted(recipe_files())


class Opened(Exception):
    """The run was about to begin with these arguments."""


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(folder: Any, *, recipe: str, arguments: Any) -> None:
        raise Opened(json.loads(json.dumps(dict(arguments), default=str)))

    monkeypatch.setattr(Run, "open", opened)


def recorded(call: Any, *words: Any, **arguments: Any) -> dict[str, Any]:
    with pytest.raises(Opened) as caught:
        call(*words, **arguments)
    return dict(caught.value.args[0])


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", RECIPES)
def test_given_arguments_win_over_quick_from_python(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    own = {key: value for key, value in recipe.quick.items() if key in signature(recipe.build).parameters}
    defaults = {each.name: each.default for each in signature(recipe).parameters.values()}
    assert recipe.quick.keys() <= defaults.keys()
    for given in own:
        found = recorded(recipe, quick=True, **{given: defaults[given]})
        assert found[given] == plain(defaults[given]), given
        assert {key: found[key] for key in own if key != given} == {
            key: plain(value) for key, value in own.items() if key != given
        }
    found = recorded(recipe)
    assert {key: found[key] for key in own} == {key: plain(defaults[key]) for key in own}


@pytest.mark.parametrize("name", [name for name in RECIPES if "model" in load_recipe(find_recipe(name)).quick])
def test_given_arguments_win_over_quick_on_the_command_line(name: str) -> None:
    quick = load_recipe(find_recipe(name)).quick
    found = recorded(main, ["run", name, "--quick", "--model", "./mine", "--seeds", "3"])
    assert (found["model"], found["seeds"], found["quick"]) == ("./mine", [0, 1, 2], True)
    rest = quick.keys() - {"model", "seeds", "workers"}
    assert {key: found[key] for key in rest} == {key: plain(quick[key]) for key in rest}


def test_a_recorded_run_is_repeated_quickly_but_for_what_is_given(tmp_path: Path) -> None:
    record = {"recipe": "dpo", "arguments": {"model": "smollm2-135m", "steps": 60, "loss": "ipo", "quick": False}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    found = recorded(main, ["run", "--from", str(tmp_path / "run.json"), "--quick", "--steps", "7"])
    assert (found["model"], found["steps"], found["loss"]) == ("random:llama?layers=3", 7, "ipo")
