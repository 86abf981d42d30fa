"""Everything that moves, saved as a whole and restored bit for bit: tensors as safetensors, the rest as JSON.

A checkpoint is a folder `step-000012` that appears under its name only when it is complete, so a process killed at
any moment leaves the last complete one. Its state.json holds the checksums of its files, which are compared before they
are read. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poise.checksums import facts_below, read_sealed, require_facts, sealed
from poise.errors import RunError
from poise.files import translate_os_errors
from poise.ranks import current

_TENSOR = "__tensor__"
_KEEP = 2
_UNFINISHED = "unfinished-"
_PIECES = "pieces-"
_STATE = "state.json"


def save_checkpoint(
    folder: Path, step: int, state: Mapping[str, Any], *, note: Mapping[str, Any] | None = None
) -> Path:
    """Write `state` (nested mappings and lists of tensors and plain values) as the checkpoint of `step`.

    Of a sharded tensor every process writes the rows that it holds, so that nobody needs room for the whole. The last
    two checkpoints are kept. `note` is what `checkpoint_note` gives back: facts of the run at that step, which are no
    part of the state. Raises RunError if the disk is full; the ones before are untouched.
    """
    ranks = current()
    tensors: dict[str, Tensor] = {}
    plain = _take_tensors(state, "", tensors)
    held = {name: piece for name, tensor in tensors.items() if (piece := ranks.piece(tensor)) is not None}
    whole = {name: tensor for name, tensor in tensors.items() if name not in held}
    pieces = {f"{name}@{first}": rows for name, (first, rows) in held.items() if len(rows)}
    target, temporary = folder / f"step-{step:06d}", folder / f"{_UNFINISHED}{step:06d}"
    if ranks.is_main:
        for leftover in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
    ranks.wait()
    with translate_os_errors(target, sum(tensor.nbytes for tensor in (*whole.values(), *pieces.values()))):
        temporary.mkdir(parents=True, exist_ok=True)
        try:
            if pieces:
                write_tensors(temporary / f"{_PIECES}{ranks.rank:05d}.safetensors", pieces)
            ranks.wait()
            if ranks.is_main:
                write_tensors(temporary / "tensors.safetensors", whole)
                facts = {"files": facts_below(temporary), "note": dict(note or {})}
                (temporary / _STATE).write_text(json.dumps(sealed(plain, **facts)))
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    if ranks.is_main:
        for old in _complete(folder)[:-_KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    ranks.wait()
    return target


def latest_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The step and state of the newest complete checkpoint, or None if there is none.

    Tensors that were saved in pieces are `StoredPieces`; `restore_parameters` and `load_optimizer_state` read them, on
    any number of processes. Raises RunError if it cannot be read, naming the folder to delete.
    """
    from safetensors.torch import load_file

    newest = current().broadcast_object(next((place.name for place in reversed(_complete(folder))), None))
    if newest is None:
        return None
    place = folder / newest
    try:
        plain = _verified(place)[0]
        tensors: dict[str, Any] = dict(load_file(place / "tensors.safetensors"))
        state = _put_tensors(plain, tensors | _stored_pieces(place))
    except Exception as error:
        reason = str(error).strip() if isinstance(error, RunError) else repr(error)
        raise RunError(
            f"checkpoint {place} cannot be read ({reason}). Delete this folder to continue from the previous checkpoint"
        ) from error
    return _step(place), state


def checkpoint_note(folder: Path, step: int) -> dict[str, Any]:
    """What the checkpoint of `step`, which has been read, was saved with beside the state."""
    return dict(_verified(folder / f"step-{step:06d}", files=False)[1]["note"])


def _verified(place: Path, *, files: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plain part of a checkpoint's state and its seal; RunError unless its files are those that were written."""
    state, seal = read_sealed(place / _STATE, remedy="")
    if files and current().is_main:
        require_facts(place, seal["files"], remedy="")
    return state, seal


class StoredPieces:
    """A tensor that a checkpoint holds in several files, each with some of its rows; rows are read when asked for."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, int, Path, str]] = []  # first row, number of rows, file, key

    def add(self, first: int, number: int, path: Path, key: str) -> None:
        """Add the rows from `first` on, which stand in the file under `key`."""
        self._pieces.append((first, number, path, key))

    def rows(self, begin: int, end: int | None) -> Tensor:
        """The rows [begin, end) of the whole tensor; None is its end."""
        from safetensors import safe_open

        found: list[Tensor] = []
        for first, number, path, key in sorted(self._pieces):
            low = min(max(begin - first, 0), number)
            high = number if end is None else min(end - first, number)
            if low < high or not found:
                with safe_open(path, framework="pt") as stored:
                    found.append(stored.get_slice(key)[low : max(low, high)])
        return torch.cat(found)


def _stored_pieces(place: Path) -> dict[str, StoredPieces]:
    from safetensors import safe_open

    found: dict[str, StoredPieces] = {}
    for path in sorted(place.glob(f"{_PIECES}*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            for key in stored.keys():
                name, _, first = key.rpartition("@")
                number = stored.get_slice(key).get_shape()[0]
                found.setdefault(name, StoredPieces()).add(int(first), number, path, key)
    return found


@torch.no_grad()
def restore_parameters(parameters: Mapping[str, nn.Parameter], stored: Mapping[str, Any]) -> None:
    """Put the values of a checkpoint into parameters of the same names, bit for bit."""
    for name, parameter in parameters.items():
        parameter.copy_(current().like(parameter, stored[name]))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device as safetensors; a full disk is an OSError, as it is for any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The moving part of an optimizer: its per-parameter state by index."""
    return {str(index): dict(values) for index, values in optimizer.state_dict()["state"].items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore what `optimizer_state` gave."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    laid_out = {
        int(index): {name: _like(parameters[int(index)], value) for name, value in values.items()}
        for index, values in state.items()
    }
    optimizer.load_state_dict({"state": laid_out, "param_groups": optimizer.state_dict()["param_groups"]})


def _like(parameter: nn.Parameter, value: Any) -> Any:
    """A moment of an optimizer as its parameter is laid out; the number of steps as it is."""
    of_its_shape = isinstance(value, StoredPieces) or (isinstance(value, Tensor) and value.shape == parameter.shape)
    return current().like(parameter, value) if of_its_shape else value


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _complete(folder: Path) -> list[Path]:
    """The checkpoints in the folder, oldest first."""
    return sorted((place for place in folder.glob("step-*") if place.name[5:].isdigit()), key=_step)


def _take_tensors(value: Any, path: str, found: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(found)}{path}"  # numbered: a key may itself hold a slash
        found[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(key): _take_tensors(item, f"{path}/{key}", found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_tensors(item, f"{path}/{index}", found) for index, item in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _put_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value
