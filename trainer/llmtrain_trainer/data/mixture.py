"""The source of a sequence: a pure function of its number in the run.

So the mixture does not depend on the number of data ranks, and resuming needs only the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.data.examples import ExampleStream
from llmtrain_trainer.data.packing import PackedExamples
from llmtrain_trainer.data.prepared import PreparedData
from llmtrain_trainer.data.shards import TokenStream

ROUND = 4096
"""The mixture repeats after this many sequences, so weights are rounded to multiples of 1 /
ROUND."""


class SequenceStream(Protocol):
    """One part of a source, as sequences."""

    @property
    def folder(self) -> Path:
        """The folder of its shards."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    def windows(self, length: int) -> int:
        """Return the number of sequences of `length` tokens that are trained on."""

    def sequences(self, length: int) -> int:
        """Return the number of sequences, with one that may be shorter than `length`."""

    def window(self, number: int, length: int) -> tuple[npt.NDArray[np.int64], ...]:
        """Return inputs and targets of a sequence, each (length,)."""

    def loss_tokens(self, number: int, length: int) -> int:
        """Return the number of targets of a sequence in the loss."""

    def real_tokens(self, number: int, length: int) -> int:
        """Return the number of inputs of a sequence that are no padding."""

    def document_lengths(self, number: int, length: int) -> Sequence[int]:
        """Return the numbers of inputs of the documents of a sequence, in order.

        One number if it is not divided into documents.
        """

    def document_totals(self, number: int, length: int) -> tuple[int, int, int]:
        """Return sums over the documents of a sequence: 1, their lengths, and the squares of these.

        Squares are the pairs of tokens inside documents.
        """


@dataclass(frozen=True, slots=True)
class SourceMixture:
    """Streams and the order in which they are read."""

    streams: tuple[SequenceStream, ...]
    turns: npt.NDArray[np.int64]
    """Source of every sequence of a round."""
    ranks: npt.NDArray[np.int64]
    """Number of earlier sequences of the same source in the round."""
    quotas: npt.NDArray[np.int64]
    """Sequences of every source in a round."""

    @classmethod
    def of(cls, streams: Sequence[SequenceStream], weights: Sequence[float]) -> SourceMixture:
        """Spread the sequences of every source evenly over a round, in proportion to its weight."""
        quotas = _quotas(weights)
        places = [(np.arange(quota) + 0.5) / quota for quota in quotas.tolist()]
        owners = np.repeat(np.arange(len(quotas)), quotas)
        turns = owners[np.lexsort((owners, np.concatenate(places)))]
        ranks = np.empty(len(turns), np.int64)
        for source, quota in enumerate(quotas.tolist()):
            ranks[turns == source] = np.arange(quota)
        return cls(tuple(streams), turns, ranks, quotas)

    def draw(self, number: int) -> tuple[int, int]:
        """Return the source of a sequence and its number among the sequences of that source."""
        turn, place = divmod(number, len(self.turns))
        source = int(self.turns[place])
        return source, turn * int(self.quotas[source]) + int(self.ranks[place])


def _quotas(weights: Sequence[float]) -> npt.NDArray[np.int64]:
    """Apportion a round by largest remainders. Every source gets at least one sequence."""
    if len(weights) == 1:
        return np.ones(1, np.int64)
    exact = np.asarray(weights) / sum(weights) * ROUND
    quotas = np.maximum(1, np.floor(exact)).astype(np.int64)
    rest = np.argsort(np.floor(exact) - exact, kind="stable")
    quotas[rest[: max(0, ROUND - int(quotas.sum()))]] += 1
    return quotas


def open_mixture(
    data: PreparedData, part: str, vocab_size: int, packed_length: int | None = None
) -> SourceMixture:
    """Open one part of the prepared data. Skip sources without tokens in it.

    With `packed_length`, examples are packed into sequences of so many tokens, and the weight of a
    source is its share of these sequences.
    """

    def open_stream(folder: Path) -> SequenceStream:
        if not data.examples:
            return TokenStream(folder, part, vocab_size)
        examples = ExampleStream(folder, part, vocab_size)
        return examples if packed_length is None else PackedExamples(examples, packed_length)

    folders = [(data.folder / name, weight) for name, weight in data.sources]
    opened = [(open_stream(folder), weight) for folder, weight in folders or [(data.folder, 1.0)]]
    filled = [(stream, weight) for stream, weight in opened if len(stream)]
    return SourceMixture.of([stream for stream, _ in filled], [weight for _, weight in filled])
