"""The sequences of a step: a pure function of the seed and the number of sequences before it.

A run that resumes needs this number only. It goes on with the next sequence, whatever the global
batch was before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmtrain_trainer.data.mixture import SequenceStream, SourceMixture
from llmtrain_trainer.errors import InputError


@dataclass(frozen=True, slots=True)
class BatchShard:
    """The part of every global batch that a data rank reads."""

    global_batch: int
    index: int
    count: int

    def range(self) -> range:
        """Return the positions in the global batch. All ranks together read all of them."""
        size = self.global_batch // self.count
        return range(self.index * size, (self.index + 1) * size)


class TrainingBatches:
    """Training sequences: windows of every stream, in a new random order every epoch."""

    def __init__(self, mixture: SourceMixture, length: int, seed: int, share: BatchShard) -> None:
        _require_windows(mixture, length)
        self._mixture = mixture
        self._length, self._seed, self._share = length, seed, share
        self._windows = [stream.windows(length) for stream in self._mixture.streams]
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}

    def at(self, first: int) -> tuple[Tensor, Tensor]:
        """Return (tokens, targets) of the step that begins with sequence `first`, from 0.

        Each has the shape (local batch, length).
        """
        rows = [stream.window(number, self._length) for stream, number in self._own(first)]
        tokens, targets = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return tokens, targets

    def loss_tokens(self, first: int) -> int:
        """Return the number of targets in the loss of a step's whole global batch.

        It follows from the number of the first sequence, so ranks need not communicate.
        """
        return sum(stream.loss_tokens(number, self._length) for stream, number in self._all(first))

    def document_totals(self, first: int) -> tuple[int, int, int]:
        """Return sums over the documents of a step's whole global batch: see `SequenceStream`."""
        each = [stream.document_totals(number, self._length) for stream, number in self._all(first)]
        documents, tokens, pairs = np.array(each, np.int64).sum(axis=0).tolist()
        return documents, tokens, pairs

    def mean_real_tokens(self) -> float:
        """Return the real tokens of a sequence on average over epochs, by the weights."""
        share = self._mixture.quotas / self._mixture.quotas.sum()
        means = [
            sum(stream.real_tokens(number, self._length) for number in range(windows)) / windows
            for stream, windows in zip(self._mixture.streams, self._windows, strict=True)
        ]
        return float(np.dot(share, means))

    def own_document_lengths(self, first: int) -> list[Sequence[int]]:
        """Return the real tokens of the documents of each sequence of `at(first)`."""
        return [
            stream.document_lengths(number, self._length) for stream, number in self._own(first)
        ]

    def epoch(self, sequences: int) -> float:
        """Return the passes over the data, of all sources together, after so many sequences."""
        return sequences / sum(self._windows)

    def _own(self, first: int) -> Iterator[tuple[SequenceStream, int]]:
        """Yield the stream and the number of each sequence of `at(first)`."""
        return self._sequences(first, self._share.range())

    def _all(self, first: int) -> Iterator[tuple[SequenceStream, int]]:
        """Yield the stream and the number of every sequence of a step's global batch."""
        return self._sequences(first, range(self._share.global_batch))

    def _sequences(self, first: int, positions: range) -> Iterator[tuple[SequenceStream, int]]:
        for position in positions:
            source, number = self._place(first + position)
            yield self._mixture.streams[source], number

    def _place(self, sample: int) -> tuple[int, int]:
        source, number = self._mixture.draw(sample)
        epoch, position = divmod(number, self._windows[source])
        known = self._orders.get(source)
        if known is None or known[0] != epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            known = epoch, generator.permutation(self._windows[source])
            self._orders[source] = known
        return source, int(known[1][position])


def _require_windows(mixture: SourceMixture, length: int) -> None:
    """Raise InputError for a source shorter than one sequence: it could never be sampled."""
    for stream in mixture.streams:
        if not stream.windows(length):
            raise InputError(
                "CorpusTooSmall",
                f"{stream.folder} has {len(stream)} tokens, less than one sequence of {length}",
                field="spec.data.sources",
                remedy="add text to that source, or remove it",
            )
