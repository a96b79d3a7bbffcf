"""The sums of a step over the replicas: in which messages, and when each is complete.

FSDP hands over the gradient shard of one unit after the other during the backward pass. Without
overlap each is summed at once. With overlap a shard may stay incomplete until `complete`. Meanwhile
parameters have gradients that are views of the shard, so it is only changed in place.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from llmtrain_core.plan.gradient_sync import SyncScheme, chunk_values
from llmtrain_trainer.parallel.replicate.all_reduce import AllReduce, Completion

IN_FLIGHT = 2
"""Messages that may be in transfer while the backward pass goes on. With more it waits for the
first, which bounds the memory for them."""


class GradientSums:
    """Sums the gradients of all units over the replicas.

    All ranks of a replica group add the same units in the same order.
    """

    def __init__(self, all_reduce: AllReduce, sync: SyncScheme) -> None:
        self.all_reduce, self._sync = all_reduce, sync
        self._bucket: list[Tensor] = []
        self._buckets = 0
        """Number of buckets of this step."""
        self._in_flight: deque[Completion] = deque()

    def add(self, name: str, shard: Tensor) -> None:
        """Replace the shard of a unit, (values,), by the sum; with overlap, by `complete`."""
        if not self._sync.overlap:
            self._start(name, shard)()
        elif not self._sync.bucket_bytes:
            self._push(self._start(name, shard))
        else:
            self._bucket.append(shard)
            if sum(each.nbytes for each in self._bucket) >= self._sync.bucket_bytes:
                self._close_bucket()

    def complete(self) -> None:
        """Complete all sums of the step."""
        if self._bucket:
            self._close_bucket()
        while self._in_flight:
            self._in_flight.popleft()()
        self._buckets = 0

    def _close_bucket(self) -> None:
        shards, self._bucket = self._bucket, []
        name = f"bucket-{self._buckets}"
        self._buckets += 1
        if len(shards) == 1:
            self._push(self._start(name, shards[0]))
            return
        joined = torch.cat(shards)
        summed = self._start(name, joined)

        def finish() -> None:
            summed()
            for shard, part in zip(shards, torch.split(joined, [*map(len, shards)]), strict=True):
                shard.copy_(part)

        self._push(finish)

    def _push(self, completion: Completion) -> None:
        self._in_flight.append(completion)
        if len(self._in_flight) > IN_FLIGHT:
            self._in_flight.popleft()()

    def _start(self, name: str, message: Tensor) -> Completion:
        if self._sync.chunks == 1:
            return self.all_reduce.start(name, message)
        parts = torch.split(message, chunk_values(self._sync, len(message)))
        started = [
            self.all_reduce.start(f"{name}.{number}", part) for number, part in enumerate(parts)
        ]

        def finish() -> None:
            for completion in started:
                completion()

        return finish
