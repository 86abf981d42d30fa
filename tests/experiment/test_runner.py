"""The one loop of experiments: what it runs, what it does not run again, and what a command line may say."""

import json
from pathlib import Path

import pytest

from poise.cli import main
from poise.cli.recipes import find_recipe, load_recipe
from poise.errors import ConfigError
from poise.experiment.pages import page_text


def run(mine, *words):
    with pytest.raises(SystemExit) as stop:
        main(["run", str(mine), "--folder", "run", *words])
    return stop.value.code or 0


def results():
    return json.loads(Path("run/results.json").read_text())


def test_every_arm_runs_from_every_seed_and_the_page_says_what_was_found(mine, capsys):
    assert run(mine) == 0
    printed = capsys.readouterr().out
    found = results()
    assert [each["metrics"]["heads"] for each in found["trials"]["good"]] == pytest.approx([0.8, 0.8125, 0.825])
    assert found["estimates"]["good"]["heads"]["method"] == "Student"
    assert [claim["outcome"] for claim in found["claims"]] == ["holds", "contradicted", "contradicted"]
    page = Path("run/mine.md").read_text()
    assert page == page_text(found, stem="mine") and page in printed
    assert "| the good one | 81.2 % [78.1, 84.4] | 100.0 |" in page
    assert "## Luck" in page and page.count("| fair |") == 1  # the arm has no luck
    assert "**contradicted**" in page and "by" in page and "- One toss: too few." in page
    assert Path("run/mine.svg").read_text().startswith("<?xml")
    assert json.loads(printed.splitlines()[-1])["seeds"] == 3


def test_what_is_given_counts_also_when_quick(mine):
    assert run(mine, "--quick", "--tosses", "7", "--seeds", "1") == 0
    found = results()
    assert found["seeds"] == [0]
    assert found["estimates"]["fair"]["tosses"]["value"] == 7
    assert found["claims"][0]["outcome"] == "not shown"  # one seed has no interval
    assert "A smoke test" in Path("run/mine.md").read_text()


def test_quick_replaces_what_is_not_given(mine):
    assert run(mine, "--quick") == 0
    assert results()["seeds"] == [0, 1]
    assert results()["estimates"]["fair"]["tosses"]["value"] == 4


def test_arms_and_seeds_are_chosen_on_the_command_line(mine):
    assert run(mine, "--arms", "Good,fair", "--seeds", "4,1") == 0
    found = results()
    assert list(found["arms"]) == ["good", "fair"]
    assert [each["seed"] for each in found["trials"]["good"]] == [4, 1]
    assert [claim["text"] for claim in found["claims"]] == ["Good beats fair"]  # the others speak of an arm not run


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["2"], [0, 1]),
        (["2,"], [2]),
        (["3,1"], [3, 1]),
        (["3", "--seeds", "1"], [3, 1]),
        (["0,4", "--seeds", "2"], [0, 4, 2]),
    ],
)
def test_one_number_is_how_many_seeds_and_several_are_which(mine, words, seeds):
    assert run(mine, "--arms", "bad", "--seeds", *words) == 0
    assert results()["seeds"] == seeds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "great"], "no arm great: choose from fair, good, bad"),
        (["--seeds", "0"], "give a number of at least 1"),
        (["--seeds", "1,1"], "different seeds"),
        (["--output", "page.html"], "ends in .md (page) or .json"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(mine, words, message, capsys):
    assert run(mine, *words) == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists() or not list(Path("run").glob("*/stage.json"))


def test_a_stopped_run_goes_on_and_so_do_the_stages_of_the_trial_that_was_stopped(long):
    words = ("--seeds", "1", "--arms", "fair,good")
    assert run(long, *words) == 130
    assert Path("run/fair-seed-0/stage.json").exists() and not Path("run/good-seed-0/stage.json").exists()
    long.write_text(long.read_text().replace("raise KeyboardInterrupt", "pass"))
    assert run(long, *words) == 0
    for arm in ("fair", "good"):
        (found,) = results()["trials"][arm]
        assert Path(found["paths"]["count"]).read_text() == "tossed "  # the stage was finished before the stop


def test_processes_give_the_figures_of_one_process(mine):
    assert run(mine, "--workers", "2", "--seeds", "2") == 0
    assert [each["metrics"]["heads"] for each in results()["trials"]["good"]] == pytest.approx([0.8, 0.8125])


def test_a_run_is_repeated_from_its_record_with_its_seeds_and_arms(mine):
    assert run(mine, "--seeds", "3,5", "--arms", "bad", "--tosses", "5") == 0
    first = results()
    with pytest.raises(SystemExit):
        main(["run", "--from", "run/run.json", "--trust-recipe", "--folder", "again"])
    again = json.loads(Path("again/results.json").read_text())
    assert again["trials"]["bad"][1]["metrics"] == first["trials"]["bad"][1]["metrics"]
    assert again["seeds"] == [3, 5]


def test_output_writes_the_page_with_its_pictures_or_the_results(mine):
    assert run(mine, "--quick", "--output", "pages/coins.md") == 0
    assert "![Heads](coins.svg)" in Path("pages/coins.md").read_text() and Path("pages/coins.svg").exists()
    assert run(mine, "--quick", "--output", "kept/mine.json") == 0
    assert Path("kept/mine.json").read_bytes() == Path("run/results.json").read_bytes()


def test_help_explains_the_recipes_own_arguments_and_the_common_ones(mine, capsys):
    with pytest.raises(SystemExit):
        main(["run", str(mine), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--tosses INTEGER how often each coin is tossed. [100]" in text
    for option in (
        "--seeds INTEGER|INTEGER,... how many seeds",
        "--arms TEXT,...",
        "--output TEXT",
        "--workers",
        "--quick",
    ):
        assert option in text


def test_an_argument_that_is_not_there_is_refused_in_python_too(mine):
    with pytest.raises(ConfigError, match="mine has no argument toses"):
        load_recipe(find_recipe(str(mine)))(toses=3)
