"""What is installed is pinned in one place and compared with checksums."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT_CHECKSUM = {"torch"}  # its file differs by machine
OF_THE_BUILD = {"hatchling", "trove-classifiers", "editables"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    lines = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s\\]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {plain(package): version for package, version in lines}


def test_every_file_that_make_installs_has_a_checksum() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[A-Za-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    entries = [entry for entry in entries if entry.strip()]
    assert len(entries) > 50
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "--require-hashes --no-deps -r requirements.lock" in (ROOT / "Makefile").read_text()
    assert "--no-build-isolation -e ." in (ROOT / "Makefile").read_text()  # the backend is the one of the lock


def test_the_lock_has_the_versions_of_the_constraints_and_all_that_the_project_asks_for() -> None:
    lock, constraints = pins("requirements.lock"), pins("constraints.txt")
    assert {name: version for name, version in lock.items() if name not in OF_THE_BUILD} == {
        name: constraints.get(name) for name in lock.keys() - OF_THE_BUILD
    }, "make requirements.lock again, as its first lines say"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    asked += project["build-system"]["requires"]
    wanted = {plain(re.split(r"[<>=!~;\[ ]", line)[0]) for line in asked}
    assert wanted - WITHOUT_CHECKSUM <= lock.keys()
    assert not WITHOUT_CHECKSUM & lock.keys()
