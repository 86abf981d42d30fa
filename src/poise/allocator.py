"""Let the C library keep freed memory, so that large short-lived tensors are not mapped and cleared again each time.

glibc gives every large buffer back to the system when it is freed, and the next one is page-faulted in anew, 4 KiB at a
time. Models on a CPU allocate the same sizes over and over; `docs/log.md` says what that was worth.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_FIRST_WITH_HUGE_PAGES = (2, 35)
TUNABLES = "GLIBC_TUNABLES"
TUNED = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
)


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to grow one heap and never shrink it; returns whether it took effect.

    A process that was started with malloc settings of its own (GLIBC_TUNABLES or MALLOC_*) is left as it is.
    """
    if not _is_ours_to_tune():
        return False
    library = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    return all([library.mallopt(name, value) == 1 for name, value in settings])


def restart_with_huge_pages() -> None:
    """Start this program again, as the same process, with a malloc that keeps freed memory in huge pages.

    glibc reads that setting once, before the first line of a program. Returns where there is nothing to gain: another C
    library, or a process that was started with malloc settings of its own, such as one that was started again.
    """
    version = tuple(int(part) for part in platform.libc_ver()[1].split(".") if part.isdigit())
    if not _is_ours_to_tune() or version < _FIRST_WITH_HUGE_PAGES:
        return None
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, {**os.environ, TUNABLES: TUNED})


def _is_ours_to_tune() -> bool:
    chosen = TUNABLES in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    return not chosen and platform.libc_ver()[0] == "glibc"
