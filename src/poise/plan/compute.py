"""Seconds and bytes of the kinds of work that runs are made of: passes, generation, training.

Seconds are those of matrix products at the machine's rate for their rows, of reading and writing what lies between
them, and of starting operations. Constants below were counted from the code, and two of them fitted to one machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from poise.plan.machines import Machine
from poise.plan.model_sizes import ModelSize
from poise.plan.probe import Probe

CALLS_PER_LAYER = 45  # operations of one layer's forward pass, adapters included
TRAFFIC = {True: 1.0, False: 3.5}  # how often the counted traffic passes through memory, on a GPU and on a CPU
BETWEEN_BACKWARD = {True: 2.0, False: 6.0}  # what lies between the products of a backward pass, in forward passes
LOGIT_BYTES = 50.0  # read and written for each logit of a position whose log-probability is wanted
_FIXED_SHARE = 0.4  # of a step of generation: what it takes however few rows there are
BACKWARD_FROZEN, BACKWARD_TRAINED = 1.0, 2.0  # products of a backward pass, in forward passes
PASS_TOKENS = 2048  # of a micro-batch
BATCH_ROWS = 64  # answered at once by one process
HEAD_POSITIONS = 1536  # whose logits are held at once
STATE_BYTES = 16  # of a trained weight: itself, its gradient and two moments, all fp32
SLACK = {True: 1.1, False: 1.9}  # what is held over what is asked for; a heap of many stages is full of holes
PROCESS_BYTES = {True: 0.8e9, False: 0.8e9}  # Python and its libraries; the CUDA context


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a run is laid out over the machine."""

    processes: int = 1
    is_sharded: bool = False  # by FSDP2; else every process has a whole model
    is_full: bool = False  # all weights are trained, not an adapter
    recompute: bool = False  # activations are computed again in the backward pass
    top: float = 0.5  # share of the layers that an adapter touches
    base_bits: int = 16  # of a frozen weight on a GPU; 4 with bitsandbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What work costs for one model on one machine."""

    model: ModelSize
    machine: Machine
    setting: Setting = Setting()
    probe: Probe | None = None  # our own passes as measured on the machine; None: told from its figures

    def forward(self, tokens: float, *, layers: float | None = None, positions: float = 0.0) -> float:
        """Seconds to run tokens through some layers, and so many positions through the head."""
        return self._pass(tokens, self.model.layers if layers is None else layers, positions, backward=0.0)

    def training(self, tokens: float, *, positions: float) -> float:
        """Seconds of a forward and a backward pass through the trained layers."""
        backward = BACKWARD_TRAINED if self.setting.is_full else BACKWARD_FROZEN
        return self._pass(tokens, self.trained_layers, positions, backward=backward + float(self.setting.recompute))

    def decoding(self, rows: float, steps: float, *, context: float) -> float:
        """Seconds to draw `steps` tokens for each of the rows, whose keys and values grow to `context` tokens."""
        mine = max(1.0, rows / self.setting.processes)
        batches = max(1.0, mine / BATCH_ROWS)
        gather = self._gathering(1.0)  # once for all steps
        return batches * steps * self._decoding_step(mine / batches, context) + gather

    def _decoding_step(self, mine: float, context: float) -> float:
        model, machine = self.model, self.machine
        if (probe := self.probe) is not None:
            step = model.layers * probe.decoding_layer + probe.decoding_head
            return step * (_FIXED_SHARE + (1 - _FIXED_SHARE) * mine / probe.rows)
        weights = model.parameters * machine.element_bytes / machine.bandwidth
        products = 2 * (model.parameters - (0 if model.is_tied else model.vocabulary * model.hidden)) * mine
        cache = mine * context * self._cache_bytes() / machine.bandwidth
        sampler = 6 * mine * model.vocabulary * 4 / machine.bandwidth  # a few passes over the logits
        calls = model.layers * CALLS_PER_LAYER * machine.call
        between = self._between(mine, model.layers) / machine.bandwidth
        arithmetic = max(weights, products / machine.rate(mine))
        work = arithmetic + cache + sampler + between
        return max(work, calls) if machine.is_gpu else work + calls

    @property
    def trained_layers(self) -> float:
        """Layers that a gradient flows through."""
        return (
            float(self.model.layers) if self.setting.is_full else max(1.0, round(self.model.layers * self.setting.top))
        )

    def _pass(self, tokens: float, layers: float, positions: float, *, backward: float) -> float:
        model, machine = self.model, self.machine
        mine, times = tokens / self.setting.processes, 1 + backward
        rows = min(mine, PASS_TOKENS)
        number = max(1.0, mine / PASS_TOKENS)
        gather = self._gathering(layers / model.layers) * number * (2 if backward else 1)
        if self.probe is not None:
            return self._measured(mine * layers, positions / self.setting.processes, backward) + gather
        head = 2 * model.hidden * model.vocabulary * positions / self.setting.processes
        products = 2 * model.layer_parameters * layers * mine * times + head * (2 if backward else 1)
        logits = LOGIT_BYTES * positions / self.setting.processes * model.vocabulary * (2 if backward else 1)
        between = self._between(mine, layers) * (1 + backward * BETWEEN_BACKWARD[machine.is_gpu]) + logits
        calls = number * layers * CALLS_PER_LAYER * machine.call * times
        work = products / machine.rate(rows) + between / machine.bandwidth
        seconds = max(work, calls) if machine.is_gpu else work + calls
        return seconds + gather

    def _measured(self, tokens_layers: float, positions: float, backward: float) -> float:
        """Seconds of a pass as the probe says; what a frozen backbone does not have is added in forward passes."""
        assert self.probe is not None
        found = self.probe
        forward = tokens_layers * found.forward_layer
        if not backward:
            return forward + positions * found.forward_head
        more = backward - BACKWARD_FROZEN
        return tokens_layers * found.training_layer + positions * found.training_head + more * forward

    def _between(self, tokens: float, layers: float) -> float:
        """Bytes that are read and written between the products of a forward pass."""
        model, bytes_each = self.model, self.machine.element_bytes
        entries = 24 * model.hidden + 6 * model.intermediate + 6 * (model.query_width + model.kv_width)
        return TRAFFIC[self.machine.is_gpu] * tokens * layers * entries * bytes_each

    def _gathering(self, share: float) -> float:
        """Seconds to gather a share of the sharded layers once."""
        setting, machine = self.setting, self.machine
        if not setting.is_sharded or setting.processes == 1:
            return 0.0
        bytes_each = 4 if setting.is_full else machine.element_bytes
        others = (setting.processes - 1) / setting.processes
        return share * self.model.parameters * bytes_each * others / machine.link

    def _cache_bytes(self) -> float:
        """Bytes of the keys and values of one token."""
        return 2.0 * self.model.layers * self.model.kv_width * self.machine.element_bytes

    # Memory, in bytes of one process.

    def weights(self) -> float:
        """The frozen backbone; where all weights are trained, also the trained ones with gradients and moments."""
        model, setting = self.model, self.setting
        parts = setting.processes if setting.is_sharded else 1
        bytes_each = setting.base_bits / 8 if setting.base_bits < 16 else self.machine.element_bytes
        frozen = model.parameters * bytes_each / parts
        trained = model.parameters * STATE_BYTES / parts if setting.is_full else self.adapter()
        layer = model.layer_parameters * (4 if setting.is_full else self.machine.element_bytes)
        ends = model.vocabulary * model.hidden * (4 if setting.is_full else self.machine.element_bytes)
        return frozen + trained + (2 * layer + ends if parts > 1 else 0.0)  # one layer at work, one on its way

    def adapter(self) -> float:
        """An adapter with gradients and moments, whole in every process."""
        return self.model.adapter_parameters(layers=round(self.trained_layers)) * STATE_BYTES

    def updating(self) -> float:
        """What a micro-batch leaves for its backward pass."""
        model, bytes_each = self.model, self.machine.element_bytes
        entries = 2 * model.hidden + 2 * (model.query_width + model.kv_width) + 2 * model.intermediate
        if self.machine.is_gpu or self.setting.is_sharded:  # the family's own layers keep more, norms in float32
            entries += 22 * model.hidden + 2 * model.intermediate
        kept = bytes_each * entries
        if self.setting.recompute:
            layers = PASS_TOKENS * (self.trained_layers * model.hidden * bytes_each + kept)
        else:
            layers = PASS_TOKENS * self.trained_layers * kept
        return SLACK[self.machine.is_gpu] * layers + self.scoring()

    def scoring(self) -> float:
        """Logits of one chunk of positions, in the dtype of the backbone and as float."""
        return SLACK[self.machine.is_gpu] * HEAD_POSITIONS * self.model.vocabulary * (self.machine.element_bytes + 8.0)

    def generating(self, rows: float, *, context: float) -> float:
        """Keys and values of all rows, the logits of one step, and, of a sharded model, the weights gathered."""
        model, setting = self.model, self.setting
        mine = max(1.0, min(rows / setting.processes, BATCH_ROWS))
        gathered = model.parameters * (4 if setting.is_full else self.machine.element_bytes)
        whole = gathered if setting.is_sharded and setting.processes > 1 else 0.0
        return mine * context * self._cache_bytes() + 3 * mine * model.vocabulary * 4 + whole

    def states(self, tokens: float) -> float:
        """States below the first trained layer, kept for the update."""
        is_kept = not self.setting.is_full and self.setting.top < 1
        return tokens / self.setting.processes * self.model.hidden * self.machine.element_bytes * float(is_kept)

    def process(self) -> float:
        """Python with its libraries."""
        return PROCESS_BYTES[self.machine.is_gpu]
