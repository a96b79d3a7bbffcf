"""The held-out sequences of an evaluation: the same ones whatever the batch and the layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmtrain_trainer.data.mixture import SourceMixture
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class DataShare:
    """How the sequences of an evaluation are divided among data ranks."""

    index: int
    """Number of this data rank."""
    count: int
    local_batch: int
    """Most sequences that a data rank gets at a time."""
    micro_batch: int
    """A data rank always gets a multiple of this number of sequences."""


@dataclass(frozen=True, slots=True)
class HeldOutBatch:
    """Sequences of one data rank. What remains of the last batch is filled with empty ones."""

    tokens: Tensor
    """(local batch, length)"""
    targets: Tensor
    """(local batch, length); `IGNORE_INDEX` for targets that are not in the loss."""
    sources: Tensor
    """Source of each sequence, (local batch,). Empty ones have the number of sources."""


class HeldOutSequences:
    """Held-out sequences: every target once, or those of a part that is spread evenly.

    If there are no more than `limit` tokens, all sequences are chosen. Otherwise each source gives
    the same share of its sequences, rounded down, but at least one. The number of tokens is then at
    most `limit`, to within a sequence per source; for examples, whose lengths differ, about that.

    Raises InputError if nothing is held out.
    """

    def __init__(self, mixture: SourceMixture, length: int, limit: int) -> None:
        self._mixture, self._length = mixture, length
        streams = mixture.streams
        total = sum(len(stream) for stream in streams)
        self._places: list[tuple[int, int]] = []
        for source, stream in enumerate(streams):
            present = stream.sequences(length)
            chosen = present if total <= limit else max(min(1, present), present * limit // total)
            self._places += [(source, each * present // chosen) for each in range(chosen)]
        self.loss_tokens = [0] * len(streams)
        """Targets in the loss, by source."""
        self.counts = [0] * len(streams)
        """Sequences, by source."""
        for source, number in self._places:
            self.loss_tokens[source] += streams[source].loss_tokens(number, length)
            self.counts[source] += 1
        if not sum(self.loss_tokens):
            raise InputError(
                "CorpusTooSmall",
                "no held-out token counts in the loss",
                field="spec.data.sources",
                remedy="add text, or change data.heldOutFraction",
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, as their folders of shards are called."""
        return tuple(stream.folder.name for stream in self._mixture.streams)

    def batches(self, share: DataShare) -> Iterator[HeldOutBatch]:
        """Yield the batches of a data rank. All data ranks get equally many sequences."""
        whole, step = share.local_batch * share.count, share.micro_batch * share.count
        for first in range(0, len(self._places), whole):
            places = self._places[first : first + whole]
            rows = -(-len(places) // step) * share.micro_batch
            yield self._batch(places[share.index * rows : (share.index + 1) * rows], rows)

    def _batch(self, places: list[tuple[int, int]], rows: int) -> HeldOutBatch:
        tokens = np.zeros((rows, self._length), np.int64)
        targets = np.full((rows, self._length), IGNORE_INDEX, np.int64)
        sources = np.full(rows, len(self._mixture.streams), np.int64)
        for row, (source, number) in enumerate(places):
            tokens[row], targets[row] = self._mixture.streams[source].window(number, self._length)
            sources[row] = source
        return HeldOutBatch(*map(torch.from_numpy, (tokens, targets, sources)))
