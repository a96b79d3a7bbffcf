"""What crosses between the copies of a model (the replicate dimension), and in how many bytes.

A ring all-reduce of gradients is what congests the slow dimension. It is relieved by smaller
numbers (`compression`), by fewer exchanges (`every`), and by summing inside a rack first (`near`),
so that each copy sends only its part to the other racks.

Smaller numbers cannot be summed on the way, so an all-reduce becomes an all-to-all of parts and an
all-gather of sums: as many bytes on the wire as a ring all-reduce of the same message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llmtrain_core.api.learning import GradientSync

Compression = Literal["none", "bf16", "int8"]
ExchangeGroup = Literal["rep", "rep-near", "rep-far"]
"""All copies; those of one rack; those with the same place in every rack."""
ExchangeOperation = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all"]

BLOCK = 256
"""Values of eight bits that share one 32-bit scale: 3.94 times smaller than 32 bits each."""
ALIGNMENT = 4
"""A part is a multiple of as many values, so that the scales of the next one are aligned."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """How copies are kept alike."""

    compression: Compression = "none"
    every: int = 1
    """Steps from one exchange to the next; with more than one, copies train apart in between."""
    delay: int = 0
    """Steps behind which an exchange is hidden."""
    near: int = 1
    """Copies that share a rack."""

    @classmethod
    def of(cls, sync: GradientSync) -> Exchange:
        """Return a job's choice."""
        outer = sync.outer
        return cls(
            compression=sync.compression,
            every=outer.inner_steps if outer else 1,
            delay=outer.delay_steps if outer else 0,
            near=sync.copies_per_rack,
        )

    def racks(self, copies: int) -> int:
        """Return how many racks the copies are in; one: all are near, and there are no levels."""
        return copies // self.near

    def levels(self, copies: int) -> bool:
        """Tell whether sums are made inside racks first."""
        return self.near > 1 and self.racks(copies) > 1


EXACT = Exchange()


def part_values(values: int, ranks: int) -> int:
    """Return the values of the part that one of `ranks` sums, padding included."""
    return -(-values // (ALIGNMENT * ranks)) * ALIGNMENT


def message_bytes(compression: Compression, values: int) -> int:
    """Return the bytes of one part as it is sent."""
    if compression == "bf16":
        return 2 * values
    return values + 4 * -(-values // BLOCK)


def exchange_calls(
    exchange: Exchange, values: int, copies: int, nbytes: int
) -> Iterator[tuple[ExchangeGroup, ExchangeOperation, int]]:
    """Yield group, operation and payload of every call that sums `values` of `nbytes` each."""
    group: ExchangeGroup = "rep"
    if exchange.levels(copies):
        values = -(-values // exchange.near)
        yield "rep-near", "reduce_scatter", values * exchange.near * nbytes
        yield "rep-near", "all_gather", values * exchange.near * nbytes
        group, copies = "rep-far", exchange.racks(copies)
    if exchange.compression == "none":
        yield group, "all_reduce", values * nbytes
        return
    message = message_bytes(exchange.compression, part_values(values, copies))
    yield group, "all_to_all", message * copies
    yield group, "all_gather", message * copies


def state_values(exchange: Exchange, values: int, copies: int) -> int:
    """Return the values that a rank keeps between steps, for a shard of `values`.

    Outer updates: the weights of the last one, the momentum, the sum under way. Eight bits: the
    rounding error of what it sends, and of the part that it sums.
    """
    outer = 3 * values if exchange.every > 1 else 0
    if exchange.compression != "int8":
        return outer
    if exchange.levels(copies):
        values, copies = -(-values // exchange.near), exchange.racks(copies)
    return outer + values + -(-values // copies)
