"""A kernel is loaded only if it is what was compiled, from a folder that nobody else can write."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from poise import caches, kernels
from poise.caches import private_cache, written_by_others

needs_kernels = pytest.mark.skipif(kernels.compiled().library is None, reason="no compiled kernels here")


class Compiler:
    """Stands in for the compiler: hands out the library that is there, and counts."""

    def __init__(self, folder: Path):
        library = kernels.compiled().library._name
        self.path, self._calls = folder / "compiler", folder / "calls"
        self.path.write_text(
            f'#!/bin/sh\nfor last; do :; done\ncp "{library}" "$last"\necho called >> "{self._calls}"\n'
        )
        self.path.chmod(0o755)

    @property
    def calls(self) -> int:
        return len(self._calls.read_text().splitlines()) if self._calls.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    found = Compiler(tmp_path)
    monkeypatch.setenv("CXX", str(found.path))
    return found


def load() -> kernels.Kernels:
    return kernels.compiled.__wrapped__()


@needs_kernels
@pytest.mark.parametrize("damage", ["cut", "zeros", "a bit", "empty"])
def test_a_damaged_kernel_is_compiled_again(compiler: Compiler, tmp_path: Path, damage: str) -> None:
    assert load().library is not None
    assert load().library is not None
    assert compiler.calls == 1
    (kernel,) = (tmp_path / "cache").glob("kernels-*.so")
    data = kernel.read_bytes()
    at = len(data) // 2
    changed = {
        "cut": data[:at],
        "zeros": bytes(len(data)),
        "a bit": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        "empty": b"",
    }
    kernel.unlink()  # the library stays mapped by this process, and must not change under it
    kernel.write_bytes(changed[damage])
    told = "from poise import kernels; print(kernels.compiled().library is not None)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    assert compiler.calls == 2
    assert [path.read_bytes() for path in (tmp_path / "cache").glob("kernels-*.so")] == [data]


@needs_kernels
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_folder_that_others_can_write_holds_no_code(
    compiler: Compiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mode: int,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    caches._say_once.cache_clear()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    found = load()
    private = tmp_path / "temporary" / f"poise-{os.geteuid()}"
    assert Path(found.library._name).parent == private
    assert not list((tmp_path / "cache").iterdir())
    told = capsys.readouterr().err
    assert f"others can write to {tmp_path / 'cache'}: cached files for this machine go to {private}" in told
    assert "Set POISE_CACHE" in told


def test_a_folder_inside_one_that_others_can_write_is_not_private(tmp_path: Path) -> None:
    inner = tmp_path / "open" / "cache"
    inner.mkdir(parents=True)
    assert written_by_others(inner) == ""
    inner.parent.chmod(0o777)
    assert str(inner.parent) in written_by_others(inner)
    inner.parent.chmod(0o1777)  # as /tmp is: entries there keep their owners
    assert written_by_others(inner) == ""


def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "home" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    caches._say_once.cache_clear()
    assert private_cache() == tmp_path / f"poise-{os.geteuid()}"
    assert private_cache().stat().st_mode & 0o022 == 0
    assert capsys.readouterr().err.count("Set POISE_CACHE") == 1


def test_a_folder_of_another_user_holds_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("poise.caches.os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(caches.ConfigError, match=r"cache belongs to another user, and .*Set POISE_CACHE"):
        private_cache()
