"""What `--data` may name: patterns, shares of sets, more than an id on the hub; and columns kept as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from own_files import write_rows
from poise.data import load, split_by_prompt
from poise.data.reading import RawFile, RawRow
from poise.errors import DataError


def pairs(folder: Path, name: str, count: int = 40) -> str:
    rows = [{"prompt": f"{name} {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(count)]
    return write_rows(folder / name, rows)


def test_a_pattern_reads_the_files_that_it_matches_and_each_row_says_where_it_stood(tmp_path: Path):
    for name in ("a.jsonl", "b.jsonl"):
        pairs(tmp_path, name, 2)
    (tmp_path / "c.csv").write_text("prompt,chosen,rejected\nTea?,Yes.,No.\n")
    found = load(f"{tmp_path}/*.jsonl")
    assert len(found.comparisons) == 4
    places = {row.origin.location.rpartition("/")[2] for row in found.comparisons}
    assert places == {"a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "b.jsonl:2"}
    assert len(load(f"{tmp_path}/[ac].*").comparisons) == 3
    with pytest.raises(DataError, match="was not found"):
        load(f"{tmp_path}/*.parquet")


def test_a_share_of_a_set_is_a_share_of_its_prompts_which_stays_the_same_and_can_be_split_again(tmp_path: Path):
    one, two = pairs(tmp_path, "one.jsonl", 200), pairs(tmp_path, "two.jsonl", 20)
    found = load(f"0.25*{one}+{two}")
    drawn = [row.prompt.text for row in found.comparisons if row.prompt.text.startswith("one")]
    assert 30 < len(drawn) < 70
    assert len(found.comparisons) == len(drawn) + 20
    assert drawn == [row.prompt.text for row in load(f"0.25*{one}").comparisons]
    assert load(f"0.25*{one}").provenance["share"] == 0.25
    parts = split_by_prompt(load(f"0.25*{one}"), {"train": 0.5, "test": 0.5})
    assert all(len(part.prompts) > 8 for part in parts.values())
    with pytest.raises(DataError, match="above 0 and at most 1"):
        load(f"2*{one}")


def test_a_file_whose_name_begins_like_a_share_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs(tmp_path, "2024.jsonl", 3)
    monkeypatch.chdir(tmp_path)
    assert len(load("2*.jsonl").comparisons) == 3


def test_an_id_on_the_hub_may_name_a_config_a_split_and_a_revision(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def read(hub_id: str, *, revision: str, arguments: Any) -> list[RawFile]:
        asked.append((hub_id, revision, dict(arguments)))
        row = RawRow(line=1, columns={"prompt": "Tea?", "completion": "Yes."})
        return [RawFile(path=f"hub:{x}", label=x, rows=(row,), sha256="", split=x) for x in ("train", "test")]

    monkeypatch.setattr("poise.data.hub.read_hub", read)
    found = load("mine/set:socratic#test@refs/pr/1")
    assert asked == [("mine/set", "refs/pr/1", {"name": "socratic"})]
    assert [demonstration.prompt.tags["split"] for demonstration in found.demonstrations] == ["test"]
    assert len(load("mine/set").demonstrations) == 2
    with pytest.raises(DataError, match="has no split 'dev': there are train, test"):
        load("mine/set#dev")


def test_a_column_that_is_kept_is_a_tag_whatever_its_name_means_elsewhere(tmp_path: Path):
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1), "score": i} for i in range(3)]
    data = write_rows(tmp_path / "sums.jsonl", rows)
    with pytest.raises(DataError):
        load(data, columns="prompt=question")
    found = load(data, columns="prompt=question,keep=answer,keep=score")
    assert [(p.tags["answer"], p.tags.get("score")) for p in found.prompts] == [("1", 0), ("2", 1), ("3", 2)]
    with pytest.raises(DataError, match="no file has a column 'gold'"):
        load(data, columns="prompt=question,keep=answer,keep=gold,ignore=score")
