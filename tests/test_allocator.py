"""Freed memory stays with the process, unless the user has decided otherwise."""

import os
import subprocess
import sys

from poise.allocator import TUNED, keep_freed_memory

FAULTS = """
import resource, sys
from poise.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(20)))
"""


def plain_environment():
    return {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}


def test_a_large_tensor_is_not_page_faulted_in_again_where_memory_is_kept():
    counts = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, mode],
                capture_output=True,
                text=True,
                check=True,
                env=plain_environment(),
            ).stdout
        )
        for mode in ("keep", "plain")
    }
    assert counts["keep"] < counts["plain"] / 10


def test_settings_of_the_user_stay(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert not keep_freed_memory()


RESTARTED = """
import os, sys
from poise.allocator import restart_with_huge_pages
restart_with_huge_pages()
print(os.getpid(), sys.argv[1:], os.environ["GLIBC_TUNABLES"])
"""


def test_a_program_starts_again_once_as_the_same_process_with_the_same_words():
    command = [sys.executable, "-c", RESTARTED, "run", "a b"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=plain_environment())
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 0
    assert said.split(" ", 1) == [str(started.pid), f"['run', 'a b'] {TUNED}\n"]


def test_a_program_with_settings_of_its_own_is_not_started_again():
    command = [sys.executable, "-c", RESTARTED]
    said = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=plain_environment() | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"},
    )
    assert said.stdout.endswith("[] glibc.malloc.arena_max=1\n")


def test_the_command_line_runs_recipes_with_huge_pages(tmp_path):
    code = "import os\n\ndef tell(*, folder=None):\n    print(os.environ.get('GLIBC_TUNABLES'))\n"
    recipe = tmp_path / "tell.py"
    recipe.write_text(code)
    found = subprocess.run(
        [sys.executable, "-m", "poise", "run", str(recipe)],
        capture_output=True,
        text=True,
        env=plain_environment(),
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert found.stdout.strip() == TUNED, found.stderr
