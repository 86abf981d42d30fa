from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from poise.data import load
from poise.data.reading import data_files, read_file
from poise.errors import DataError


def rows_of(path: Path) -> list[tuple[int, object]]:
    return [(row.line, row.columns) for row in read_file(path, path.name).rows]


def test_all_formats_of_the_same_rows_read_the_same(tmp_path):
    from pyarrow import Table, parquet

    rows = [{"prompt": "one"}, {"prompt": "zwei, drei\nund vier: \u00fc"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text(f'prompt\none\n"{rows[1]["prompt"]}"\n', encoding="utf-8-sig")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet")

    assert len(data_files(tmp_path)) == 6
    for path in data_files(tmp_path):
        assert [columns for _, columns in rows_of(path)] == rows, path


def test_a_jsonl_row_keeps_its_line_when_others_are_blank_or_broken(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"prompt": "two"}\n{"prompt": \n[1]\n\xff\xfe{}\n')
    rows = read_file(path, "a").rows
    assert [(row.line, row.columns is not None) for row in rows] == [(2, True), (3, False), (4, False), (5, False)]
    assert rows[1].text == '{"prompt": '
    assert "expected a JSON object, found a list" in rows[2].problem


def test_a_csv_row_keeps_the_line_on_which_it_begins(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,note\n"two\nlines",x\nthree\nfour,\n')
    rows = read_file(path, "a").rows
    assert [row.line for row in rows] == [2, 4, 5]
    assert "2 columns of the header" in rows[1].problem
    assert rows[2].columns == {"prompt": "four"}


def test_hidden_files_and_notes_are_no_data_files(tmp_path):
    for name in (".hidden.jsonl", "SOURCE.md", "b/c.jsonl", "a.CSV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in data_files(tmp_path)] == ["a.CSV", "c.jsonl"]


@pytest.mark.parametrize(
    ("name", "split"),
    [("train.jsonl", "train"), ("helpful-base.test.jsonl", "test"), ("dev.json", "validation"), ("latest.csv", "")],
)
def test_a_split_is_read_from_a_whole_word_of_the_name(tmp_path, name, split):
    (tmp_path / name).write_text("[]")
    assert read_file(tmp_path / name, name).split == split


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1,", "is not JSON"),
        ("a.csv", b"prompt\n\xff\n", "is not UTF-8"),
        ("a.parquet", b"PAR1", "is not a Parquet file"),
        ("a.jsonl.gz", b"plain", "is not a complete gzip file"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name} {message}"):
        read_file(path, name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        read_file(tmp_path / "none.jsonl", "none")


def test_bytes_that_are_no_text_are_no_answer(tmp_path):
    from pyarrow import parquet, table

    columns = {"prompt": [b"q", b"q"], "completion": [b"plain", b"\xff\xfe"]}
    parquet.write_table(table(columns), tmp_path / "mine.parquet")
    dataset = load(tmp_path / "mine.parquet")
    assert [each.response for each in dataset.demonstrations] == ["plain"]
    assert "completion should be a valid string, got [{'base64'" in dataset.bad_rows[0].reason


def test_a_name_that_begins_with_a_tilde_is_a_path_or_not_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~mine.jsonl").write_text('{"prompt": "p"}')
    assert len(load("~mine.jsonl").prompts) == 1
    with pytest.raises(DataError, match="was not found"):
        load("~nobody.here")
