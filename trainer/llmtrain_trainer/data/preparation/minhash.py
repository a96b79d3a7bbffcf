"""Near duplicates: MinHash (Broder 1997) with banding, as in FineWeb (arXiv:2406.17557).

Runs of 5 words, 112 hashes in b bands of r rows, by default 14 of 8. Two documents whose sets of
runs have Jaccard index s share a band with probability 1 - (1 - s^r)^b: for 14 bands of 8, 5 % at
0.5, 56 % at 0.7, 92 % at 0.8, 99.96 % at 0.9. Documents that share a band, directly or through
other documents, are near duplicates. The result does not depend on the order of the documents.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.data.preparation.words import Hashes, mixed, runs, signs, word_hashes

RUN = 5
BANDS, ROWS = 14, 8

_CHUNK = 2048
"""Runs hashed at a time, so that the products stay in the CPU cache."""

PROBABILITY = 0.9
"""Least probability with which a pair of the similarity that a source names shares a band."""

_FACTORS = mixed(np.arange(1, BANDS * ROWS + 1, dtype=np.uint64)) | np.uint64(1)


@cache
def rows_for(similarity: float) -> int:
    """Return the most rows of a band with which a pair of this similarity is found.

    Pairs that are less similar then share a band as rarely as possible.
    """
    return max(
        rows
        for rows in range(ROWS, BANDS * ROWS + 1)
        if rows == ROWS or 1 - (1 - similarity**rows) ** (BANDS * ROWS // rows) >= PROBABILITY
    )


def band_hashes(text: str, rows: int = ROWS, alone: int = 0) -> Hashes:
    """Return the band hashes of a document, (`BANDS`,).

    With more than `ROWS` rows there are fewer bands, and their values are repeated. A document
    without a run of words is near no other one: its bands are `alone`, a hash of its text.
    """
    words = word_hashes(signs(text))
    if len(words) < RUN:
        return np.full(BANDS, alone, np.uint64)
    found = runs(words, RUN)
    least = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(found), _CHUNK):
        products = _FACTORS[:, None] * found[None, start : start + _CHUNK]
        np.minimum(least, products.min(axis=1), out=least)
    # upper halves: multiply-shift hashing (Dietzfelbinger et al. 1997)
    return _banded((least >> np.uint64(32)).astype(np.uint32), rows)


def _banded(signature: npt.NDArray[np.uint32], rows: int) -> Hashes:
    bands = BANDS * ROWS // rows
    parts = signature[: bands * rows].reshape(bands, rows).astype(np.uint64)
    # bands of other lengths never meet
    value = np.arange(bands, dtype=np.uint64) + np.uint64((rows - ROWS) << 32)
    for row in range(rows):
        value = mixed(value * np.uint64(31) + parts[:, row])
    return value[np.arange(BANDS) % bands]


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
