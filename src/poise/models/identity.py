"""Which model a name stood for: checksums of its files, and its revision where it came from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from poise.checksums import facts_of
from poise.errors import RunError
from poise.files import atomic_write, cache_folder

_SUFFIXES = (".safetensors", ".model", ".jinja")
_NAMES = (
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.json"),
)
Identity = dict[str, Any]  # checksum, files and revision


def identity_of(source: str) -> Identity:
    """The checksum of a model in a folder or in the hub's cache, of each of its files, and the hub's revision.

    A model that has no files, such as a random one, is what its name says.
    """
    folder = _folder(source)
    if folder is None:
        return {"checksum": _digest({"name": source}), "files": {}, "revision": None}
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES or path.name in _NAMES]
    files = {path.name: _checksum(path) for path in paths}
    revision = folder.name if folder.parent.name == "snapshots" else None
    return {"checksum": _digest(files), "files": files, "revision": revision}


def _folder(source: str) -> Path | None:
    if Path(source).is_dir():
        return Path(source)
    if source.startswith("random:"):
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "adapter_config.json"):
        if isinstance(found := try_to_load_from_cache(source, name), str):
            return Path(found).parent
    return None


def _checksum(path: Path) -> str:
    """The SHA-256 of a file; of a large one it is kept until the file changes its place, size or times."""
    real = path.resolve()
    stat = real.stat()
    if stat.st_size < 1 << 20:
        return str(facts_of(real)["sha256"])
    facts = [str(real), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    record = cache_folder() / "checksums" / _digest({"facts": facts})
    with suppress(OSError):
        if len(kept := record.read_text().strip()) == 64:
            return kept
    found = str(facts_of(real)["sha256"])
    with suppress(RunError):  # a cache that cannot be written costs reading the file again
        atomic_write(record, found + "\n")
    return found


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
