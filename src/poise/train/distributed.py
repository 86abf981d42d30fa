"""Several processes as one: the only file that knows torch.distributed.

    torchrun --nproc-per-node 8 -m poise run safe-rlhf --model owner/model

Models are sharded by FSDP2, layer by layer. The weights that FSDP2 gathers are those of the backbone, frozen or trained
whole; adapters and heads are small, stay whole in every process, and their gradients are summed. The backbone runs its
layers by hand, so that no `forward` of the model is called: `in_one_pass` stands for it, and gathers the embedding,
the final norm and the head, while each layer's own hooks gather the layer.
Source: PyTorch FSDP2, torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from types import MethodType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from poise.ranks import Ranks, use_ranks

_PATIENCE = timedelta(hours=2)  # the main process may talk to a slow server while the others wait
_SHARD = "POISE_SHARD"


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Be one of the processes that torchrun started, inside the block; a process started alone is on its own.

    POISE_SHARD=0 keeps a whole model in every process, which is faster where it fits. The group is destroyed at the
    end, also after an error, and not before all have come to it: a process that exits with its group alive leaves
    threads with open connections behind, and may leave the others in the middle of a call.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or dist.is_initialized():
        with use_ranks(Ranks()) as alone:
            yield alone
        return
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        ranks = ProcessGroup(device, shard=os.environ.get(_SHARD, "1") != "0")
        with use_ranks(ranks), _quiet_unless(ranks.is_main):
            yield ranks
            ranks.wait()  # nobody leaves while another still speaks to it
    finally:
        dist.destroy_process_group()


@contextmanager
def _quiet_unless(speaks: bool) -> Iterator[None]:
    if speaks:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


class ProcessGroup(Ranks):
    """The processes of torch.distributed's default group."""

    def __init__(self, device: torch.device, *, shard: bool = True):
        self.rank, self.size, self.is_sharded = dist.get_rank(), dist.get_world_size(), shard
        self.device = device
        self.mesh = init_device_mesh(device.type, (self.size,))

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes, without gradient."""
        total = x.detach().to(self.device, copy=True).contiguous()
        dist.all_reduce(total)
        return total.to(x.device)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the processes; its gradient is that of this process's own term."""
        return x + (self.sum(x) - x.detach())

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        found = torch.tensor(number, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def broadcast_object(self, value: Any) -> Any:
        """The main process's value, as JSON holds it."""
        data = self._encoded(value) if self.is_main else torch.empty(0, dtype=torch.uint8, device=self.device)
        size = torch.tensor(len(data), device=self.device)
        dist.broadcast(size, 0)
        data = data if self.is_main else torch.empty(int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(data, 0)
        return self._decoded(data)

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all processes in their order, as JSON holds them."""
        data = self._encoded(value)
        sizes = [torch.zeros((), dtype=torch.long, device=self.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor(len(data), device=self.device))
        longest = max(int(size) for size in sizes)
        found = [torch.empty(longest, dtype=torch.uint8, device=self.device) for _ in range(self.size)]
        dist.all_gather(found, nn.functional.pad(data, (0, longest - len(data))))
        return [self._decoded(each[: int(size)]) for each, size in zip(found, sizes, strict=True)]

    def _encoded(self, value: Any) -> Tensor:
        return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)

    @staticmethod
    def _decoded(data: Tensor) -> Any:
        return json.loads(data.cpu().numpy().tobytes())

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.largest(0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of the gradients of replicated parameters, in one message for each dtype."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def shard(self, model: Any, layers: Sequence[nn.Module]) -> None:
        """Spread the model's weights over the processes; each layer is whole while it computes."""
        if not self.is_sharded:
            return
        for module in (*layers, model):
            fully_shard(module, mesh=self.mesh)
            cast("FSDPModule", module).set_force_sum_reduction_for_comms(True)
            cast("FSDPModule", module).set_gradient_divide_factor(
                1.0
            )  # losses are divided by counts of the whole batch
        model.hooked_pass = MethodType(_hooked_pass, model)
        register_fsdp_forward_method(model, "hooked_pass")
        model.in_one_pass = MethodType(_in_one_pass, model)
        model.hooked_pass(_nothing)  # names the root before a layer runs on its own
        model.reshard()

    @contextmanager
    def gathered(self, model: Any) -> Iterator[None]:
        """Hold the model whole inside the block, so that processes may compute there out of step."""
        shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in shards:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in shards:
                module.reshard()
                module.set_reshard_after_forward(module is not model, recurse=False)

    def whole(self, tensor: Tensor) -> Tensor:
        """A sharded tensor as a whole; any other as it is."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def piece(self, tensor: Tensor) -> tuple[int, Tensor] | None:
        """Of a sharded tensor the first row that this process holds, and its rows; None for any other.

        FSDP2 cuts along the first dimension, in equal chunks of which the last may be shorter or missing.
        """
        if not isinstance(tensor, DTensor):
            return None
        chunk = -(-tensor.shape[0] // self.size)
        return min(self.rank * chunk, tensor.shape[0]), tensor.to_local()

    def like(self, target: Tensor, stored: Any) -> Tensor:
        """A whole tensor, or one that a checkpoint holds in pieces, laid out as `target` is."""
        held = self.piece(target)
        if held is None or not isinstance(target, DTensor) or isinstance(stored, DTensor):
            return super().like(target, stored)
        begin, end = held[0], held[0] + len(held[1])
        rows = stored.rows(begin, end) if hasattr(stored, "rows") else stored[begin:end]
        return DTensor.from_local(
            rows.to(target.device),
            target.device_mesh,
            target.placements,
            run_check=False,
            shape=target.shape,
            stride=target.stride(),
        )


def _in_one_pass(self: Any, compute: Callable[[], Any]) -> Any:
    """Run a computation on a sharded model.

    FSDP2 leaves the root's own weights gathered until a backward pass. Where there will be none and they are trained,
    they must go: the next step moves the shards, and a gathered copy would be out of date.
    """
    result = self.hooked_pass(compute)
    if not torch.is_grad_enabled() and next(self.parameters()).requires_grad:
        self.reshard()
    return result


def _hooked_pass(self: Any, compute: Callable[[], Any]) -> Any:
    result = compute()
    if isinstance(result, tuple):
        return tuple(_own_storage(each) for each in result)
    return _own_storage(result)


def _own_storage(result: Any) -> Any:
    """A tensor that is not a view: FSDP2 hangs the backward pass on it."""
    return result.clone() if isinstance(result, Tensor) and result._is_view() else result


def _nothing() -> None:
    return None
