"""Traffic between model replicas (the replicate dimension): collectives, payloads and state.

A ring all-reduce of gradients congests the slowest dimension. Three settings reduce its traffic:
smaller numbers (`compression`), fewer synchronizations (`interval_steps`), and a reduction inside
each rack first (`replicas_per_rack`), so that each replica sends only its part to other racks.

Compressed numbers cannot be summed in transit, so an all-reduce becomes an all-to-all of parts and
an all-gather of sums. It sends as many bytes as a ring all-reduce of the same message.

Three more settings change how the same bytes are transferred: during the backward pass (`overlap`),
in larger messages (`bucket_bytes`), or in parts (`chunks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from llmtrain_core.api.base import quantity_value
from llmtrain_core.api.training import Communication, Training

Compression = Literal["none", "bf16", "int8"]
ReplicaGroup = Literal["rep", "rep-near", "rep-far"]
"""All replicas; the replicas of one rack; the replicas at the same position of every rack."""
ReplicaOperation = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all"]

BLOCK = 256
"""Number of 8-bit values with a common 32-bit scale: 3.94 times smaller than 32 bits each."""
ALIGNMENT = 4
"""The size of a part is a multiple of this many values, which aligns the scales of the next one."""


@dataclass(frozen=True, slots=True)
class SyncScheme:
    """How model replicas are synchronized."""

    compression: Compression = "none"
    interval_steps: int = 1
    """Steps between two synchronizations; if more than one, replicas train independently."""
    delay_steps: int = 0
    """Steps during which a synchronization overlaps with training."""
    replicas_per_rack: int = 1
    overlap: bool = False
    """Transfer sums during the backward pass. The result is the same, bit for bit."""
    bucket_bytes: int = 0
    """Least bytes of a message, which has whole FSDP units; 0 for a message per unit."""
    chunks: int = 1
    """Parts of a message, each with its own collectives."""

    @classmethod
    def of(cls, training: Training) -> SyncScheme:
        """Return the scheme of a job's `training.gradientSync` and `training.communication`."""
        sync, transfer = training.gradient_sync, training.communication or Communication()
        outer = sync.outer
        return cls(
            compression=sync.compression,
            interval_steps=outer.inner_steps if outer else 1,
            delay_steps=outer.delay_steps if outer else 0,
            replicas_per_rack=sync.copies_per_rack,
            overlap=bool(transfer.overlap),
            bucket_bytes=ceil(quantity_value(transfer.bucket_size or 0)),
            chunks=transfer.chunks or 1,
        )

    def racks(self, replicas: int) -> int:
        """Return the number of racks; with one rack, the reduction is not hierarchical."""
        return replicas // self.replicas_per_rack

    def is_hierarchical(self, replicas: int) -> bool:
        """Return True if values are summed inside each rack first."""
        return self.replicas_per_rack > 1 and self.racks(replicas) > 1


EXACT_SYNC = SyncScheme()
"""Synchronize every step, without compression."""


def part_values(values: int, ranks: int) -> int:
    """Return the number of values that each of `ranks` sums, padding included."""
    return -(-values // (ALIGNMENT * ranks)) * ALIGNMENT


def message_bytes(compression: Compression, values: int) -> int:
    """Return the size of one compressed part in bytes."""
    if compression == "bf16":
        return 2 * values
    return values + 4 * -(-values // BLOCK)


def chunk_values(sync: SyncScheme, values: int) -> int:
    """Return the number of values of each part of a message; the last one may have fewer."""
    return -(-values // (BLOCK * sync.chunks)) * BLOCK if sync.chunks > 1 else values


def messages(sync: SyncScheme, units: Iterable[int], nbytes: int) -> Iterator[int]:
    """Yield the number of values that each all-reduce of a step sums.

    `units` are the values of the FSDP units, of `nbytes` each, in the order of the backward pass. A
    message is complete with the unit that makes it large enough.
    """
    bucket = 0
    buckets: list[int] = []
    for values in units:
        bucket += values
        if bucket * nbytes >= sync.bucket_bytes:
            buckets.append(bucket)
            bucket = 0
    for values in (*buckets, bucket):
        part = chunk_values(sync, values)
        for start in range(0, values, part or 1):
            yield min(part, values - start)


def sync_calls(
    sync: SyncScheme, values: int, replicas: int, nbytes: int
) -> Iterator[tuple[ReplicaGroup, ReplicaOperation, int]]:
    """Yield group, operation and payload of each call that sums `values` of `nbytes` each."""
    group: ReplicaGroup = "rep"
    if sync.is_hierarchical(replicas):
        values = -(-values // sync.replicas_per_rack)
        yield "rep-near", "reduce_scatter", values * sync.replicas_per_rack * nbytes
        yield "rep-near", "all_gather", values * sync.replicas_per_rack * nbytes
        group, replicas = "rep-far", sync.racks(replicas)
    if sync.compression == "none":
        yield group, "all_reduce", values * nbytes
        return
    message = message_bytes(sync.compression, part_values(values, replicas))
    yield group, "all_to_all", message * replicas
    yield group, "all_gather", message * replicas


def state_values(sync: SyncScheme, values: int, replicas: int) -> int:
    """Return the number of values that a rank keeps between steps for a shard of `values`.

    Outer updates keep the weights of the last update, the momentum and the pending sum. 8-bit
    compression keeps the rounding error of the sent values and of the part that the rank sums.
    """
    outer = 3 * values if sync.interval_steps > 1 else 0
    if sync.compression != "int8":
        return outer
    if sync.is_hierarchical(replicas):
        values, replicas = -(-values // sync.replicas_per_rack), sync.racks(replicas)
    return outer + values + -(-values // replicas)
