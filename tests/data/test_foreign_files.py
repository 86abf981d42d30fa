"""Files as people have them: strange names, encodings and values cost a row at most, or say what the file is."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import pytest

from poise.data import load
from poise.data.lint import lint
from poise.errors import DataError
from poise.types import Prompt

PAIR = {"prompt": "Bread?", "chosen": "Bake it.", "rejected": "No."}
LAYOUTS = (
    PAIR,
    {"prompt": "Bread?", "completion": "Bake it."},
    {"messages": [{"role": "user", "content": "Bread?"}, {"role": "assistant", "content": "Bake it."}]},
    {"prompt": "Bread?", "response": "Bake it.", "safe": True},
    {"instruction": "Bread?", "output": "Bake it."},
    {"goal": "Bread?", "target": "Sure"},
    {"prompt": "Bread?"},
    {"chosen": "\n\nHuman: Bread?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Bread?\n\nAssistant: No."},
)  # fmt: skip


@pytest.mark.parametrize("row", LAYOUTS)
def test_a_column_may_have_any_name_that_a_function_uses_too(write_rows, pku_row, row):
    names = (
        *("text", "cls", "self", "messages", "id", "tags", "row", "place", "named", "columns", "line", "model_extra"),
        *("model_config", "__class__", "__dict__", "copy", "json", "", "a.b", "prompt_id", "turns", "lang"),
    )
    for base in (row, pku_row):
        asked = base if "prompt" in base else base | {"prompt": base.get("instruction", "Bread?")}
        names_beside = [name for name in names if name not in base]
        rows = [(asked if name == "messages" else base) | {name: "x"} for name in names_beside]
        dataset = load(write_rows("mine.jsonl", rows))
        assert dataset.bad_rows == ()
        lint(dataset).lines()


def test_any_name_can_tag_a_prompt():
    assert Prompt.of("a", **{"text": 1, "cls": 2, "self": 3}).tags == {"text": 1, "cls": 2, "self": 3}


def in_lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "content",
    [
        in_lines(PAIR, PAIR).encode("utf-8-sig"),
        in_lines(PAIR, PAIR).encode("utf-16"),
        ("\ufeff" + in_lines(PAIR, PAIR)).encode("utf-16-be"),
        in_lines(PAIR, PAIR).encode("utf-32"),
        in_lines(PAIR, PAIR).replace("\n", "\r\n").encode(),
        in_lines(PAIR, PAIR).replace("\n", "\r").encode(),
        b"\n \n" + in_lines(PAIR, PAIR).encode() + b"\n\n",
        gzip.compress(in_lines(PAIR, PAIR).encode()),
        gzip.compress(in_lines(PAIR, PAIR).encode("utf-16")),
        json.dumps([PAIR, PAIR], indent=2).encode(),
    ],
)
def test_marks_line_ends_and_gzip_change_nothing(tmp_path, content):
    (tmp_path / "mine.jsonl").write_bytes(content)
    dataset = load(tmp_path / "mine.jsonl", strict=True)
    assert [each.prompt.text for each in dataset.comparisons] == ["Bread?", "Bread?"]


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", content)
    return file.getvalue()


TEXT = in_lines(*[PAIR | {"chosen": f"Caf\u00e9 {i}"} for i in range(6)])


LATIN = json.dumps([PAIR | {"chosen": "Caf\u00e9"}] * 6, ensure_ascii=False).encode("latin-1")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (zipped(TEXT.encode()), "zip archive"),
        (TEXT.encode("utf-16-le"), "UTF-16LE, without a byte-order mark"),
        (TEXT.encode("utf-16-be"), "UTF-16BE, without a byte-order mark"),
        (TEXT.encode("utf-16")[:-1], "mark of UTF-16"),
        (LATIN, "0xe9, which is '\u00e9' in Latin-1"),
        (bytes(range(256)) * 40, "binary, not text"),
        (b"PAR1" + bytes(40), "a Parquet file"),
        (gzip.compress(TEXT.encode())[:-20], "not a complete gzip file"),
        (b"\x1f\x8b\x08\x00" + b"\x55" * 60, "not a complete gzip file"),
        (gzip.compress(zipped(TEXT.encode())), "zip archive"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_text_says_what_it_is(tmp_path, content, what, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("mine.zip", zipped(b"{}")), ("mine.xlsx", zipped(b"{}")), ("mine", bytes(99))]
)
def test_a_file_of_another_ending_says_what_it_is(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"zip archive|binary"):
        load(tmp_path / name)


def test_a_row_that_is_not_utf8_costs_itself_alone_and_a_file_of_them_says_so(tmp_path):
    lines = TEXT.splitlines()
    for suffix, head, row in ((".jsonl", "", json.dumps(PAIR)), (".csv", "prompt,chosen,rejected\n", "Bread?,Yes,No")):
        bad = row.replace("Bread", "Br\u00e9ad").replace("\\u00e9", "\u00e9").encode("latin-1")
        path = tmp_path / f"mine{suffix}"
        path.write_bytes(head.encode() + b"\n".join([row.encode()] * 5 + [bad]))
        dataset = load(path)
        assert (len(dataset.comparisons), len(dataset.bad_rows)) == (5, 1)
        assert "0xe9, which is '\u00e9' in Latin-1" in dataset.bad_rows[0].reason
        assert "iconv" in dataset.bad_rows[0].reason
    assert len(lines) == 6


def test_more_bad_rows_than_good_ones_are_an_error_unless_allowed(write_rows):
    path = write_rows("mine.jsonl", [PAIR, *["{broken"] * 5])
    with pytest.raises(DataError, match=r"5 of 6 rows cannot be read.*mine\.jsonl:2: not JSON"):
        load(path)
    assert len(load(path, most_bad=1).comparisons) == 1
    assert len(load(write_rows("half.jsonl", [PAIR] * 3 + ["{broken"] * 3)).bad_rows) == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"prompt": "p", "chosen": "a", "chosen": "b", "rejected": "c"}', "'chosen' occurs twice"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "x": ' + "[" * 200 + "]" * 200 + "}", "nested deeper"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "x": ' + "[" * 10**5 + "]" * 10**5 + "}", "not JSON"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1' + "0" * 400 + "}", "margin"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1' + "0" * 9000 + "}", "not JSON"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": Infinity}', "margin should be a finite number"),
        ('{"prompt": null, "chosen": "a", "rejected": "b"}', "without a prompt"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b"},', "not JSON"),
        ('{"prompt": "p", "completion": "a"}', "column 'chosen' is missing"),
        ('{"prompt": "p", "chosen": null, "rejected": "b"}', "column 'chosen' is missing"),
    ],
)
def test_a_strange_row_is_a_bad_row_and_the_others_stay(write_rows, bad, reason):
    dataset = load(write_rows("mine.jsonl", [PAIR, bad, PAIR | {"note": float("nan"), "big": 10**30}]))
    assert len(dataset.comparisons) == 2
    assert reason in dataset.bad_rows[0].reason
    assert "note" not in dataset.comparisons[1].prompt.tags  # NaN stands where nothing is known
    lint(dataset).lines()


def turns(*roles, content="x"):
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": names[role], "content": content} for role in roles]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (turns(*"aua"), "turn 1 is the assistant's where the user's is due"),
        (turns(*"uua"), "turn 2 is the user's where the assistant's is due"),
        (turns(*"sa"), "turn 2 is the assistant's where the user's is due"),
        (turns(*"ssua"), "turn 2 is the system's"),
        (turns(*"usa"), "turn 2 is the system's"),
        (turns(*"uaa"), "turn 3 is the assistant's"),
        (turns(*"s"), "must end with a user turn"),
        (turns(*"uta"), "turn 2 is the tool's where the assistant's is due"),
        ([], "must end with a user turn"),
        ([{"role": "user", "content": 3}, *turns("a")], "content should be"),
        ([{"role": "user", "content": None}, *turns("a")], "content should be"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, *turns("a")], "content should be"),
        ([*turns(*"u", content=" "), *turns("a")], "turn 1, the user's, is empty"),
        (["hello"], "messages"),
        ("hello", "messages"),
    ],
)
def test_odd_turns_are_bad_rows(write_rows, messages, reason):
    good = {"messages": turns(*"suaua")}
    dataset = load(write_rows("mine.jsonl", [good, {"messages": messages}]))
    assert len(dataset.demonstrations) == 1
    assert reason in dataset.bad_rows[0].reason


def test_a_cell_of_a_table_may_be_long(tmp_path):
    (tmp_path / "mine.csv").write_text(f"prompt,chosen,rejected\np,{'a' * 200_000},b\n")
    assert len(load(tmp_path / "mine.csv").comparisons[0].responses[0]) == 200_000


def test_a_table_with_commas_at_its_line_ends_is_read_and_a_stray_quote_costs_its_lines(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('prompt,chosen,rejected,\np,a,b,\n\nq,c,d,,\n"r"x,e,f,\ns,g,h\n"t,i,j,\nu,k,l,\n')
    dataset = load(path)
    assert [each.prompt.text for each in dataset.comparisons] == ["p", "q", "s", "u"]
    assert [(row.line, "quote" in row.reason) for row in dataset.bad_rows] == [(5, True), (7, True)]


@pytest.mark.parametrize(
    ("header", "message"),
    [("prompt,chosen,chosen", "names a column twice"), ("prompt;chosen;rejected", "separated by ';'")],
)
def test_a_header_that_cannot_be_meant_is_named(tmp_path, header, message):
    (tmp_path / "mine.csv").write_text(f"{header}\na,b,c\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "mine.csv")


def test_the_metadata_of_a_snapshot_is_no_data(tmp_path, write_rows):
    write_rows("mine/data/train-00000-of-00001.jsonl", [PAIR])
    for name in ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "croissant.json",
                 ".cache/huggingface/download/train.jsonl", ".hidden.json", "some-card.json"):  # fmt: skip
        write_rows(f"mine/{name}", [{"default": {"description": "x", "features": ["a"]}}])
    for name in ("README.md", ".gitattributes", "data/cache-1f.arrow", "LICENSE"):
        write_rows(f"mine/{name}", ["x"])
    dataset = load(tmp_path / "mine")
    assert (len(dataset.comparisons), dataset.bad_rows) == (1, ())
    assert [path.rsplit("/", 1)[1] for path in dataset.provenance["skipped"]] == ["some-card.json"]


def test_a_folder_of_a_saved_data_set_says_how_to_write_one_that_can_be_read(tmp_path, write_rows):
    write_rows("mine/state.json", [{}])
    (tmp_path / "mine" / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match="written by save_to_disk"):
        load(tmp_path / "mine")


def test_a_parquet_file_may_hold_gaps_bytes_and_dates(tmp_path):
    from datetime import UTC, datetime

    from pyarrow import Table, parquet

    rows = [{"prompt": "p", "completion": "a", "label": None, "raw": b"\xff", "at": datetime(2026, 1, 1, tzinfo=UTC)}]
    rows += [{"prompt": "q", "completion": "b", "label": False, "raw": b"x", "at": None}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "mine.parquet")
    dataset = load(tmp_path / "mine.parquet")
    assert (len(dataset.demonstrations), len(dataset.verdicts)) == (1, 1)
    json.dumps([dict(prompt.tags) for prompt in dataset.prompts])


def test_an_own_path_that_is_missing_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/pairs", "data/pairs.jsonl", "data/pairs.csv.gz"):
        with pytest.raises(DataError, match="no file or folder with this path"):
            load(name)


def test_paths_with_a_plus_sign_are_joined_with_names(write_rows, tmp_path):
    first, second = write_rows("a+b/c+d.jsonl", [PAIR]), write_rows("e.jsonl", [PAIR | {"prompt": "Tea?"}])
    assert len(load(f"{first}+{second}").comparisons) == 2
    assert len(load(f"{second} + {first}").prompts) == 2
    assert len(load(tmp_path / "a+b").comparisons) == 1
    assert load(f"starter+{first}").provenance["sources"] == ["starter", "c+d"]
