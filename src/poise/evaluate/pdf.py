"""A page as PDF, printed by the Chromium that is installed; poise brings none along."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from poise.errors import ConfigError, RunError
from poise.text import one_line

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_QUIET = (
    *("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-pdf-header-footer"),
)
_TIMEOUT_S = 120


def find_browser() -> str:
    """The path of a browser that can print; ConfigError, with how to get one, where there is none."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise ConfigError(
        f"--pdf prints with Chromium or Chrome, and none of {', '.join(BROWSERS)} is on the PATH. On Debian and "
        "Ubuntu: apt-get install chromium; on macOS: brew install --cask chromium. Or open report.html in any "
        "browser and print it into a file: the page has a style for print"
    )


def print_page(page: Path, browser: str = "") -> Path:
    """Print a page that stands alone into a PDF of the same name beside it, and return its path.

    Raises ConfigError if no browser is found, RunError if it fails or takes too long; an older PDF then stays as it is.
    """
    browser, target = browser or find_browser(), page.with_suffix(".pdf")
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / target.name
        words = [browser, *_QUIET, f"--user-data-dir={folder}/profile", f"--print-to-pdf={printed}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            words.append("--no-sandbox")  # Chromium refuses to start as root with one
        _call([*words, page.resolve().as_uri()])
        if not printed.is_file() or not printed.read_bytes().startswith(b"%PDF"):
            raise RunError(f"{browser} printed no PDF of {page}; open it in a browser and print it from there")
        shutil.move(printed, target)
    return target


def _call(words: list[str]) -> None:
    remedy = "Open report.html in a browser and print it from there"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, errors="replace")
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{words[0]} printed nothing within {_TIMEOUT_S} seconds. {remedy}") from error
    except OSError as error:
        raise RunError(f"{words[0]} cannot be started: {error.strerror}. {remedy}") from error
    if done.returncode != 0:
        raise RunError(f"{words[0]} failed with status {done.returncode}: {one_line(done.stderr[-300:])}. {remedy}")
