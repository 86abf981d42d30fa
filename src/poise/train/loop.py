"""The loop around a trainer's step: accumulate, clip, step, log, checkpoint, resume, stop.

A trainer has `step_at(index) -> metrics`, `state_dict()` and `load_state_dict(state)`; which data a step sees follows
from its index and the seed, so the data position is the step itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from poise.errors import NonFiniteError
from poise.files import translate_os_errors
from poise.ranks import current
from poise.run import Run
from poise.text import visible
from poise.train.checkpoint import checkpoint_note, latest_checkpoint, save_checkpoint, write_tensors

_MANY_WEIGHTS = 10_000_000  # beyond adapters: all weights of a model are trained

Schedule = Callable[[int, int], float]  # (step, steps) -> factor on a learning rate, or another weight


class Trainer(Protocol):
    """What `fit` needs of a trainer: steps by index, and all state that changes."""

    def step_at(self, index: int) -> Mapping[str, float]:
        """Run step `index`, from 0, and return its metrics; the index and the seed alone determine its rows."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All state that changes: tensors, and what JSON can hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, bit for bit."""
        ...


def constant(step: int, steps: int) -> float:
    """A factor of 1 at every step.

    >>> constant(5, 10)
    1.0
    """
    return 1.0


def cosine(step: int, steps: int, *, warmup: float = 0.03) -> float:
    """Linear warm-up over the share `warmup` of the steps, then half a cosine to 0.

    >>> [round(cosine(step, 5, warmup=0.2), 3) for step in range(5)]
    [1.0, 1.0, 0.854, 0.5, 0.146]
    """
    begin = max(1, round(warmup * steps))
    if step < begin:
        return (step + 1) / begin
    return 0.5 * (1 + math.cos(math.pi * (step - begin) / max(1, steps - begin)))


def linear(step: int, steps: int, *, to: float = 0.1, by: float = 1.0) -> float:
    """A factor that falls linearly from 1 to `to`, which it reaches after the share `by` of the steps.

    >>> [round(linear(step, 5), 3) for step in range(5)]
    [1.0, 0.775, 0.55, 0.325, 0.1]
    """
    return 1.0 - (1.0 - to) * min(1.0, step / max(1.0, by * (steps - 1)))


def stepped(step: int, steps: int, *, to: float, after: float) -> float:
    """A factor of 1 at first, and of `to` after the share `after` of the steps.

    >>> [stepped(step, 6, to=0.4, after=0.5) for step in (0, 2, 3, 5)]
    [1.0, 1.0, 0.4, 0.4]
    """
    return 1.0 if step < after * steps else to


def fit(
    trainer: Trainer,
    *,
    run: Run,
    stage: str,
    steps: int,
    save_every: int = 1,
    shown: Iterable[str] = ("loss",),
    after_step: Callable[[int, Mapping[str, float]], None] | None = None,
) -> None:
    """Run the trainer to `steps`, from its last checkpoint if there is one, and log each step.

    A kill -9 loses at most the steps since the last checkpoint. A resumed run repeats them with the same random
    streams, so on a CPU the final weights equal those of an uninterrupted run.

    stage       name of the stage whose folder holds the checkpoints and whose metrics are logged
    save_every  steps between two checkpoints; the last step always has one
    shown       metrics in the progress bar
    after_step  called with the number of steps done and the metrics of the step

    Raises RunError if a checkpoint or the log is damaged, and what `trainer.step_at` raises.
    """
    folder = run.stage(stage).path / "checkpoints"
    begin = 0
    if (found := latest_checkpoint(folder)) is not None:
        begin, state = found
        trainer.load_state_dict(state)
    run.rewind(stage, begin)
    if found is not None:
        run.require_logged(stage, checkpoint_note(folder, begin).get("logged", {}))
    with progress_bar(stage, steps, begin, tuple(shown)) as show:
        for index in range(begin, steps):
            started = time.monotonic()
            metrics = dict(trainer.step_at(index))
            metrics["seconds"] = time.monotonic() - started
            run.log(stage, index + 1, metrics)
            if after_step is not None:
                after_step(index + 1, metrics)
            if (index + 1) % save_every == 0 or index + 1 == steps:
                save_checkpoint(folder, index + 1, trainer.state_dict(), note={"logged": run.logs.logged(stage)})
            show(metrics)


class progress_bar:
    """A progress bar on stderr with the named metrics; without a terminal, a plain line from time to time."""

    def __init__(self, title: str, steps: int, begin: int, shown: tuple[str, ...]):
        self.title, self.steps, self.done, self.shown = visible(title), steps, begin, shown
        self.started, self.begin, self.last_line = time.monotonic(), begin, float("-inf")

    def __enter__(self) -> Callable[[Mapping[str, float]], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=not current().is_main)
        ends = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[text]}", markup=False)
        columns = (ends[0], BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), ends[1])
        self.bar = Progress(*columns, console=self.console, transient=False, disable=not self.console.is_terminal)
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=self.steps, completed=self.begin, text="")
        return self._show

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def _show(self, metrics: Mapping[str, float]) -> None:
        self.done += 1
        text = visible("  ".join(f"{name} {metrics[name]:.3g}" for name in self.shown if name in metrics))
        self.bar.update(self.task, advance=1, text=text)
        now = time.monotonic()
        due = now - self.last_line > 15 or self.done == self.steps
        if not self.console.is_terminal and due:
            left = (now - self.started) / max(1, self.done - self.begin) * (self.steps - self.done)
            self.console.print(
                f"{self.title} {self.done}/{self.steps}  {text}  {left:.0f} s left",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            self.last_line = now


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    *,
    max_norm: float | None,
    dump: Path | None = None,
    batch: Mapping[str, Tensor] | None = None,
) -> float:
    """Sum over the processes, clip by global norm, step and clear; returns the norm before clipping.

    Raises NonFiniteError naming the first parameter whose gradient is not finite, after writing the batch to `dump`.
    """
    current().sum_gradients(parameters.values())
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values())) if gradients else torch.zeros(())
    norm = current().whole(norm)
    if not bool(norm.isfinite()):
        require_finite({f"gradient of {name}": g for name, g in gradients.items()}, dump=dump, batch=batch)
        require_finite({"norm of the gradient": norm}, dump=dump, batch=batch)  # finite numbers, too large to square
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), max_norm, norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def require_finite(
    tensors: Mapping[str, Tensor],
    *,
    dump: Path | None = None,
    batch: Mapping[str, Tensor] | None = None,
    error: type[NonFiniteError] = NonFiniteError,
    advice: str = "Lower the learning rate, or look at the batch",
) -> None:
    """Raise `error` naming the first tensor with a NaN or infinity, after writing the batch to `dump`."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            where = ""
            if dump is not None:
                with translate_os_errors(dump, tensor.nbytes):
                    dump.parent.mkdir(parents=True, exist_ok=True)
                    write_tensors(dump, {**(batch or {}), name: tensor})
                where = f"; the batch is in {dump}"
            count = int((~tensor.isfinite()).sum())
            raise error(f"{name} has {count} of {tensor.numel()} values that are NaN or infinite{where}. {advice}")


def adamw(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW with the betas of all our loops; in one pass over the weights where there are many of them."""
    weights = list(parameters)
    fused = sum(each.numel() for each in weights) > _MANY_WEIGHTS
    return torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay, fused=fused or None)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base times factor."""
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        group["lr"] = group["base_lr"] * factor
