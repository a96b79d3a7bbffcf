"""Time of an optimizer step: products, attention, memory traffic and exposed communication.

Roofline by part: a product takes FLOPs / (peak x efficiency) plus a fixed cost per kernel, which
dominates small products. Attention has a separate efficiency. Operations between products take
bytes / memory bandwidth. The slowest pipeline stage determines the step, extended by the bubble of
the schedule. The exposed time of a collective is what exceeds the computation it overlaps with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

from llmtrain_core.pipeline_schedules import FORWARD_AND_BACKWARD, idle_units
from llmtrain_core.plan.constants import Constants
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.plan.model.model_shape import ModelShape
from llmtrain_core.plan.model.parameters import PipelineStage
from llmtrain_core.plan.network.communication import (
    POINT_TO_POINT,
    REPLICA_GROUPS,
    SCALAR_BYTES,
    Group,
    communication,
    stage_communication,
)
from llmtrain_core.plan.network.link_speed import CallSeconds, CollectiveCostModel
from llmtrain_core.plan.training_setup import COMPUTE_BYTES, MASTER_BYTES, Kernels, TrainingSetup

TRAFFIC: Mapping[Kernels, float] = {"fused": 1.0, "compiled": 1.2, "eager": 3.0}
"""Memory traffic between products, relative to kernels that access each tensor once."""
OPTIMIZER_BYTES = 30
"""Read and written per parameter of a rank's shard: weight, two moments, gradient, 16-bit copy."""
SCORE_BYTES = 12
"""Read and written per score where attention is not fused: product, softmax, dropout, product."""
CAST_BYTES = 3
"""Read and written per value that a float8 product takes: 16 bits in, 8 bits out."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step by cause."""

    seconds: float
    compute: float
    """Compute time of the slowest rank, without the pipeline bubble."""
    bubble: float
    """Seconds in which this rank waits for the pipeline to fill and drain."""
    exposed: Mapping[Group, float]
    """Seconds of exposed communication, by group."""


@dataclass(frozen=True, slots=True)
class MicroBatchTime:
    """Seconds of one micro-batch on one rank: its layers forward and backward, and its ends."""

    forward: float
    backward: float
    layers: int
    ends: float
    """Output projection and loss, both passes."""

    @property
    def total(self) -> float:
        """Both passes through all layers and the ends."""
        return self.layers * (self.forward + self.backward) + self.ends


def step_time(
    setup: TrainingSetup,
    hardware: Accelerator,
    constants: Constants,
    oversubscription: Mapping[Group, float] | None = None,
) -> StepTime:
    """Return the time of one step of a setup."""
    network = _network(setup, hardware, constants, oversubscription)
    times = [_rank_time(setup, rank, hardware, constants, network) for rank in setup.kinds]
    return max(times, key=lambda time: time.seconds)


def collective_seconds(
    setup: TrainingSetup,
    hardware: Accelerator,
    constants: Constants,
    oversubscription: Mapping[Group, float] | None = None,
) -> dict[Group, float]:
    """Return the time in collectives of a step by group, whether it overlaps or not.

    These are the calls that the trainer's metrics time: no scalars, and no transfers from one rank
    to another.
    """
    network = _network(setup, hardware, constants, oversubscription)
    found: dict[Group, float] = {}
    for (group, operation), calls in communication(setup).items():
        if operation in POINT_TO_POINT or calls.nbytes <= calls.count * SCALAR_BYTES:
            continue
        seconds = network.seconds(group, operation, calls.nbytes, calls.count)
        found[group] = found.get(group, 0.0) + seconds
    return found


def _network(
    setup: TrainingSetup,
    hardware: Accelerator,
    constants: Constants,
    oversubscription: Mapping[Group, float] | None,
) -> CollectiveCostModel:
    return CollectiveCostModel(
        hardware,
        setup.layout,
        constants.link_efficiency,
        constants.nic_efficiency,
        oversubscription or {},
        setup.sync,
    )


def _rank_time(
    setup: TrainingSetup,
    rank: int,
    hardware: Accelerator,
    constants: Constants,
    network: CollectiveCostModel,
) -> StepTime:
    stage = setup.stages[rank]
    work = _work(setup, stage, hardware, constants)
    spent = network.call_seconds(stage_communication(setup, rank))
    layout, micro_batches = setup.layout, setup.micro_batches
    inner: dict[Group, float] = {"tp": 0.0, "cp": 0.0, "ep": 0.0, "pp": 0.0}
    for (group, operation), seconds in spent.items():
        if group in inner and operation != "recv":
            inner[group] += seconds
    inner = {group: seconds / micro_batches for group, seconds in inner.items()}
    inner["tp"] *= constants.tensor_exposed if setup.overlaps_tensor else 1.0
    if setup.kernels == "fused":  # a ring of sends beside attention (Transformer Engine)
        inner["cp"] = max(0.0, inner["cp"] - work.layers * work.forward)
    if setup.chunks > 1:
        inner["pp"] = 0.0  # interleaving sends while another chunk computes
    busy = work.total + sum(inner.values())
    idle = idle_units(setup.schedule, layout.pipeline, micro_batches, setup.chunks)
    waits = busy * idle / (FORWARD_AND_BACKWARD * setup.chunks)
    data = _data_exposed(setup, spent, work)
    update = _optimizer(setup, stage, hardware, constants)
    compute = micro_batches * work.total + update
    exposed = {**{g: t * micro_batches for g, t in inner.items()}, **data}
    seconds = compute + waits + sum(exposed.values())
    nodes = layout.world_size / hardware.node.value
    slack = 1 + constants.jitter * max(0.0, log2(nodes))
    return StepTime(
        seconds * slack,
        compute * slack,
        waits * slack,
        {group: time * slack for group, time in exposed.items() if time > 0},
    )


def _work(
    setup: TrainingSetup, stage: PipelineStage, hardware: Accelerator, constants: Constants
) -> MicroBatchTime:
    """Return the time of one micro-batch. The backward pass computes each product twice."""
    forward = layer_forward(setup, hardware, constants)
    products, between = forward
    attention = _attention(setup, hardware, constants)
    once = products + attention + between
    # frozen weights have no gradient; adapters are small beside them
    passed = 2 if setup.shape.adapters is None else 1
    backward = passed * products + 2.5 * attention + 2 * between + setup.recomputed * products
    if setup.checkpointing == "full":
        backward += attention + between
    elif setup.checkpointing == "selective":
        backward += between if setup.flash_attention else attention
    ends = _ends(setup, hardware, constants) if stage.predicts else 0.0
    return MicroBatchTime(once, backward, stage.layers, ends)


def layer_forward(
    setup: TrainingSetup, hardware: Accelerator, constants: Constants
) -> tuple[float, float]:
    """Return the seconds of one layer's products, and of the memory traffic between them."""
    tokens, tensor = setup.local_tokens, setup.layout.tensor
    weights = layer_weights(setup.shape, setup.layout.expert)
    peak = hardware.peak(setup.precision) * constants.efficiency(setup.precision)
    flops = 2 * tokens * sum(weights) / tensor
    products = flops / peak + len(weights) * constants.kernel_seconds
    moved = tokens * between_bytes(setup.shape, COMPUTE_BYTES[setup.precision]) / tensor
    traffic = moved * TRAFFIC[setup.kernels]
    if setup.precision == "float8":
        # inputs once, gradients once in two layouts
        traffic += CAST_BYTES * tokens * _product_inputs(setup.shape) / tensor
    return products, traffic / (hardware.memory_bandwidth.value * constants.memory_efficiency)


def layer_weights(shape: ModelShape, expert: int = 1) -> list[float]:
    """Return the sizes of a layer's products: one kernel each, query, key and value together.

    Experts are those of one of `expert` ranks, weighted by their share of tokens at even use.
    """
    hidden = shape.hidden_size
    first = (2 if shape.gated else 1) * hidden * shape.ffn_size
    qkv = hidden * (shape.query_width + 2 * shape.key_width)
    attention = [qkv, hidden * shape.query_width]
    if shape.experts == 1:
        return [*attention, first, hidden * shape.ffn_size]
    here = shape.experts // expert
    share = shape.experts_per_token / here
    block = [share * first, share * hidden * shape.ffn_size]
    return [*attention, hidden * shape.experts, *(here * block)]


def between_bytes(shape: ModelShape, compute: int) -> int:
    """Return bytes read and written per token between the products of one forward pass.

    Two norms (2 h each), two residual sums (3 h each), rotation of queries and keys, and the
    activation: gate and up in, product out. For every expert that a token visits, its row is put
    in order (2 h), the answer is put back (2 h) and weighed (2 h).
    """
    turned = 0 if shape.learned_positions else 2 * (shape.query_width + shape.key_width)
    activation = (3 if shape.gated else 2) * shape.ffn_size * shape.experts_per_token
    rows = 6 * shape.experts_per_token if shape.experts > 1 else 0
    return compute * ((10 + rows) * shape.hidden_size + turned + activation)


def _product_inputs(shape: ModelShape) -> int:
    inner = shape.ffn_size * shape.experts_per_token
    return 2 * shape.hidden_size + shape.query_width + inner


def _attention(setup: TrainingSetup, hardware: Accelerator, constants: Constants) -> float:
    """Return seconds of one layer's attention forward: 2 b s^2 Q FLOPs causal, twice that whole.

    float8 runs keep attention in 16 bits. Context ranks share it evenly (head and tail of the
    sequence to each rank). With a mask of all pairs, the masked half is computed, and every head
    reads the mask.
    """
    shape, layout = setup.shape, setup.layout
    precision = "bfloat16" if setup.precision == "float8" else setup.precision
    peak = hardware.peak(precision)
    pairs = setup.local_tokens * shape.sequence_length / layout.tensor
    if setup.flash_attention and setup.masks_pairs:
        flops = 4 * pairs * shape.query_width / (peak * constants.attention_efficiency)
        read = pairs * shape.heads * COMPUTE_BYTES[precision]
        return flops + read / (hardware.memory_bandwidth.value * constants.memory_efficiency)
    if setup.flash_attention:
        return 2 * pairs * shape.query_width / (peak * constants.attention_efficiency)
    flops = 4 * pairs * shape.query_width / (peak * constants.efficiency(precision))
    rate = hardware.memory_bandwidth.value * constants.memory_efficiency
    return flops + SCORE_BYTES * pairs * shape.heads / rate


def _ends(setup: TrainingSetup, hardware: Accelerator, constants: Constants) -> float:
    """Return seconds of output projection and loss of one micro-batch, both passes, in 16 bits."""
    shape, tensor = setup.shape, setup.layout.tensor
    precision = "bfloat16" if setup.precision == "float8" else setup.precision
    logits = setup.local_tokens * shape.vocab_size / tensor
    flops = (6 if shape.adapters is None else 4) * logits * shape.hidden_size
    seconds = flops / (hardware.peak(precision) * constants.efficiency(precision))
    wide = MASTER_BYTES[setup.precision]
    moved = logits * 5 * wide * (1 if setup.kernels == "fused" else 1.5)
    return seconds + moved / (hardware.memory_bandwidth.value * constants.memory_efficiency)


def _optimizer(
    setup: TrainingSetup, stage: PipelineStage, hardware: Accelerator, constants: Constants
) -> float:
    units = setup.units(stage)
    ranks = 1 if setup.sharding == "ddp" else setup.shard_ranks
    if setup.sharding == "zero1":
        ranks *= setup.layout.replicate
    moved = OPTIMIZER_BYTES * units.learnt.sharded(ranks)
    return moved / (hardware.memory_bandwidth.value * constants.memory_efficiency)


def _data_exposed(
    setup: TrainingSetup, spent: CallSeconds, work: MicroBatchTime
) -> dict[Group, float]:
    """Return the exposed seconds of gradient and weight traffic."""
    gather = scatter = 0.0
    for (group, operation), seconds in spent.items():
        if group in ("dp", "edp") and operation == "all_gather":
            gather += seconds
        elif group in ("dp", "edp"):
            scatter += seconds
    replicas = replica_sync_seconds(spent)
    sync = setup.sync
    if sync.interval_steps == 1:
        return _beside_passes(setup, gather, scatter, replicas, work)
    hidden = sync.delay_steps / sync.interval_steps * setup.micro_batches * work.total
    exposed = _beside_passes(setup, gather, scatter, 0.0, work)
    return {**exposed, "rep": max(0.0, replicas - hidden)}


def replica_sync_seconds(spent: CallSeconds) -> float:
    """Return the seconds of replica synchronization, exposed or not."""
    return sum(seconds for (group, _), seconds in spent.items() if group in REPLICA_GROUPS)


def _beside_passes(
    setup: TrainingSetup, gather: float, scatter: float, replicas: float, work: MicroBatchTime
) -> dict[Group, float]:
    """Return the time that exceeds the passes that overlap with gathers and reductions."""
    if not setup.overlaps_data:
        return {"dp": gather + scatter, "rep": replicas}
    layers = max(1, work.layers)
    # interleaved, chunks finish one after the other while the last p micro-batches drain
    window = 1 if setup.chunks == 1 else min(setup.layout.pipeline, setup.micro_batches)
    forward, backward = window * layers * work.forward, window * layers * work.backward
    if setup.syncs_always:
        forward, backward = setup.micro_batches * forward, setup.micro_batches * backward
    elif setup.sharding == "fsdp2" and setup.layout.pipeline == 1:
        forward += (setup.micro_batches - 1) * (forward + backward) + backward / 2
        backward /= 2
    first = gather / layers  # the first gather overlaps with nothing
    last = (scatter + replicas) / layers  # the last reduction overlaps with nothing
    before = max(first, gather - forward)
    after = max(last, scatter + replicas - backward)
    share = replicas / (scatter + replicas) if replicas else 0.0
    return {"dp": before + after * (1 - share), "rep": after * share}
