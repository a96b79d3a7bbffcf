"""Near duplicates: MinHash (Broder 1997) with banding, as in FineWeb (arXiv:2406.17557).

Runs of 5 words, 112 hashes in 14 bands of 8. Two documents whose sets of runs have Jaccard index s
share a band with probability 1 - (1 - s^8)^14: 5 % at 0.5, 56 % at 0.7, 92 % at 0.8, 99.96 % at
0.9. Documents that share a band, directly or through other documents, are near duplicates. The
result does not depend on the order of the documents.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.data.preparation.words import Hashes, bare_words, mixed, runs, word_hashes

RUN = 5
BANDS, ROWS = 14, 8

_CHUNK = 2048
"""Runs hashed at a time, so that the products stay in the CPU cache."""

_FACTORS = mixed(np.arange(1, BANDS * ROWS + 1, dtype=np.uint64)) | np.uint64(1)


def band_hashes(text: str) -> Hashes:
    """Return the `BANDS` band hashes of a document."""
    found = np.unique(runs(word_hashes(bare_words(text)), RUN))
    least = np.full(BANDS * ROWS, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(found), _CHUNK):
        products = _FACTORS[:, None] * found[None, start : start + _CHUNK]
        # upper halves: multiply-shift hashing (Dietzfelbinger et al. 1997)
        np.minimum(least, (products >> np.uint64(32)).min(axis=1).astype(np.uint32), out=least)
    return _banded(least)


def _banded(signature: npt.NDArray[np.uint32]) -> Hashes:
    rows = signature.reshape(BANDS, ROWS).astype(np.uint64)
    value = np.arange(BANDS, dtype=np.uint64)
    for row in range(ROWS):
        value = mixed(value * np.uint64(31) + rows[:, row])
    return value


def clusters(bands: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return for every document (row) the smallest row of its cluster of near duplicates."""
    parent = np.arange(len(bands), dtype=np.int64)
    for column in bands.T:
        order = np.argsort(column, kind="stable")
        equal = np.flatnonzero(column[order][1:] == column[order][:-1])
        for place in equal.tolist():
            _join(parent, int(order[place]), int(order[place + 1]))
    for row in range(len(parent)):
        parent[row] = _root(parent, row)
    return parent


def _root(parent: npt.NDArray[np.int64], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def _join(parent: npt.NDArray[np.int64], one: int, other: int) -> None:
    first, second = sorted((_root(parent, one), _root(parent, other)))
    parent[second] = first
