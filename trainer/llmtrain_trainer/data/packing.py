"""Packing of fine-tuning examples: several of them share a sequence.

Which examples share a sequence follows from their lengths and their order in the prepared data. So
it is the same on every rank and after a restart, and the position in the data stays the number of
sequences. The order of the sequences is random and new in every epoch, as without packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.data.examples import ExampleStream
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX, PADDING

Integers = npt.NDArray[np.int64]


def pack(lengths: Integers, capacity: int) -> tuple[Integers, Integers]:
    """Distribute items over bins by best fit, the longest item first (Johnson et al., 1974).

    Return the items (count,) ordered by bin, and where every bin ends in them (bins,). An item that
    is longer than `capacity` is alone in its bin.
    """
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set if a bin has room for r tokens
    for item in np.argsort(-lengths, kind="stable").tolist():
        needed = int(lengths[item])
        fitting = rooms >> needed
        if fitting:
            room = needed + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        if room > needed:
            by_room[room - needed].append(number)
            rooms |= 1 << (room - needed)
    order = np.fromiter((item for each in bins for item in each), np.int64, len(lengths))
    return order, np.cumsum([len(each) for each in bins], dtype=np.int64)


def example_numbers(lengths: Sequence[int], length: int) -> Integers:
    """Return the number of each token's example in a sequence (length,), -1 for padding."""
    numbers = np.full(length, PADDING, np.int64)
    numbers[: sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
    return numbers


class PackedExamples:
    """The examples of one part of a source, several per sequence."""

    def __init__(self, examples: ExampleStream, length: int) -> None:
        """`length` is the number of tokens of a sequence."""
        self._examples = examples
        every = range(examples.windows(length))
        lengths = np.array([examples.real_tokens(each, length) for each in every], np.int64)
        counted = np.array([examples.loss_tokens(each, length) for each in every], np.int64)
        self._order, self._ends = pack(lengths, length)
        self._lengths = lengths[self._order]
        starts = np.concatenate([np.zeros(1, np.int64), self._ends])[:-1]
        ones = np.ones_like(lengths)
        self._totals = np.stack(
            [
                np.add.reduceat(each, starts) if len(starts) else each
                for each in (ones, self._lengths, self._lengths**2, counted[self._order])
            ],
            axis=1,
        )

    @property
    def folder(self) -> Path:
        """The folder of the shards."""
        return self._examples.folder

    def __len__(self) -> int:
        return len(self._examples)

    def windows(self, length: int) -> int:
        """Return the number of sequences."""
        return len(self._ends)

    def sequences(self, length: int) -> int:
        """Return the number of sequences."""
        return self.windows(length)

    def window(self, number: int, length: int) -> tuple[Integers, ...]:
        """Return inputs and targets of a sequence, each (length,): examples, then padding."""
        tokens = np.zeros(length, np.int64)
        targets = np.full(length, IGNORE_INDEX, np.int64)
        end = 0
        members = self._order[self._members(number)].tolist()
        for each, count in zip(members, self.document_lengths(number, length), strict=True):
            start, end = end, end + count
            inputs, labels = self._examples.window(each, length)
            tokens[start:end], targets[start:end] = inputs[:count], labels[:count]
        return tokens, targets

    def loss_tokens(self, number: int, length: int) -> int:
        """Return the number of targets of a sequence in the loss."""
        return int(self._totals[number, 3])

    def real_tokens(self, number: int, length: int) -> int:
        """Return the number of inputs of a sequence that are no padding."""
        return int(self._totals[number, 1])

    def document_lengths(self, number: int, length: int) -> tuple[int, ...]:
        """Return the number of inputs of each example of a sequence."""
        return tuple(self._lengths[self._members(number)].tolist())

    def document_totals(self, number: int, length: int) -> tuple[int, int, int]:
        """Return the sums over the examples of a sequence: see `SequenceStream`."""
        count, tokens, pairs, _ = self._totals[number].tolist()
        return count, tokens, pairs

    def _members(self, number: int) -> slice:
        return slice(int(self._ends[number - 1]) if number else 0, int(self._ends[number]))
