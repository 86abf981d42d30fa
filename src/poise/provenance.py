"""What a result depends on besides its arguments: package versions, the machine and the commit."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def package_versions(packages: Sequence[str] = ("torch", "transformers", "peft", "numpy", "poise")) -> dict[str, str]:
    """Installed versions by package name, without importing any of them."""
    from importlib import metadata

    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def machine() -> dict[str, Any]:
    """The Python version, the platform, the processor and the number of cores this process may use."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
        "cpu_count": usable_cores(),
    }


def processor() -> str:
    """What the processor calls itself, or its architecture where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def usable_cores() -> int:
    """Cores this process may run on, which a container can hold below the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> dict[str, Any]:
    """How many threads torch computes with here, and what the environment asked for: sums depend on it."""
    import torch

    return {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}


def git_commit(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit of a folder's repository, by default the working folder's, and whether tracked files differ.

    None outside of one.
    """
    commit = _git("rev-parse", "HEAD", folder=folder)
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", folder=folder))}


def poise_commit() -> dict[str, Any] | None:
    """The commit of the checkout that poise is imported from; None where it was installed from a package."""
    source = Path(__file__).parent
    is_tracked = _git("ls-files", "--error-unmatch", Path(__file__).name, folder=source)
    return git_commit(source) if is_tracked else None


def peak_rss_gib() -> float:
    """The largest resident memory so far, in GiB, of this process or of its largest finished child."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak * unit / 2**30


def _git(*arguments: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
