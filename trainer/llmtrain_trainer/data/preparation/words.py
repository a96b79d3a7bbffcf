"""Words and runs of words as 64-bit hashes, for the repetition rules and MinHash.

The prepared corpus depends on these hashes: other hashes would keep other documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_WORD = re.compile(
    "[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"  # scripts without spaces
    r"|[^\W\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_SYMBOL = re.compile(r"[^\w\s]")
_ASCII_WORDS = "".join(re.sub(r"\W", " ", chr(code)) for code in range(128))
"""ASCII with a space for each character that is in no word. Its split is faster than _WORD."""
_SIGN = re.compile(f"{_WORD.pattern}|{_SYMBOL.pattern}")
_LETTERS_PER_SYMBOL = 3
"""Letters and digits per symbol below which symbols are compared. English prose has about 30."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_REMEMBERED = 1 << 20
"""Number of distinct words in the cache."""


class _WordHashes(dict[str, bytes]):
    def __missing__(self, word: str) -> bytes:
        if len(self) >= _REMEMBERED:
            self.clear()
        value = self[word] = hashlib.blake2b(word.encode(), digest_size=8).digest()
        return value


_known = _WordHashes()


def word_hashes(words: list[str]) -> Hashes:
    """Return a hash per word."""
    return np.frombuffer(b"".join(map(_known.__getitem__, words)), "<u8")


def bare_words(text: str) -> list[str]:
    """Return lower-case words without punctuation. Each ideograph or syllable is a word."""
    if text.isascii():
        return text.lower().translate(_ASCII_WORDS).split()
    return _WORD.findall(text.casefold())


def signs(text: str) -> list[str]:
    """Return what documents are compared by: words; with each symbol, if many are symbols.

    Empty for a text without words: runs of symbols repeat, and say little about a text.
    """
    words = bare_words(text)
    symbols = _SYMBOL.findall(text)
    if not words or _LETTERS_PER_SYMBOL * len(symbols) <= sum(map(len, words)):
        return words
    return _SIGN.findall(text.casefold())


def runs(words: Hashes, length: int) -> Hashes:
    """Return a hash per run of `length` words; one hash of all words if there are fewer."""
    found = words
    for found in runs_by_length(words, length):  # noqa: B007 - the last one
        pass
    return found


def runs_by_length(words: Hashes, longest: int) -> Iterator[Hashes]:
    """Yield a hash per run of 1, 2, .. `longest` words, at most of all words."""
    value = np.zeros(len(words), np.uint64)
    for offset in range(min(longest, len(words))):
        value = mixed(value[: len(words) - offset] * _FACTOR + words[offset:])
        yield value


def mixed(value: Hashes) -> Hashes:
    """Mix all bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
