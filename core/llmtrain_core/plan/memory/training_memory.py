"""GPU memory by part, in bytes, of the rank that needs the most.

State: stored weights, gradients and the two Adam moments, with the state of replica synchronization
(`llmtrain_core.plan.gradient_sync`). For fsdp2 each is 32 bits and sharded over the data ranks: 16
bytes a parameter over d. For zero1, 16-bit weights and 32-bit gradients are replicated, and the
32-bit master weights and moments are sharded: 6 + 12 / d (Rajbhandari et al., arXiv:1910.02054;
Megatron-LM's distributed optimizer). For ddp nothing is sharded.

Not all parts exist at the same time: activations are freed while gradients are allocated. The parts
are those at peak memory. `tests/perf/bench_gpu.py` compares their sum with a GPU's allocator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmtrain_core.pipeline_schedules import peak_micro_batches
from llmtrain_core.plan.gradient_sync import state_values
from llmtrain_core.plan.memory.activations import block_bytes_per_token, boundary_bytes_per_token
from llmtrain_core.plan.model.parameters import PipelineStage
from llmtrain_core.plan.training_setup import (
    COMPUTE_BYTES,
    MASTER_BYTES,
    Checkpointing,
    TrainingSetup,
)

FRAGMENTATION = 0.05
"""Share added for fragmentation of the allocator when memory is short."""
RUNTIME_BYTES = 2 * 1024**3
"""CUDA context, cuBLAS workspace and NCCL buffers: 1 to 2 GiB in practice."""
LOGITS_BYTES = 12
"""Bytes a logit takes at its peak, as the loss goes backward: 16 bits from the product, the float32
log-softmax and its gradient, and the gradient in 16 bits."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank by part, and the memory of the GPU."""

    parts: Mapping[str, int]
    """weights, gradients, optimizer, gathered, activations, logits, runtime, fragmentation."""
    capacity: int
    """Memory of the GPU in bytes; 0 if unknown."""

    @property
    def total(self) -> int:
        """Peak memory with margins: the sum of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether all parts fit into the GPU, margins included."""
        return self.total <= self.capacity

    @property
    def least(self) -> int:
        """Memory without margins; a GPU with less cannot run the setup."""
        margins = self.parts["fragmentation"] + self.parts["runtime"]
        return self.total - margins


def memory(setup: TrainingSetup, capacity: int = 0) -> Memory:
    """Return the memory of the rank that needs the most, on a GPU with `capacity` bytes."""
    ranks = [stage_memory(setup, index) for index in setup.kinds]
    return Memory(max(ranks, key=lambda parts: sum(parts.values())), capacity)


def stage_memory(setup: TrainingSetup, rank: int) -> dict[str, int]:
    """Return bytes by part on one pipeline rank, at peak memory of the last micro-batch."""
    stage = setup.stages[rank]
    state = state_bytes(setup, stage)
    peak = max(_moments(setup, stage, rank, state["gradients"]), key=sum)
    parts = state | dict(zip(_VARYING, peak, strict=True))
    margin = int(FRAGMENTATION * sum(parts.values()))
    return {**parts, "runtime": RUNTIME_BYTES, "fragmentation": margin}


_VARYING = ("gradients", "gathered", "activations", "logits")
"""Parts that change during a step."""


def _moments(
    setup: TrainingSetup, stage: PipelineStage, rank: int, shards: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield bytes of `_VARYING` at the start, in the first layer and at the end of a backward pass.

    `shards` is the rank's gradients. If all micro-batches are in flight before the first backward
    pass, there is no gradient yet; there is one after the first backward pass, with one micro-batch
    fewer in flight.
    """
    gathered = _gathered(setup, stage, shards)
    layer, flying = _layer_bytes(setup, "none"), _in_flight(setup, rank)
    again = layer if setup.checkpointing != "none" else 0
    begins = [(flying, gathered.gradients_before)]
    if flying >= setup.micro_batches and setup.sharding == "fsdp2":
        begins = [(flying, 0)]
        if flying > 1:
            begins.append((flying - 1, gathered.gradients_before))
    for micro_batches, gradients in begins:
        kept = activation_bytes(setup, stage, micro_batches)
        waiting = _waiting_bytes(setup, stage, micro_batches)
        yield gradients, gathered.at_loss, kept, _loss_bytes(setup, stage) + waiting
        yield gradients, gathered.in_layer, kept + again, waiting
    yield gathered.gradients_after, gathered.at_end, layer, 0


@dataclass(frozen=True, slots=True)
class _Gathered:
    """Bytes of gradients and of gathered weights during the last micro-batch."""

    gradients_before: int
    """Gradients of the previous micro-batches, if any."""
    gradients_after: int
    at_loss: int
    in_layer: int
    at_end: int
    """Includes the new gradient of the layer."""


def _gathered(setup: TrainingSetup, stage: PipelineStage, shards: int) -> _Gathered:
    """Return the unsharded bytes of FSDP besides `shards` bytes of gradients.

    With one micro-batch and no pipeline: the ends of the model, which stay gathered, the current
    and the prefetched block, and the gradient of one block. With several micro-batches or a
    pipeline, gradients are accumulated unsharded in the type of the reduction, and weights stay
    gathered after a backward pass, because ranks synchronize once per step. Without a pipeline,
    layers are still resharded after the forward pass.
    """
    units = setup.units(stage)
    compute, master = COMPUTE_BYTES[setup.precision], MASTER_BYTES[setup.precision]
    several = setup.layout.pipeline > 1 or setup.micro_batches > 1
    if setup.sharding != "fsdp2" or (setup.shard_ranks == 1 and compute == master):
        return _Gathered(shards, shards, 0, 0, 0)  # nothing to fetch or to convert
    ends, learnt = compute * units.whole.ends, units.learnt
    working = ends + compute * min(2, units.layers) * units.layer
    sizes = learnt.whole
    made = compute * max(sizes.block, sizes.experts, sizes.ends)
    if not several or setup.syncs_always:
        return _Gathered(shards, shards, ends, working, working + made)
    whole, all_ = master * learnt.size, compute * units.size
    if setup.layout.pipeline > 1:
        return _Gathered(whole, whole, all_, all_, all_ + made)
    return _Gathered(whole, whole, ends, working, all_ + made)


def state_bytes(setup: TrainingSetup, stage: PipelineStage) -> dict[str, int]:
    """Return exact bytes of weights, gradients and optimizer state of the data rank with the most.

    Frozen weights have neither gradients nor moments.
    """
    units = setup.units(stage)
    whole = units.size
    master, compute = MASTER_BYTES[setup.precision], COMPUTE_BYTES[setup.precision]
    if setup.sharding == "fsdp2":
        shard = units.sharded(setup.shard_ranks)
        learnt, moved = (
            each(setup.shard_ranks) for each in (units.learnt.sharded, units.learnt.updated)
        )
        kept = state_values(setup.sync, learnt, setup.layout.replicate)
        return {
            "weights": master * shard,
            "gradients": master * learnt,
            "optimizer": master * (2 * moved + kept),
        }
    ranks = setup.shard_ranks * setup.layout.replicate if setup.sharding == "zero1" else 1
    moments = 2 * master + (master if compute < master else 0)
    # one flat buffer, dealt out in equal parts
    return {
        "weights": compute * whole,
        "gradients": master * whole,
        "optimizer": moments * -(-whole // ranks),
    }


def activation_bytes(setup: TrainingSetup, stage: PipelineStage, micro_batches: float) -> int:
    """Return activation bytes of the micro-batches in flight.

    Under full recomputation a layer keeps its input only.
    """
    tokens, tensor = setup.local_tokens, setup.layout.tensor
    compute = COMPUTE_BYTES[setup.precision]
    per_layer = _layer_bytes(setup, setup.checkpointing)
    ends = boundary_bytes_per_token(setup.shape, tensor, compute, stage)
    documents = setup.chunks * document_bytes(setup)
    return int(micro_batches * (stage.layers * per_layer + tokens * ends + documents))


def document_bytes(setup: TrainingSetup) -> int:
    """Return the bytes that keep the documents of one micro-batch apart, in a model chunk.

    The layers of a chunk share the rotary tables of the positions, and the mask. A rank has the
    head and the tail of a sequence, each with the keys up to its end.
    """
    if not setup.divides_documents:
        return 0
    shape, context = setup.shape, setup.layout.context
    wide = 8 if setup.precision == "float64" else 4
    tables = 0 if shape.learned_positions else 2 * wide * shape.head_width * setup.local_tokens
    if not setup.masks_pairs:
        return tables
    keys = shape.sequence_length
    if context > 1:  # half of the queries on average over the ranks, and a half chunk more
        keys = keys * (2 * context + 1) // (4 * context)
    return tables + COMPUTE_BYTES[setup.precision] * setup.local_tokens * keys


def _in_flight(setup: TrainingSetup, rank: int) -> float:
    """Return the maximum number of micro-batches in flight on a pipeline rank."""
    return peak_micro_batches(
        setup.schedule, setup.layout.pipeline, setup.micro_batches, setup.chunks, rank
    )


def _layer_bytes(setup: TrainingSetup, checkpointing: Checkpointing) -> int:
    """Return activation bytes of one layer and micro-batch."""
    compute, tensor = COMPUTE_BYTES[setup.precision], setup.layout.tensor
    each = block_bytes_per_token(setup.shape, tensor, compute, checkpointing, setup.kernels)
    return int(setup.local_tokens * each)


def _loss_bytes(setup: TrainingSetup, stage: PipelineStage) -> int:
    """Return the peak bytes of the loss of one micro-batch."""
    wide = MASTER_BYTES[setup.precision]
    at_peak = LOGITS_BYTES if wide == 4 else 3 * wide
    return at_peak * _logits(setup) if stage.predicts else 0


def _waiting_bytes(setup: TrainingSetup, stage: PipelineStage, micro_batches: float) -> int:
    """Return the bytes of log-softmax of the other micro-batches in flight (GPipe)."""
    if not stage.predicts or setup.layout.pipeline == 1 or setup.schedule != "GPipe":
        return 0
    return int(MASTER_BYTES[setup.precision] * (micro_batches - 1) * _logits(setup))


def _logits(setup: TrainingSetup) -> int:
    """Return the logits of one micro-batch on one tensor rank."""
    return setup.local_tokens * -(-setup.shape.vocab_size // setup.layout.tensor)


def format_bytes(nbytes: float) -> str:
    """Return bytes as text with a binary prefix."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"
