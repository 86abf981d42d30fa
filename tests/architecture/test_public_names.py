"""`import poise` is quick, and each of its public names is there."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import poise

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "datasets", "scipy", "peft")


def test_every_public_name_resolves() -> None:
    assert len(set(poise.__all__)) == len(poise.__all__)
    for name in poise.__all__:
        assert getattr(poise, name) is not None, name


def test_every_public_class_is_listed() -> None:
    public = {name for name, value in vars(poise).items() if isinstance(value, type) and not name.startswith("_")}
    assert public - {"Any", "Path"} <= set(poise.__all__)


def test_errors_and_nouns_are_all_public() -> None:
    for module in ("poise.errors", "poise.types"):
        found = importlib.import_module(module)
        own = {name for name, value in vars(found).items() if getattr(value, "__module__", "") == module}
        classes = {name for name in own if isinstance(getattr(found, name), type)}
        assert classes <= set(poise.__all__)


def test_what_the_python_interface_needs_is_public() -> None:
    wanted = """Algorithm Claim DAPO GRPO Lagrangian Limit MethodCard Metric NativeEngine Objective OnPolicyTrainer PID
        PPO Penalty Policy RLOO ScoreModel Study Suite Trial Unconstrained cvar fit load load_backbone load_policy
        load_score_model measure pipeline rate recipe"""
    assert set(wanted.split()) <= set(poise.__all__)
    assert {"align", "evaluate", "fit_scores", "start_model"} <= set(poise.pipeline.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'safe_rhlf'"):
        _ = poise.safe_rhlf


def imported_by(code: str) -> tuple[float, set[str]]:
    """Seconds of processor time that `code` takes in a fresh process, and the heavy packages it loads."""
    program = f"import sys, time; begin = time.process_time()\n{code}\nprint(time.process_time() - begin, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    seconds, *modules = done.stdout.splitlines()[-1].split()
    return float(seconds), set(HEAVY) & set(modules)


def test_importing_poise_is_quick_and_loads_nothing_heavy() -> None:
    seconds, heavy = imported_by("import poise; poise.Run, poise.Prompt")
    assert heavy == set()
    assert seconds < 1.0


@pytest.mark.parametrize("words", [["--help"], ["list"], ["run", "--help"], ["data", "--help"]])
def test_looking_at_the_command_line_loads_nothing_heavy(words: list[str]) -> None:
    call = f"try:\n    main({words})\nexcept SystemExit as stop:\n    assert not stop.code"
    seconds, heavy = imported_by(f"from poise.cli import main\n{call}")
    assert heavy == set()
    assert seconds < 1.0
