"""A converted model is read only while it is whole and nobody but its owner can write it; a shared one may be read."""

from __future__ import annotations

import os
import tempfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from poise import caches
from poise.models import kept, locate


class Converter:
    """Writes a few bytes in the place of a model, and counts."""

    calls = 0

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.calls += 1
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(range(100)))


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    package = SimpleNamespace(version="1", files=[Path("model.gguf")], locate_file=lambda file: tmp_path / file)
    monkeypatch.setattr(metadata, "distribution", lambda name: package)
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    found = Converter()
    monkeypatch.setattr(locate, "_convert_gguf", found)
    kept._WHOLE.clear()
    caches._say_once.cache_clear()
    return found


def in_a_new_process() -> Path:
    kept._WHOLE.clear()
    return Path(locate.locate("smollm2-135m"))


def test_a_model_is_converted_once(converter: Converter, tmp_path: Path) -> None:
    assert in_a_new_process() == in_a_new_process() == tmp_path / "cache" / "smollm2-135m-1"
    assert converter.calls == 1
    assert [item.name for item in (tmp_path / "cache").iterdir()] == ["smollm2-135m-1"]


@pytest.mark.parametrize("damage", ["cut", "a bit", "gone", "no card"])
def test_a_damaged_model_is_converted_again(converter: Converter, damage: str) -> None:
    folder = in_a_new_process()
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    if damage in ("gone", "no card"):
        (weights if damage == "gone" else folder / "poise_kept.json").unlink()
    else:
        weights.write_bytes(data[:50] if damage == "cut" else data[:-1] + b"\0")
    assert in_a_new_process() == folder
    assert converter.calls == 2
    assert weights.read_bytes() == data


def test_others_can_read_what_was_converted_whatever_the_umask(converter: Converter) -> None:
    before = os.umask(0o077)
    try:
        folder = in_a_new_process()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


def test_a_shared_cache_of_another_user_is_read(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = in_a_new_process()
    monkeypatch.setattr("poise.caches.os.geteuid", lambda: os.getuid() + 1)
    assert in_a_new_process() == folder
    assert converter.calls == 1


def test_a_model_that_others_can_write_is_not_read(
    converter: Converter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").mkdir()
    in_a_new_process()
    (tmp_path / "cache").chmod(0o777)
    own = in_a_new_process()
    assert own.parent == tmp_path / "temporary" / f"poise-{os.getuid()}"
    assert converter.calls == 2
    assert f"others can write to {tmp_path / 'cache'}" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_names_the_variable(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "home" / ".cache"))
    assert in_a_new_process().parent == tmp_path / "temporary" / f"poise-{os.getuid()}"
    assert "Set POISE_CACHE" in capsys.readouterr().err
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "home"))
    with pytest.raises(caches.ConfigError, match="Set POISE_CACHE to a folder"):
        in_a_new_process()
