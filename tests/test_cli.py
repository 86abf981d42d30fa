"""The command line: a recipe's options are its signature, and every stop says how to go on."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from poise.cli import main
from poise.cli.chatting import model_of
from poise.cli.options import argument_help
from poise.cli.recipes import came_with_a_run, find_recipe, read_card, recipe_files
from poise.errors import ConfigError, ModelError

TINY = '''"""Tiny: a recipe without a model.

Further words.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from poise.run import Run

if TYPE_CHECKING:
    from poise.types import Engine

PAPER = "Nobody (2026), arXiv:0000.00000"
STAGES = "one " "stage"
DURATION = "1 second on 1 core"
EXPECTED: dict | None = {"steps": 3, "date": "2026-11-21"}


def tiny(
    model: str = "random:llama",
    *,
    steps: int = 3,
    limit: float | None = 0.0,
    optimizer: Literal["adam", "sgd"] = "adam",
    ranks: tuple[int, ...] = (4, 8),
    shuffle: bool = True,
    wait_s: float = 0.0,
    folder: str | None = None,
    quick: bool = False,
) -> Run:
    """Count to a number.

    Slowly, if asked to.

    model: what to load
    steps: how many steps
        to take
    limit    the largest allowed cost
    """
    arguments = {k: v for k, v in locals().items()}
    with Run.open(folder, recipe="tiny", arguments=arguments) as run:
        for step in range(steps):
            run.log("count", step, {"step_value": step})
            time.sleep(wait_s)
        run.finish({"steps": steps, "limit": limit})
    return run
'''


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    code = caught.value.code
    return code if isinstance(code, int) else 0


def arguments_of(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "run.json").read_text())["arguments"]


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_options_of_a_recipe_are_its_arguments(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--steps 2 --limit -0.5 --optimizer sgd --ranks 1,2 --no-shuffle --quick --folder runs/a"
    assert call("run", "tiny.py", *words.split()) == 0
    assert arguments_of("runs/a") == {
        "model": "random:llama",
        "steps": 2,
        "limit": -0.5,
        "optimizer": "sgd",
        "ranks": [1, 2],
        "shuffle": False,
        "wait_s": 0.0,
        "quick": True,
    }
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["limit"] == -0.5


def test_none_can_be_given_where_an_argument_allows_it(tiny: Path) -> None:
    assert call("run", "tiny.py", "--limit", "none", "--folder", "runs/a") == 0
    assert arguments_of("runs/a")["limit"] is None


def test_a_run_without_a_folder_makes_one_and_names_it(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "tiny.py") == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", folder.name)
    assert f"Run folder: {folder}" in capsys.readouterr().err


def test_help_explains_every_argument(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "tiny.py", "--help") == 0
    text = one_line(capsys.readouterr().out)
    assert "Count to a number. Slowly, if asked to." in text
    assert "--steps INTEGER how many steps to take [3]" in text
    assert "--limit NUMBER the largest allowed cost [0.0]" in text
    assert "--optimizer adam|sgd" in text
    assert "--shuffle / --no-shuffle" in text
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stpes", "2"], "has no option --stpes: did you mean --steps?"),
        (["--wait_s", "2"], "has no option --wait_s: did you mean --wait-s?"),
        (["--no-shufle"], "has no option --no-shufle: did you mean --no-shuffle?"),
        (["--steps", "many"], "Invalid value for '--steps': 'many' is not a whole number."),
        (["--limit", "low"], "Invalid value for '--limit': 'low' is not a number."),
        (["--optimizer", "adm"], "'adm' is not one of adam, sgd. Did you mean adam?"),
        (["--ranks", "1,x"], "Invalid value for '--ranks': 'x' is not a whole number."),
        (["--steps"], "Option '--steps' requires an argument."),
        (["extra"], "Got unexpected extra argument"),
    ],
)
def test_a_wrong_option_is_named_with_the_closest(
    tiny: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert call("run", "tiny.py", *words) == 2
    assert message in one_line(capsys.readouterr().err)
    assert not Path("runs").exists()


def test_a_run_is_repeated_from_its_record_with_the_recipe_it_was_made_with(tiny: Path) -> None:
    assert call("run", "tiny.py", "--limit", "inf", "--ranks", "3", "--folder", "runs/a") == 0
    Path("tiny.py").unlink()
    assert call("run", "--from", "runs/a/run.json", "--trust-recipe", "--steps", "1", "--folder", "runs/b") == 0
    assert arguments_of("runs/b") == arguments_of("runs/a") | {"steps": 1}
    assert call("run", "--from=runs/a", "--trust-recipe") == 0
    assert len(list(Path("runs").iterdir())) == 3


def test_continuing_with_other_arguments_is_refused_without_a_traceback(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "tiny.py", "--folder", "runs/a") == 0
    assert call("run", "tiny.py", "--steps", "9", "--folder", "runs/a") == 2
    error = capsys.readouterr().err
    assert "steps: 3 there, 9 now" in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError):
        main(["run", "tiny.py", "--stpes", "2", "--debug"])
    monkeypatch.setenv("POISE_DEBUG", "1")
    with pytest.raises(ConfigError):
        main(["run", "tiny.py", "--stpes", "2"])


def test_an_unexpected_error_keeps_its_traceback(tiny: Path) -> None:
    Path("bad.py").write_text("def bad(folder: str = ''):\n    return {}['missing']\n")
    with pytest.raises(KeyError, match="missing"):
        main(["run", "bad.py"])


def test_a_full_disk_anywhere_is_explained(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full.py").write_text(
        f"def full():\n    raise OSError({errno.ENOSPC}, 'No space left', 'model.safetensors')\n"
    )
    assert call("run", "full.py") == 2
    assert "cannot write model.safetensors: the disk is full. Free some space" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_continue_and_continues(tiny: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "poise.cli", "run", "tiny.py", "--steps", "3", "--wait-s", "0.5"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        wait_until(lambda: any(Path("runs").glob("*/metrics.jsonl")))
        process.send_signal(stop)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    (folder,) = Path("runs").iterdir()
    (line,) = (line for line in error.splitlines() if line.startswith("Stopped."))
    expected = f"poise run tiny.py --steps 3 --wait-s 0.5 --folder {folder}"
    assert line == f"Stopped. Finished stages are kept; continue with: {expected}"
    assert call(*shlex.split(expected)[1:]) == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 3


def wait_until(condition: Any, timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_a_card_is_read_without_importing_the_recipe(tiny: Path) -> None:
    Path("tiny.py").write_text(TINY.replace("import time", "import a_package_that_is_not_installed"))
    card = read_card(Path("tiny.py"))
    assert card.title == "Tiny: a recipe without a model."
    assert (card.paper, card.stages) == ("Nobody (2026), arXiv:0000.00000", "one stage")
    assert card.expected == {"steps": 3, "date": "2026-11-21"}


def test_list_shows_each_recipe_with_its_last_verified_result(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poise.cli.recipe_files", lambda: {"tiny": Path("tiny.py")})
    assert call("list") == 0
    text = one_line(capsys.readouterr().out)
    assert "tiny: Tiny: a recipe without a model. paper Nobody (2026)" in text
    assert "duration 1 second on 1 core verified steps 3 2026-11-21" in text


def test_a_wrong_recipe_name_is_answered_with_the_closest(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: Path(f"{name}.py") for name in ("safe-rlhf", "dpo", "grpo")}
    monkeypatch.setattr("poise.cli.recipes.recipe_files", lambda: files)
    assert find_recipe("safe_rlhf") == files["safe-rlhf"]
    with pytest.raises(ConfigError, match=r"no recipe 'saferlhf'\. Did you mean safe-rlhf\?"):
        find_recipe("saferlhf")
    with pytest.raises(ConfigError, match=r"no recipe file mine\.py"):
        find_recipe("mine.py")


def test_a_copied_recipe_runs_under_its_new_name(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("poise.cli.recipes.recipe_files", lambda: {"tiny": tiny / "tiny.py"})
    assert call("copy", "tiny", "mine.py") == 0
    assert call("run", "mine.py", "--steps", "1", "--folder", "runs/mine") == 0
    assert call("copy", "tiny", "mine.py") == 2
    assert "mine.py exists and was not changed" in capsys.readouterr().err


def test_a_file_with_several_candidates_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("two.py").write_text("def one(folder: str = ''): ...\ndef other(folder: str = ''): ...\n")
    assert call("run", "two.py") == 2
    assert "needs one public function with the argument `folder`, or one named two" in capsys.readouterr().err


def test_argument_types_hidden_from_run_time_are_explained(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hidden.py").write_text(
        "from __future__ import annotations\ndef hidden(engine: Engine | None = None, folder: str = ''): ...\n"
    )
    assert call("run", "hidden.py") == 2
    assert "Argument types must be importable at run time" in capsys.readouterr().err


def test_arguments_that_no_text_can_give_are_left_to_python(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("engine.py").write_text(
        "from poise.types import Engine\n"
        "def engine(engine: Engine | None = None, path: str = 'x', folder: str = ''):\n    print(path, engine)\n"
    )
    assert call("run", "engine.py", "--path", "y") == 0
    assert capsys.readouterr().out == "y None\n"
    assert call("run", "engine.py", "--engine", "y") == 2


def test_docstring_lines_become_help() -> None:
    docstring = """Do it.

    Args:
        steps: how many
            of them
        limit    the most allowed
        other words: not an argument

    Returns: a run
    """
    assert argument_help(docstring, ["steps", "limit"]) == {"steps": "how many of them", "limit": "the most allowed"}


def test_a_run_folder_stands_for_its_newest_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="has no saved model yet"):
        model_of(str(tmp_path))
    for age, name in ((100, "sft"), (10, "policy")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
        moment = time.time() - age
        os.utime(tmp_path / name / "adapter_config.json", (moment, moment))
    assert model_of(str(tmp_path)) == str(tmp_path / "policy")
    assert model_of("random:llama") == "random:llama"


def test_a_run_that_compares_objectives_stands_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"arguments": {"objective": "lagrangian"}}')
    for age, name in ((100, "policy-lagrangian"), (10, "policy-cost-only")):
        (tmp_path / name / "model").mkdir(parents=True)
        config = tmp_path / name / "model" / "adapter_config.json"
        config.write_text("{}")
        os.utime(config, (time.time() - age, time.time() - age))
    assert model_of(str(tmp_path)) == str(tmp_path / "policy-lagrangian" / "model")


def test_a_link_to_a_recipe_that_came_with_a_run_is_that_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text("")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "mine.py").symlink_to("recipe.py")
    assert came_with_a_run(tmp_path / "mine.py")
    (tmp_path / "own.py").write_text("")
    assert not came_with_a_run(tmp_path / "own.py")


def test_a_study_of_objectives_stands_for_the_model_of_its_own_arm(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"arguments": {"seeds": [0]}}')
    (tmp_path / "summary.json").write_text('{"objective": "lagrangian"}')
    for age, name in ((100, "lagrangian-seed-0"), (50, "shaping-seed-0"), (10, "seed-0")):
        (tmp_path / name / "policy-1" / "model").mkdir(parents=True)
        config = tmp_path / name / "policy-1" / "model" / "adapter_config.json"
        config.write_text("{}")
        os.utime(config, (time.time() - age, time.time() - age))
    assert model_of(str(tmp_path)) == str(tmp_path / "lagrangian-seed-0" / "policy-1" / "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("headline", 5),
        ("headline", "x"),
        ("samples", 7),
        ("comparison", [{"kl": "x"}]),
        ("categories", [1]),
        ("limit", {}),
        ("scatter", {"before": 3}),
        ("stages", 3),
        ("stages", [{"label": "no name"}]),
        ("verdict", "met"),
        ("table", {"rows": 3}),
        ("said_alike", [{}]),
        ("samples", [{"prompt": 3}]),
        ("curves", [5]),
        ("judge", [1]),
        ("settings", [1]),
        ("notes", 2),
        ("learned", [None]),
    ],
)
def test_a_report_with_other_types_gives_a_page_or_an_error_that_names_it(
    tmp_path: Path, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"title": "Ours", name: value}))
    if call("report", str(tmp_path)) != 0:
        assert "report.json holds what no page can be made of" in capsys.readouterr().err


def test_chat_answers_and_ends_with_the_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["", "Hello"])

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert call("chat", "random:llama", "--max-tokens", "3") == 0
    assert capsys.readouterr().out.count("model> ") == 1


def test_doctor_finds_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor") == 0
    output = capsys.readouterr().out
    for name in ("python", "torch", "cores", "memory", "bf16 on CPU", "POISE_DATA", "smollm2-135m", "people's ratings"):
        assert re.search(rf"^{name} +\S", output, re.MULTILINE), name


def test_data_sets_are_listed_with_their_licences(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "list") == 0
    assert re.search(r"^starter: .*\(CC0-1\.0\)$", capsys.readouterr().out, re.MULTILINE)


def test_a_data_set_is_linted_as_text_or_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."}, {"prompt": "Hello?"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("data", "lint", str(tmp_path / "pairs.jsonl"), "--quarantine", str(tmp_path / "bad.jsonl")) == 0
    assert capsys.readouterr().out.strip()
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1
    assert call("data", "lint", "starter", "--json") == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_a_wrong_data_set_name_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "lint", "startr") == 2
    assert "Did you mean starter" in capsys.readouterr().err


def test_report_needs_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", str(tmp_path)) == 2
    assert "has no report.json" in capsys.readouterr().err
    (tmp_path / "report.json").write_text("[1")
    assert call("report", str(tmp_path)) == 2
    assert "report.json is damaged" in capsys.readouterr().err


def test_a_report_is_printed_into_a_pdf_by_the_browser_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text('{"title": "Helpful and harmless"}')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert call("report", str(tmp_path), "--pdf") == 2
    said = capsys.readouterr()
    assert "apt-get install chromium" in said.err
    assert f"Wrote {tmp_path}/report.html" in said.out  # the page is there all the same
    browser = tmp_path / "bin" / "chromium"
    browser.parent.mkdir()
    line = 'case "$word" in --print-to-pdf=*) printf "%%PDF-1.4 made" > "${word#--print-to-pdf=}";; esac'
    browser.write_text(f'#!/bin/sh\nfor word in "$@"; do {line}; done\n')
    browser.chmod(0o755)
    assert call("report", str(tmp_path), "--pdf") == 0
    assert capsys.readouterr().out.endswith(f"Wrote {tmp_path}/report.pdf\n")
    assert (tmp_path / "report.pdf").read_bytes() == b"%PDF-1.4 made"
    for script, message in (("echo no display >&2; exit 1", "status 1: no display"), ("exit 0", "printed no PDF")):
        browser.write_text(f"#!/bin/sh\n{script}\n")
        assert call("report", str(tmp_path), "--pdf") == 2
        assert message in capsys.readouterr().err
        assert (tmp_path / "report.pdf").read_bytes() == b"%PDF-1.4 made"


def test_report_is_written_again_from_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text('{"title": "Helpful and harmless", "notes": ["one seed"]}')
    assert call("report", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"Wrote {tmp_path}/report.html\n"
    assert "Helpful and harmless" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_recipe_has_a_card_and_a_command_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    card = read_card(recipe_files()[name])
    assert card.title
    assert card.paper
    assert card.method or (card.stages and card.duration)
    assert call("run", name, "--help") == 0
    assert "--quick" in capsys.readouterr().out
