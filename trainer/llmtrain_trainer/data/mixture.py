"""Which source the next sequence comes from: a pure function of its number in the whole run.

So the mix does not depend on the number of data ranks, and resuming needs nothing but the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.data.examples import ExampleStream
from llmtrain_trainer.data.prepared import PreparedData
from llmtrain_trainer.data.shards import TokenStream

ROUND = 4096
"""Sequences after which the mix repeats; weights are kept to one part in as many."""


class SequenceStream(Protocol):
    """One part of a source, as sequences."""

    @property
    def folder(self) -> Path:
        """Where its shards are."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    def windows(self, length: int) -> int:
        """Return how many sequences of `length` tokens, each with a next token, it holds."""

    def window(self, number: int, length: int) -> tuple[npt.NDArray[np.int64], ...]:
        """Return the inputs of a sequence and its targets, each (length,)."""

    def loss_tokens(self, number: int, length: int) -> int:
        """Return how many targets of a sequence the loss counts."""


@dataclass(frozen=True, slots=True)
class SourceMixture:
    """Streams and the order in which they take turns."""

    streams: tuple[SequenceStream, ...]
    turns: npt.NDArray[np.int64]
    """Source of every sequence of a round."""
    ranks: npt.NDArray[np.int64]
    """How many sequences of the same source came before it in the round."""
    quotas: npt.NDArray[np.int64]
    """Sequences of every source in a round."""

    @classmethod
    def of(cls, streams: Sequence[SequenceStream], weights: Sequence[float]) -> SourceMixture:
        """Spread the turns of every source evenly over the round, as many as its weight asks."""
        quotas = _quotas(weights)
        places = [(np.arange(quota) + 0.5) / quota for quota in quotas.tolist()]
        owners = np.repeat(np.arange(len(quotas)), quotas)
        turns = owners[np.lexsort((owners, np.concatenate(places)))]
        ranks = np.empty(len(turns), np.int64)
        for source, quota in enumerate(quotas.tolist()):
            ranks[turns == source] = np.arange(quota)
        return cls(tuple(streams), turns, ranks, quotas)

    def draw(self, number: int) -> tuple[int, int]:
        """Return the source of a sequence and its number among those of that source."""
        turn, place = divmod(number, len(self.turns))
        source = int(self.turns[place])
        return source, turn * int(self.quotas[source]) + int(self.ranks[place])


def _quotas(weights: Sequence[float]) -> npt.NDArray[np.int64]:
    """Share a round out by largest remainders; every source has at least one turn."""
    if len(weights) == 1:
        return np.ones(1, np.int64)
    exact = np.asarray(weights) / sum(weights) * ROUND
    quotas = np.maximum(1, np.floor(exact)).astype(np.int64)
    rest = np.argsort(np.floor(exact) - exact, kind="stable")
    quotas[rest[: max(0, ROUND - int(quotas.sum()))]] += 1
    return quotas


def open_mixture(data: PreparedData, part: str, vocab_size: int) -> SourceMixture:
    """Open one part of the prepared data; sources without tokens in it are left out."""
    folders = [(data.folder / name, weight) for name, weight in data.sources]
    kind: type[ExampleStream | TokenStream] = ExampleStream if data.examples else TokenStream
    opened = [
        (kind(folder, part, vocab_size), weight)
        for folder, weight in folders or [(data.folder, 1.0)]
    ]
    filled = [(stream, weight) for stream, weight in opened if len(stream)]
    return SourceMixture.of([stream for stream, _ in filled], [weight for _, weight in filled])
