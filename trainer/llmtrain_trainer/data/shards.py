"""Packed tokens on disk: little-endian arrays in shard files, read through memory maps.

Next to every `.bin` is a `.json` with its length, the width of a token and a CRC-32 per block. A
block is checked when it is first read: a run with corrupt data stops instead of learning from it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, first_problem, read_file

SHARD_TOKENS = 64 << 20
"""Tokens per shard file."""

BLOCK = 1 << 20
"""Bytes that one checksum covers."""

MAX_FACTS = 1 << 30
"""Bytes of the file next to a shard."""

Ids = npt.NDArray[np.uint32]


def token_type(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """Return the narrowest type that holds every token of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def shard_name(part: str, number: int) -> str:
    """Return the file name of a shard."""
    return f"{part}-{number:05d}.bin"


def write_shards(
    folder: Path, name: str, documents: Iterable[Ids], vocab_size: int, limit: int = SHARD_TOKENS
) -> int:
    """Write documents end to end as `name-00000.bin`, ...; return the number of tokens.

    Every file but the last holds exactly `limit` tokens. Documents and sequences may continue in
    the next file.
    """
    dtype = token_type(vocab_size)
    total = 0
    for ids in documents:
        start = 0
        while start < len(ids):
            room = limit - total % limit
            part = ids[start : start + room]
            with (folder / shard_name(name, total // limit)).open("ab") as file:
                file.write(part.astype(dtype).tobytes())
            start += len(part)
            total += len(part)
    for path in sorted(folder.glob(f"{name}-*.bin")):
        path.with_suffix(".json").write_text(checksum_file(path, dtype.itemsize))
    return total


def checksum_file(content: Path, width: int) -> str:
    """Return the content of the file next to a shard: its length and checksums."""
    sums: list[int] = []
    with content.open("rb") as file:
        while block := file.read(BLOCK):
            sums.append(zlib.crc32(block))
    facts = {"tokens": content.stat().st_size // width, "width": width, "crc32": sums}
    return json.dumps(facts)


@dataclass(frozen=True, slots=True)
class _Facts:
    """The content of the file next to a shard."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    tokens: Annotated[int, Field(ge=1, lt=1 << 62)]
    width: Literal[2, 4]
    crc32: list[int]


_FACTS = TypeAdapter(_Facts)


@dataclass(slots=True)
class Shard:
    """One file of tokens, and which of its blocks have been checked."""

    path: Path
    tokens: npt.NDArray[np.unsignedinteger]
    sums: list[int]
    checked: npt.NDArray[np.bool_]

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Map a shard. Raises InputError (`CorpusCorrupt`) if it is not what was written."""
        try:
            facts = _FACTS.validate_json(read_file(path.with_suffix(".json"), MAX_FACTS))
            size = path.stat().st_size
        except ValidationError as error:
            problem = f"its checksums cannot be read: {first_problem(error)}"
            raise corrupt_error(path, problem) from error
        except (OSError, DamagedFileError) as error:
            raise corrupt_error(path, f"its checksums cannot be read: {error}") from error
        count, width, sums = facts.tokens, facts.width, facts.crc32
        if not path.is_file() or size != count * width or len(sums) != -(-size // BLOCK):
            raise corrupt_error(path, f"{size} bytes, but {count} tokens of {width} were written")
        mapped = np.memmap(path, dtype=f"<u{width}", mode="r")
        return cls(path, mapped, sums, np.zeros(len(sums), bool))

    def read(self, start: int, count: int) -> npt.NDArray[np.unsignedinteger]:
        """Return tokens, after checking their blocks."""
        width = self.tokens.itemsize
        for block in range(start * width // BLOCK, ((start + count) * width - 1) // BLOCK + 1):
            if not self.checked[block]:
                first = block * BLOCK // width
                if zlib.crc32(self.tokens[first : first + BLOCK // width].data) != self.sums[block]:
                    raise corrupt_error(self.path, f"the checksum of block {block} does not fit")
                self.checked[block] = True
        return self.tokens[start : start + count]


class TokenStream:
    """All shards of one name as one long array of tokens."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        paths = sorted(folder.glob(f"{name}-*.bin"))
        for number, path in enumerate(paths):
            if path.name != shard_name(name, number):
                raise corrupt_error(folder / shard_name(name, number), "it is missing")
        self.folder = folder
        self._vocab_size = vocab_size
        self._shards = [Shard.open(path) for path in paths]
        self._ends = np.cumsum([len(shard.tokens) for shard in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._shards else 0

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return tokens `start` .. `start + count` as int64, which torch needs."""
        if start < 0 or start + count > len(self):
            raise IndexError(f"tokens {start}..{start + count} of {len(self)}")
        parts = []
        while count:
            number = int(np.searchsorted(self._ends, start, side="right"))
            shard = self._shards[number]
            room = int(self._ends[number]) - start
            part = shard.read(len(shard.tokens) - room, min(room, count))
            parts.append(part)
            start += len(part)
            count -= len(part)
        tokens = np.concatenate(parts).astype(np.int64)
        if int(tokens.max()) >= self._vocab_size:
            raise corrupt_error(
                shard.path, f"token {tokens.max()} of a vocabulary of {self._vocab_size}"
            )
        return tokens

    def windows(self, length: int) -> int:
        """Return the number of whole sequences of `length` tokens, each with a next token."""
        return max(0, (len(self) - 1) // length)

    def sequences(self, length: int) -> int:
        """Return the number of sequences that have every token but the first as a target.

        The last one may be shorter than `length`.
        """
        return max(0, -(-(len(self) - 1) // length))

    def window(self, number: int, length: int) -> tuple[npt.NDArray[np.int64], ...]:
        """Return the tokens of a sequence and the next tokens, each (length,).

        Only the last of `sequences` is padded: targets there are not in the loss.
        """
        start = number * length
        read = self.read(start, min(length, len(self) - 1 - start) + 1)
        return padded(read[:-1], length, 0), padded(read[1:], length, IGNORE_INDEX)

    def loss_tokens(self, number: int, length: int) -> int:
        """Return the number of targets of a sequence in the loss: all but padding."""
        return min(length, len(self) - 1 - number * length)

    def real_tokens(self, number: int, length: int) -> int:
        """Return the number of inputs of a sequence that are no padding."""
        return self.loss_tokens(number, length)

    def document_lengths(self, number: int, length: int) -> tuple[int, ...]:
        """Return the number of inputs of a sequence: documents follow from its tokens."""
        return (self.real_tokens(number, length),)

    def document_totals(self, number: int, length: int) -> tuple[int, int, int]:
        """Return the sums over the only document: see `SequenceStream`."""
        count = self.real_tokens(number, length)
        return 1, count, count * count


def padded(values: npt.NDArray[np.int64], length: int, fill: int) -> npt.NDArray[np.int64]:
    """Return values (count,) followed by `fill`, (length,)."""
    if len(values) == length:
        return values
    return np.concatenate([values, np.full(length - len(values), fill, np.int64)])


def corrupt_error(path: Path, problem: str) -> InputError:
    """Return the error for a shard that is not what was written."""
    return InputError(
        "CorpusCorrupt",
        f"{path}: {problem}",
        field="spec.data.sources",
        remedy="remove the prepared data and prepare it again; if it happens twice, test the disk",
    )
