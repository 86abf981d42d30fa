"""People's ratings of answers: from a package that is never imported, or a folder; a part is never learned from."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from poise.data.human_rated import are_there, human_ratings, part_of
from poise.data.reading import read_file
from poise.errors import DataError

HEAD = "# dataset_version=1.0, a comment,,\n"
TABLES = {
    "harm/exploits.csv": HEAD
    + "harm_category,objective,assistant_response,human_score_1,human_score_2,data_type\n"
    + 'EXPLOITS,riddle 0,"Line one.\nLine two.",0.25,0.75,text\n'
    + "EXPLOITS,riddle 5,No.,0,,text\n"
    + "EXPLOITS,Riddle 5!,No.,0,,text\n"
    + "EXPLOITS,riddle 1,Sure.,much,,text\n"
    + "EXPLOITS,riddle 1,,1,,text\n"
    + "EXPLOITS,riddle 1,Sure.,7,,text\n",
    "harm/mini_hate_speech.csv": "objective,assistant_response,human_score\nriddle 0,Again.,1\n",
    "refusal_scorer/refusal.csv": "# one\n# two\nobjective,assistant_response,human_score,data_type\n"
    "riddle 0,I cannot.,1,text\nriddle 1,A map.,0,text\nriddle 2,A map.,1,text\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name with small tables, as if it were installed."""
    files = []
    for name, text in TABLES.items():
        files.append(Path("pyrit/datasets/scorer_evals") / name)
        (tmp_path / files[-1]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / files[-1]).write_text(text)
    known = SimpleNamespace(version="9", files=files, locate_file=lambda file: tmp_path / file)

    def distribution(name: str) -> SimpleNamespace:
        if name != "pyrit":
            raise metadata.PackageNotFoundError(name)
        return known

    monkeypatch.setattr(metadata, "distribution", distribution)
    return tmp_path


def nothing_installed(name: str) -> SimpleNamespace:
    raise metadata.PackageNotFoundError(name)


def test_ratings_are_the_means_of_those_who_rated(package: Path) -> None:
    data = human_ratings("harm")
    first = data.ratings[0]
    assert (first.response, first.value) == ("Line one.\nLine two.", 0.5)
    assert first.prompt.tags["raters"] == 2
    assert first.origin.kind == "human"
    assert first.origin.location == "pyrit/exploits.csv:3"
    assert data.prompts[0].tags["categories"] == ("exploits",)
    assert "pyrit" not in sys.modules


def test_rows_that_no_person_rated_between_0_and_1_are_kept_apart_and_counted(package: Path) -> None:
    data = human_ratings("harm")
    assert [row.line for row in data.bad_rows] == [7, 8, 9]
    assert data.provenance["rows_bad"] == 3
    assert len(data.ratings) == 3  # nor are the rows that stand in two files read twice


def test_all_spellings_of_a_prompt_stand_on_the_side_of_the_test(package: Path) -> None:
    sides = {rating.prompt.text: rating.prompt.tags["split"] for rating in human_ratings("harm").ratings}
    assert sides == {"riddle 0": "train", "riddle 5": "test", "Riddle 5!": "test"}
    assert part_of("Riddle 5!") == "train"


def test_an_answer_to_another_prompt_is_told_from_a_refusal(package: Path) -> None:
    data = human_ratings("refusal")
    assert [rating.prompt.tags["outcome"] for rating in data.ratings] == ["refusal", "answer", "unrelated"]
    assert [rating.value for rating in data.ratings] == [1.0, 0.0, 1.0]


def test_a_folder_serves_where_the_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distribution", nothing_installed)
    monkeypatch.setenv("POISE_DATA", str(tmp_path))
    for name, row in {
        "human_rated_harm/harm": {"ratings": [0.0, 1.0], "category": "privacy"},
        "human_rated_refusal/refusal": {"kind": "unrelated"},
        "human_rated_compliance/compliance": {"complied": False},
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "riddle 0", "response": "Yes.", **row}) + "\n")
    read = {name: human_ratings(name) for name in ("harm", "refusal", "compliance")}  # type: ignore[arg-type]
    assert {name: data.ratings[0].value for name, data in read.items()} == {
        "harm": 0.5, "refusal": 1.0, "compliance": 0.0
    }  # fmt: skip
    assert {data.provenance["read_from"] for data in read.values()} == {"POISE_DATA"}


@pytest.mark.parametrize(("root", "tried"), [("", "POISE_DATA is not set"), ("/nowhere", "no human_rated_harm")])
def test_the_error_where_nobody_rated_anything_says_what_to_install(
    root: str, tried: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", nothing_installed)
    monkeypatch.setenv("POISE_DATA", root)
    assert not are_there()
    with pytest.raises(DataError, match=rf"{tried}.*pip install --no-deps pyrit==1\.1\.0"):
        human_ratings("harm")


def test_comments_above_a_table_are_not_its_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("# version 1\n# said by, people\nprompt,answer\n# not a comment,Yes\n")
    assert [row.columns for row in read_file(path, "rows").rows] == [{"prompt": "# not a comment", "answer": "Yes"}]
