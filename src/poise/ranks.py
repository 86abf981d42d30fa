"""The processes of a run: one by default, several under torchrun; loops ask here and need not know which.

Every process goes through the same steps and holds the same figures: prompts, rollouts, scores, statistics. What costs
time, passes through the backbone, is parted: each process runs its rows, and sums bring the results together. So the
statistics of a batch are those of the whole batch, by the same code as in one process. `Ranks` is one process, where
all of it is the identity; `train/distributed.py` puts another in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

Item = TypeVar("Item")
Arguments = ParamSpec("Arguments")


class Ranks:
    """What a loop asks of the processes that it runs in. One process: every answer is what was given.

    All processes must ask the same questions in the same order. Only `rank`, `size`, `is_main`, `partition` and `like`
    are answered without the others.

    >>> Ranks().partition(["a", "b"]), Ranks().pad_to_equal_steps(["a"], spare="b")
    ((['a', 'b'], 1.0), [('a', 1.0)])
    """

    rank = 0
    size = 1
    is_sharded = False  # models are split over the processes

    @property
    def is_main(self) -> bool:
        """True in the one process that writes and prints."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes, without gradient."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the processes, without gradient."""
        return self.sum(x) / self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the processes; its gradient is that of this process's own term.

        With parameters' gradients summed afterwards, any loss of the whole batch has its whole gradient.
        """
        return x

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return number

    def broadcast_object(self, value: Any) -> Any:
        """The main process's value, as JSON holds it."""
        return value

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all processes in their order, as JSON holds them."""
        return [value]

    def wait(self) -> None:
        """Go on when all processes are here."""

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of the gradients; those of sharded parameters are summed by their own backward."""

    def shard(self, model: Any, layers: Sequence[nn.Module]) -> None:
        """Spread the model's weights over the processes; each layer is whole while it computes."""

    def gathered(self, model: Any) -> AbstractContextManager[None]:
        """Hold the model whole inside the block, so that processes may compute there out of step."""
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """A sharded tensor as a whole; any other as it is."""
        return tensor

    def piece(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        """Of a sharded tensor the first row that this process holds, and its rows; None for any other."""
        return None

    def like(self, target: Tensor, stored: Any) -> Tensor:
        """A whole tensor, or one that a checkpoint holds in pieces, laid out as `target` is."""
        found: Tensor = stored if not hasattr(stored, "rows") else stored.rows(0, None)
        return found

    def partition(self, items: Sequence[Item], costs: Sequence[float] | None = None) -> tuple[list[Item], float]:
        """This process's items, in their order, so that costs are about equal, and their weight: 1.

        A process for which none is left gets the first one, with weight 0.
        """
        if self.size == 1:
            return list(items), 1.0
        weights = [1.0] * len(items) if costs is None else costs
        order = sorted(range(len(items)), key=lambda i: -weights[i])
        # there and back again: the dearest items go to different processes, and each gets cheap ones too
        turns = [
            place % self.size if place // self.size % 2 == 0 else -1 - place % self.size for place in range(len(order))
        ]
        mine = sorted(i for i, turn in zip(order, turns, strict=True) if turn % self.size == self.rank)
        return ([items[i] for i in mine], 1.0) if mine else ([items[0]], 0.0)

    def pad_to_equal_steps(self, parts: Sequence[Item], spare: Item, weight: float = 1.0) -> list[tuple[Item, float]]:
        """Parts with their weight, after as many times `spare` at weight 0 as give every process equally many.

        Processes that share a sharded model must pass through it equally often. The spare ones come first, so that
        what is written for them is overwritten by what counts.
        """
        return [(spare, 0.0)] * (self.largest(len(parts)) - len(parts)) + [(part, weight) for part in parts]


_current = Ranks()


def current() -> Ranks:
    """The processes of this run."""
    return _current


@contextmanager
def use_ranks(ranks: Ranks) -> Iterator[Ranks]:
    """Run the block in these processes; a process is in one group at a time, whatever its threads."""
    global _current  # noqa: PLW0603
    before, _current = _current, ranks
    try:
        yield ranks
    finally:
        _current = before


def by_main(write: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Let the main process alone run a function that writes, while the others wait for it."""

    @wraps(write)
    def written(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if current().is_main:
            write(*args, **kwargs)
        current().wait()

    return written
