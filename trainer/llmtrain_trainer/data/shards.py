"""Packed tokens on disk: plain little-endian arrays in shard files, read through memory maps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHARD_TOKENS = 64 << 20
"""Tokens per shard file."""

Ids = npt.NDArray[np.uint32]


def token_type(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """Return the narrowest type that holds every token of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def write_shards(
    folder: Path, name: str, documents: Iterable[Ids], vocab_size: int, limit: int = SHARD_TOKENS
) -> int:
    """Write documents end to end as `name-00000.bin`, ...; return the number of tokens.

    Every file but the last holds exactly `limit` tokens, so a token's place follows from its number
    alone; documents and sequences may cross from one file into the next.
    """
    dtype = token_type(vocab_size)
    total = 0
    for ids in documents:
        start = 0
        while start < len(ids):
            room = limit - total % limit
            part = ids[start : start + room]
            with (folder / f"{name}-{total // limit:05d}.bin").open("ab") as file:
                file.write(part.astype(dtype).tobytes())
            start += len(part)
            total += len(part)
    return total


class TokenStream:
    """All shards of one name as one long array of tokens."""

    def __init__(self, folder: Path, name: str, vocab_size: int, limit: int = SHARD_TOKENS) -> None:
        self._limit = limit
        self._shards = [
            np.memmap(path, dtype=token_type(vocab_size), mode="r")
            for path in sorted(folder.glob(f"{name}-*.bin"))
        ]
        self._length = sum(map(len, self._shards))

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return tokens `start` .. `start + count` as torch wants them."""
        if start < 0 or start + count > self._length:
            raise IndexError(f"tokens {start}..{start + count} of {self._length}")
        parts = []
        while count:
            shard, offset = divmod(start, self._limit)
            part = self._shards[shard][offset : offset + count]
            parts.append(part)
            start += len(part)
            count -= len(part)
        return np.concatenate(parts).astype(np.int64)
