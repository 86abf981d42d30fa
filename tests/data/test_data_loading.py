from __future__ import annotations

import errno
import hashlib
import json
import sys
from types import SimpleNamespace

import pytest

from poise.data import load
from poise.errors import DataError

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


def test_a_missing_set_is_reported_with_all_that_was_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("POISE_DATA", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError) as caught:
        load("pku-saferlhf")
    message = str(caught.value)
    assert "1. a path" in message
    assert f"2. POISE_DATA: no file * in {tmp_path / 'pku_saferlhf'}" in message
    assert (
        "3. the hub (PKU-Alignment/PKU-SafeRLHF): the hub needs the datasets package: pip install 'poise[data]'"
        in message
    )


def test_an_unset_poise_data_is_said_so(monkeypatch):
    monkeypatch.delenv("POISE_DATA", raising=False)
    with pytest.raises(DataError, match=r"2\. POISE_DATA: the variable is not set; 3\. the hub: this set is not there"):
        load("advbench")


def test_offline_a_set_that_is_not_cached_says_that_only_the_cache_was_searched(monkeypatch, tmp_path):
    pytest.importorskip("datasets", reason="reads the hub's cache: pip install 'poise[data]'")
    monkeypatch.delenv("POISE_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set, so only the local cache was searched"):
        load("nobody/nothing-of-this-name")


def test_the_hub_package_reads_every_split(monkeypatch, tmp_path, write_rows, pku_row):
    datasets = pytest.importorskip("datasets", reason="reads a set as the hub would give it: pip install 'poise[data]'")
    monkeypatch.delenv("POISE_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)  # a folder named like the set is what the package finds before the network
    write_rows("PKU-Alignment/PKU-SafeRLHF/train.jsonl", [pku_row])
    write_rows("PKU-Alignment/PKU-SafeRLHF/test.jsonl", [pku_row | {"prompt": "q"}])

    dataset = load("pku-saferlhf")

    assert {prompt.tags["upstream_split"] for prompt in dataset.prompts} == {"train", "test"}
    assert dataset.provenance["revision"] == "main"
    assert {file["path"] for file in dataset.provenance["files"]} == {
        "hub:PKU-Alignment/PKU-SafeRLHF/train",
        "hub:PKU-Alignment/PKU-SafeRLHF/test",
    }


def test_a_cache_that_cannot_be_written_names_the_variable_that_moves_it(monkeypatch, tmp_path):
    asked = {}

    def refused(*_, **named):
        asked.update(named)
        raise PermissionError(errno.EROFS, "Read-only file system", "/home/me/.cache")

    config = SimpleNamespace(HF_DATASETS_CACHE=str(tmp_path / "of-the-package" / "datasets"))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refused, config=config))
    monkeypatch.setattr("poise.data.hub.os.access", lambda *_: False)
    monkeypatch.setenv("POISE_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"/home/me/\.cache \(read-only file system\): set POISE_CACHE"):
        load("somebody/something")
    assert asked["cache_dir"] == str(tmp_path / "datasets")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(DataError, match="Did you mean pku-saferlhf"):
        load("pku-safe-rlhf")


def test_a_folder_without_data_files_says_which_endings_count(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"the name must end in \.jsonl, \.json, \.csv, \.parquet"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt is not a data file"):
        load(tmp_path / "notes.txt")


def test_bad_rows_are_kept_with_their_place_and_written_to_quarantine(tmp_path, write_rows):
    path = write_rows("mine.jsonl", [GOOD, {"prompt": 3, "chosen": "a", "rejected": "b"}, "{broken"])
    dataset = load(path, quarantine=tmp_path / "out" / "bad.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(row["path"], row["line"]) for row in written] == [(str(path), 2), (str(path), 3)]
    assert json.loads(written[0]["row"]) == {"prompt": 3, "chosen": "a", "rejected": "b"}
    assert written[1]["row"] == "{broken"
    assert [row.reason for row in dataset.bad_rows] == [row["reason"] for row in written]


def test_a_quarantine_of_an_earlier_load_is_emptied(tmp_path, write_rows):
    (tmp_path / "bad.jsonl").write_text("old\n")
    load(write_rows("mine.jsonl", [GOOD]), quarantine=tmp_path / "bad.jsonl")
    assert (tmp_path / "bad.jsonl").read_text() == ""


def test_strict_stops_at_the_first_bad_row(write_rows):
    path = write_rows("mine.jsonl", [GOOD, "{broken", "{worse"])
    with pytest.raises(DataError, match=r"mine\.jsonl:2: not JSON"):
        load(path, strict=True)


def test_a_file_of_bad_rows_alone_is_an_error_that_shows_the_first_three(tmp_path, write_rows):
    path = write_rows("mine.jsonl", [{"prompt": 1}, {"prompt": 2}, {"prompt": 3}, {"prompt": 4}])
    with pytest.raises(DataError, match="none of its 4 rows can be read") as caught:
        load(path, quarantine=tmp_path / "bad.jsonl")
    assert "mine.jsonl:3" in str(caught.value)
    assert "mine.jsonl:4" not in str(caught.value)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 4


def test_an_empty_file_is_an_error(write_rows):
    with pytest.raises(DataError, match="has no rows"):
        load(write_rows("mine.jsonl", []))


def test_provenance_names_files_checksums_terms_and_counts(write_rows):
    path = write_rows("mine.jsonl", [GOOD, "{broken"])
    provenance = load(path).provenance
    (file,) = provenance["files"]
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (provenance["rows_read"], provenance["rows_bad"]) == (2, 1)
    assert (provenance["licence"], provenance["non_commercial"]) == ("not stated", None)


def test_names_are_combined_with_a_plus(data_root, write_rows, pku_row):
    write_rows("pku_saferlhf/a.jsonl", [pku_row])
    write_rows("pku_saferlhf_safety_pairs/a.jsonl", [{"prompt": pku_row["prompt"], "response": ["x", "y"]}])
    dataset = load("pku-saferlhf + pku-safety-pairs+pku-saferlhf")
    assert len(dataset.comparisons) == 3
    assert len(dataset.prompts) == 1
    assert dataset.provenance["sources"] == ["pku-saferlhf", "pku-safety-pairs"]
    assert dataset.provenance["rows_read"] == 2


def test_a_path_may_hold_a_plus(write_rows):
    assert len(load(write_rows("a+b.jsonl", [GOOD])).comparisons) == 1


def test_a_file_in_the_folder_of_a_named_set_is_read_as_that_set(tmp_path, write_rows):
    write_rows("pku_saferlhf_safety_pairs/part.jsonl", [{"prompt": "p", "response": ["x", "y"]}])
    for place in ("pku_saferlhf_safety_pairs", "pku_saferlhf_safety_pairs/part.jsonl"):
        dataset = load(tmp_path / place)
        assert dataset.comparisons[0].safe == (True, False)
        assert dataset.provenance["non_commercial"] is True


def test_a_starter_set_that_is_not_installed_names_what_is_missing(monkeypatch, tmp_path):
    from poise.data import locate

    monkeypatch.setattr(locate.resources, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match=r"starter: starter\.jsonl is missing .* Reinstall poise"):
        load("starter")
