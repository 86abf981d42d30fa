"""Features of a frozen backbone, kept on disk: a row runs through the layers once, whoever asks and whenever."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from poise.checksums import Facts, facts_of, read_sealed, require_file, write_sealed
from poise.errors import RunError
from poise.files import atomic_write

ROWS_OF_A_PART = 128  # a killed process loses at most as many
_INDEX = "index.json"
Parts = Sequence[Sequence[int]]


def row_key(*facts: object) -> str:
    """Name a row by all that its features follow from.

    >>> row_key("model", 20, (1, 2)) == row_key("model", 20, (1, 3))
    False
    """
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


class FeatureCache:
    """Rows of features by key, in files of up to `ROWS_OF_A_PART` rows.

    Rows that are missing are computed in the order in which they are first asked for, so that a run that was killed
    goes on with the same passes as one that was not. index.json holds the checksums of the files, which are compared
    before their rows are used: RunError for one that is damaged or missing. `track` sees the parts that are about to be
    computed, one by one: the place for a progress bar.

    >>> import tempfile
    >>> cache = FeatureCache(tempfile.mkdtemp())
    >>> cache.get(["a", "b", "a"], lambda numbers: torch.tensor([[float(n)] for n in numbers])).flatten()
    tensor([0., 1., 0.])
    """

    def __init__(self, folder: str | Path, *, track: Callable[[Parts], Iterable[Sequence[int]]] = iter):
        self.folder, self.track = Path(folder), track
        self._rows: dict[str, Tensor] = {}
        self._parts: list[Facts] = []
        self._read_all()

    def get(self, keys: Sequence[str], compute: Callable[[Sequence[int]], Tensor]) -> Tensor:
        """Features [N, H] of the rows that `keys` name; `compute` gives those [M, H] of row numbers not seen before."""
        missing = [number for key, number in _first_places(keys).items() if key not in self._rows]
        parts = [missing[begin : begin + ROWS_OF_A_PART] for begin in range(0, len(missing), ROWS_OF_A_PART)]
        for part in self.track(parts) if parts else ():
            self._write([keys[number] for number in part], compute(part).cpu())
        return torch.stack([self._rows[key] for key in keys])

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.safetensors"

    def _read_all(self) -> None:
        remedy = f"Delete the folder {self.folder}: the same command then recomputes the features"
        index, places = self.folder / _INDEX, sorted(self.folder.glob("part-*.safetensors"))
        if places or index.exists():
            self._parts = read_sealed(index, remedy=remedy)[0]["parts"]
        for number, facts in enumerate(self._parts):
            require_file(self._path(number), facts, remedy=remedy)
        # a process killed between a part and the index leaves one part more
        if self._path(len(self._parts)) in places:
            self._parts.append(facts_of(self._path(len(self._parts))))
        if len(places) != len(self._parts):
            raise RunError(f"{self.folder} holds {len(places)} parts, but {len(self._parts)} were written. {remedy}")
        for place in places:
            self._read(place, remedy)

    def _read(self, path: Path, remedy: str) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as stored:
                about, rows = stored.metadata(), stored.get_tensor("rows")
        except (SafetensorError, OSError) as error:
            raise RunError(f"{path} is damaged: {error}. {remedy}") from error
        if about["sha256"] != _digest(about["keys"], rows):
            raise RunError(f"{path} is damaged: its contents have changed since they were written. {remedy}")
        self._rows |= dict(zip(about["keys"].split(), rows, strict=True))

    def _write(self, keys: Sequence[str], rows: Tensor) -> None:
        from safetensors.torch import save

        if not self._parts:
            write_sealed(self.folder / _INDEX, {"parts": []})
        joined, rows = " ".join(keys), rows.contiguous()
        data = save({"rows": rows}, metadata={"keys": joined, "sha256": _digest(joined, rows)})
        atomic_write(self._path(len(self._parts)), data)
        self._parts.append({"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
        write_sealed(self.folder / _INDEX, {"parts": self._parts})
        self._rows |= dict(zip(keys, rows, strict=True))


def _digest(keys: str, rows: Tensor) -> str:
    digest = hashlib.sha256(keys.encode())
    digest.update(rows.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_places(keys: Sequence[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for number, key in enumerate(keys):
        places.setdefault(key, number)
    return places
