"""Which sequences a step sees: a pure function of the seed and the step's number.

Nothing is stored to resume: step 1000 after a restart reads exactly what it would have read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmtrain_trainer.data.shards import TokenStream

EVALUATION_BATCHES = 4
"""Held-out loss is measured on at most this many global batches, spread over the held-out text."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of every global batch a data rank sees."""

    global_batch: int
    index: int
    count: int

    def range(self) -> range:
        """Return the positions in the global batch; the same sequences for any `count`."""
        size = self.global_batch // self.count
        return range(self.index * size, (self.index + 1) * size)


class Batches:
    """Training sequences: windows of the stream in a new random order every epoch."""

    def __init__(self, stream: TokenStream, length: int, seed: int, share: Share) -> None:
        self._stream, self._length, self._seed, self._share = stream, length, seed, share
        self._windows = windows(stream, length)
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return (tokens, targets) of one step (counted from 0), each (local batch, length)."""
        first = step * self._share.global_batch
        numbers = [self._window(first + position) for position in self._share.range()]
        return gather(self._stream, numbers, self._length)

    def _window(self, sample: int) -> int:
        epoch, position = divmod(sample, self._windows)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._order, self._epoch = generator.permutation(self._windows), epoch
        return int(self._order[position])


class HeldOutBatches:
    """Held-out sequences: the same ones at every evaluation and in every layout."""

    def __init__(self, stream: TokenStream, length: int, share: Share) -> None:
        self._stream, self._length, self._share = stream, length, share
        self._windows = windows(stream, length)
        self.count = min(max(1, self._windows // share.global_batch), EVALUATION_BATCHES)

    def at(self, index: int) -> tuple[Tensor, Tensor]:
        """Return (tokens, targets) of one of `count` batches."""
        wanted = self.count * self._share.global_batch
        first = index * self._share.global_batch
        numbers = [(first + position) * self._windows // wanted for position in self._share.range()]
        return gather(self._stream, numbers, self._length)


def windows(stream: TokenStream, length: int) -> int:
    """Return how many sequences of `length` tokens, each with a next token, a stream holds."""
    return max(0, (len(stream) - 1) // length)


def gather(stream: TokenStream, numbers: list[int], length: int) -> tuple[Tensor, Tensor]:
    """Return inputs and their next tokens for windows by number."""
    rows = torch.from_numpy(
        np.stack([stream.read(number * length, length + 1) for number in numbers])
    )
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
