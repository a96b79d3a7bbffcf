"""Collectives of one step and rank: number of calls and payload bytes.

Bytes are payloads, as the trainer's metrics count them: the whole tensor of an all-gather,
reduce-scatter or all-reduce, the sent tensor of a send. `bus_factor` converts payloads to bytes on
the wire. Tests compare the counts with the trainer's metrics.

Full recomputation repeats the gathers of both regions and the sum after attention; the sum after
the feed-forward block is not repeated, because recomputing stops at the last tensor that is needed.

The payload of an all-to-all is the received tensor. Its size depends on the router; the plan
assumes even use of the experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

from llmtrain_core.layout import GROUP_LABELS, GroupLabel
from llmtrain_core.pipeline_schedules import Schedule, stage_numbers
from llmtrain_core.plan.gradient_sync import ReplicaGroup, ReplicaOperation, messages, sync_calls
from llmtrain_core.plan.model.parameters import PipelineStage, end_tensors, sharded
from llmtrain_core.plan.training_setup import COMPUTE_BYTES, MASTER_BYTES, TrainingSetup

Group = GroupLabel
GROUPS = GROUP_LABELS
REPLICA_GROUPS: tuple[ReplicaGroup, ...] = ("rep", "rep-near", "rep-far")
"""Groups of the replicate dimension: all replicas, inside racks, and between racks."""
Operation = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send", "recv"]
POINT_TO_POINT: frozenset[Operation] = frozenset(["send", "recv"])

SCALAR_BYTES = 64
"""Calls with at most this payload take latency and waiting only: the sum of a loss or of a norm."""
COUNT_BYTES = 8
"""Bytes of the number of rows that are sent to an expert."""
LOSS_REDUCTIONS = 3
"""All-reduces of a loss over a sharded vocabulary: maximum, sum of exponentials, target's logit."""


@dataclass(frozen=True, slots=True)
class CollectiveCalls:
    """One kind of collective in one step."""

    count: int
    nbytes: int

    def __add__(self, other: CollectiveCalls) -> CollectiveCalls:
        return CollectiveCalls(self.count + other.count, self.nbytes + other.nbytes)


CommunicationVolumes = Mapping[tuple[Group, Operation], CollectiveCalls]


def communication(setup: TrainingSetup) -> CommunicationVolumes:
    """Return the calls of the busiest pipeline rank for each kind of collective."""
    worst: dict[tuple[Group, Operation], CollectiveCalls] = {}
    for rank in setup.kinds:
        for key, calls in stage_communication(setup, rank).items():
            worst[key] = max(worst.get(key, calls), calls, key=lambda c: c.nbytes)
    return worst


def stage_communication(
    setup: TrainingSetup, rank: int
) -> dict[tuple[Group, Operation], CollectiveCalls]:
    """Return the calls of one pipeline rank and step, for every group with more than one rank."""
    found: dict[tuple[Group, Operation], CollectiveCalls] = {}
    sizes = group_sizes(setup)
    for group, operation, calls in _all(setup, setup.stages[rank], rank):
        if sizes[group] > 1 and calls.count:
            key = (group, operation)
            found[key] = found.get(key, CollectiveCalls(0, 0)) + calls
    return found


def bytes_per_step(volumes: CommunicationVolumes, group: Group) -> int:
    """Return the payload of one group, all operations together (a receive is another's send)."""
    return sum(c.nbytes for (g, op), c in volumes.items() if g == group and op != "recv")


def wire_bytes(setup: TrainingSetup, volumes: CommunicationVolumes, group: Group) -> float:
    """Return the bytes that a rank sends in a group, all operations together."""
    ranks = _ranks(setup, group)
    return sum(
        calls.nbytes * bus_factor(operation, ranks)
        for (kind, operation), calls in volumes.items()
        if kind == group and operation != "recv"
    )


def bus_factor(operation: str, ranks: int) -> float:
    """Return bytes that a rank sends per byte of payload (nccl-tests, doc/PERFORMANCE.md)."""
    if operation == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if operation in {"all_gather", "reduce_scatter", "all_to_all"}:
        return (ranks - 1) / ranks
    return 1.0


def group_sizes(setup: TrainingSetup) -> dict[Group, int]:
    """Return the ranks of each group; 1 for a group that does not exist."""
    return {group: _ranks(setup, group) for group in GROUPS}


def _ranks(setup: TrainingSetup, group: Group) -> int:
    return setup.layout.group(group, setup.sync.replicas_per_rack).size


def _all(
    setup: TrainingSetup, stage: PipelineStage, rank: int
) -> Iterator[tuple[Group, Operation, CollectiveCalls]]:
    layout = setup.layout
    if layout.tensor > 1:
        yield from _tensor(setup, stage)
    yield from _context(setup, stage)
    yield from _experts(setup, stage)
    yield from _data(setup, stage)
    if setup.sharding == "fsdp2" and layout.replicate > 1:
        yield from _copies(setup, stage)
    if layout.pipeline > 1:
        yield from _pipeline(setup, rank)
    yield from _norms(setup, stage)


def _tensor(
    setup: TrainingSetup, stage: PipelineStage
) -> Iterator[tuple[Group, Operation, CollectiveCalls]]:
    """Yield the collectives of the tensor-parallel regions, the model ends and the loss."""
    compute = COMPUTE_BYTES[setup.precision]
    hidden_states = setup.local_tokens * setup.shape.hidden_size * compute
    ends = int(stage.embeds) + int(stage.predicts)
    again = 1 if setup.checkpointing == "full" else 0
    gathers, scatters = _not_learnt(setup, stage)
    for operation, repeated, spared in (
        ("all_gather", 2, gathers),
        ("reduce_scatter", 1, scatters),
    ):
        count = (4 + again * repeated) * stage.layers + ends - spared
        count *= setup.micro_batches
        yield "tp", operation, CollectiveCalls(count, count * hidden_states)  # type: ignore[misc]
    if stage.predicts:
        count = LOSS_REDUCTIONS * setup.micro_batches
        wide = MASTER_BYTES[setup.precision]
        yield "tp", "all_reduce", CollectiveCalls(count, count * setup.local_tokens * wide)


def _not_learnt(setup: TrainingSetup, stage: PipelineStage) -> tuple[int, int]:
    """Return the gathers and scatters that a backward pass with frozen weights does not need.

    Nothing below the first adapter has a gradient: neither the embedding nor the input of the first
    layer's attention, and without an adapter in attention, neither its output nor the input of the
    feed-forward block.
    """
    adapters = setup.shape.adapters
    if adapters is None or not stage.embeds:
        return 0, 0
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"} & set(adapters.targets)
    return (1, 1) if attention else (2, 2)


def _context(
    setup: TrainingSetup, stage: PipelineStage
) -> Iterator[tuple[Group, Operation, CollectiveCalls]]:
    """Yield gathers of keys and values of the whole sequence, and scatters of their gradients."""
    shape, layout = setup.shape, setup.layout
    compute = COMPUTE_BYTES[setup.precision]
    tokens = setup.micro_batch * shape.sequence_length
    keys = tokens * shape.key_width // layout.tensor * compute
    count = 2 * setup.micro_batches * stage.layers
    again = 2 if setup.checkpointing == "full" else 1
    yield "cp", "all_gather", CollectiveCalls(again * count, again * count * keys)
    adapters = shape.adapters
    if adapters is not None and stage.embeds:  # the first layer's, unless they are learnt
        count -= setup.micro_batches * len({"k_proj", "v_proj"} - set(adapters.targets))
    yield "cp", "reduce_scatter", CollectiveCalls(count, count * keys)


def _experts(
    setup: TrainingSetup, stage: PipelineStage
) -> Iterator[tuple[Group, Operation, CollectiveCalls]]:
    """Yield all-to-alls of row counts, and of rows to and from the experts, both passes.

    Context ranks sum how often each expert was selected in their common sequences.
    """
    shape, runs = setup.shape, setup.micro_batches * stage.layers
    if shape.experts == 1:
        return
    again = 2 if setup.checkpointing == "full" else 1
    rows = setup.local_tokens * shape.experts_per_token
    nbytes = rows * shape.hidden_size * COMPUTE_BYTES[setup.precision]
    yield (
        "ep",
        "all_to_all",
        CollectiveCalls(again * runs, again * runs * shape.experts * COUNT_BYTES),
    )
    yield (
        "ep",
        "all_to_all",
        CollectiveCalls((2 * again + 2) * runs, (2 * again + 2) * runs * nbytes),
    )
    if shape.balanced:
        chosen = setup.micro_batch * shape.experts * MASTER_BYTES[setup.precision]
        yield "cp", "all_reduce", CollectiveCalls(again * runs, again * runs * chosen)


def _data(
    setup: TrainingSetup, stage: PipelineStage
) -> Iterator[tuple[Group, Operation, CollectiveCalls]]:
    """Yield gathers of weights and reductions of gradients; zero1 and ddp also sum over replicas.

    fsdp2: per unit (a layer, its experts, or the ends); without a pipeline, a layer is gathered
    again in every backward pass. zero1: all weights and all gradients once a step. ddp: one
    all-reduce.
    """
    units = setup.units(stage)
    compute, master = COMPUTE_BYTES[setup.precision], MASTER_BYTES[setup.precision]
    ranks = setup.shard_ranks
    if setup.sharding == "ddp":
        yield "dp", "all_reduce", CollectiveCalls(1, units.size * master)
        yield "rep", "all_reduce", CollectiveCalls(1, units.size * master)
        return
    layers, expert = units.layers, setup.layout.expert
    own, learnt = layers if units.experts else 0, units.learnt
    shards, learnt_shards = units.shards(ranks), learnt.shards(ranks)
    times = _scatters(setup)
    for group, share, count, scattered, whole, grown in (
        (
            "dp",
            ranks,
            units.count - own,
            learnt.count - own,
            (shards.block, shards.ends),
            (learnt_shards.block, learnt_shards.ends),
        ),
        (
            "edp" if expert > 1 else "dp",
            ranks // expert,
            own,
            own,
            (shards.experts, 0),
            (shards.experts, 0),
        ),
    ):
        each, rest = whole
        again = (_gathers(setup) - 1) * (layers if each else 0)
        gathered = ((layers + again) * each + rest) * share
        yield group, "all_gather", CollectiveCalls(count + again, compute * gathered)  # type: ignore[misc]
        each, rest = grown
        sent = times * master * (layers * each + rest) * share
        yield group, "reduce_scatter", CollectiveCalls(times * scattered, sent)  # type: ignore[misc]
    if setup.sharding == "zero1":
        summed = times * master * learnt.sharded(ranks)
        yield "rep", "all_reduce", CollectiveCalls(times * learnt.count, summed)


def _copies(
    setup: TrainingSetup, stage: PipelineStage
) -> Iterator[tuple[Group, Operation, CollectiveCalls]]:
    """Yield replica synchronization: gradients of each unit, or all weights every few steps.

    Synchronization every few steps is counted as the share of one step, rounded up.
    """
    every, times = setup.sync.interval_steps, _scatters(setup)
    values = _unit_values(setup, stage)
    if every > 1:
        values, times = [setup.units(stage).learnt.updated(setup.shard_ranks)], 1
    for each in messages(setup.sync, values, MASTER_BYTES[setup.precision]):
        for group, operation, payload in _sync_calls(setup, each):
            calls = CollectiveCalls(-(-times // every), -(-times * payload // every))
            yield group, operation, calls


def _sync_calls(
    setup: TrainingSetup, values: int
) -> Iterator[tuple[ReplicaGroup, ReplicaOperation, int]]:
    copies = setup.layout.replicate
    yield from sync_calls(setup.sync, values, copies, MASTER_BYTES[setup.precision])


def _unit_values(setup: TrainingSetup, stage: PipelineStage) -> list[int]:
    """Return the values of a rank's shard of every FSDP unit that has gradients.

    They are in the order in which the backward pass completes them.
    """
    shape, tensor, ranks = setup.shape, setup.layout.tensor, setup.shard_ranks
    units = setup.units(stage).learnt
    ends = [units.ends]
    if stage.apart and shape.adapters is None:
        ends = [
            end_tensors(shape, tensor, embeds=embeds, predicts=not embeds)
            for embeds in (True, False)
        ]
    shards = units.shards(ranks)
    layer = [shards.experts, shards.block] if units.experts else [shards.block]
    return layer * units.layers + [sharded(tensors, ranks) for tensors in ends if tensors]


def _scatters(setup: TrainingSetup) -> int:
    """Return the number of gradient reductions per step."""
    return setup.micro_batches if setup.syncs_always else 1


def _gathers(setup: TrainingSetup) -> int:
    """Return how often a layer's weights are gathered in one step.

    They are resharded after a forward pass and stay gathered from a backward pass to the next
    forward pass. With a pipeline they stay gathered for the whole step.
    """
    if setup.syncs_always:
        return 2 * setup.micro_batches
    if setup.sharding != "fsdp2" or setup.layout.pipeline > 1:
        return 1
    return 1 + setup.micro_batches


def _pipeline(
    setup: TrainingSetup, rank: int
) -> Iterator[tuple[Group, Operation, CollectiveCalls]]:
    """Hidden states forward and their gradients back, over every boundary between two ranks.

    Between the ends of the model also the embedding, where they share it.
    """
    shape, layout = setup.shape, setup.layout
    part = setup.local_tokens * shape.hidden_size * COMPUTE_BYTES[setup.precision]
    part //= layout.tensor
    where = _chunk_ranks(setup.schedule, layout.pipeline, setup.chunks)
    forward = list(pairwise(where))
    hops = [(a, b) for a, b in (*forward, *((b, a) for a, b in forward)) if a != b]
    sends = sum(here == rank for here, _ in hops)
    receives = sum(there == rank for _, there in hops)
    tied = tied_bytes(setup)
    once = int(tied > 0 and rank in {where[0], where[-1]})
    for operation, count in (("send", sends), ("recv", receives)):
        times = count * setup.micro_batches
        calls = CollectiveCalls(times + once, times * part + once * tied)
        yield "pp", operation, calls  # type: ignore[misc]


def tied_bytes(setup: TrainingSetup) -> int:
    """Return the bytes of a rank's shard of an embedding that the first and the last stage share.

    Once a step its values travel from the first rank to the last, and its gradient back; in V shape
    one rank has both ends.
    """
    where = _chunk_ranks(setup.schedule, setup.layout.pipeline, setup.chunks)
    if not setup.shape.tied_embeddings or where[0] == where[-1]:
        return 0
    units = setup.units(setup.stages[where[-1]])
    return MASTER_BYTES[setup.precision] * units.shards(setup.shard_ranks).copies


@cache
def _chunk_ranks(schedule: Schedule, ranks: int, chunks: int) -> tuple[int, ...]:
    """Return the rank of every chunk in order of the model."""
    where = {
        number: rank
        for rank in range(ranks)
        for number in stage_numbers(schedule, rank, ranks, chunks)
    }
    return tuple(where[number] for number in range(len(where)))


def _norms(
    setup: TrainingSetup, stage: PipelineStage
) -> Iterator[tuple[Group, Operation, CollectiveCalls]]:
    """Yield all-reduces of replicated gradients, the gradient norm and the loss."""
    master = MASTER_BYTES[setup.precision]
    units = setup.units(stage)
    for times, tensors in ((units.layers, units.learnt.block), (1, units.learnt.ends)):
        common = [tensor.size for tensor in tensors if tensor.replicated]
        yield "tp", "all_reduce", CollectiveCalls(times * len(common), times * master * sum(common))
    yield "tp", "all_reduce", CollectiveCalls(1, master)
    yield "dp", "all_reduce", CollectiveCalls(1, 2 * master)
    if setup.sync.interval_steps == 1:
        yield "rep", "all_reduce", CollectiveCalls(1, master)
    yield "pp", "all_reduce", CollectiveCalls(1, 2 * master)
