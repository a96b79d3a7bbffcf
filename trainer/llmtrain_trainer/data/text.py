"""Cleaning of text, and which documents are held out. Pure functions."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_CONTROL = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]")
_SPACES = re.compile(r"[ \t]{2,}|\t")
_GAPS = re.compile(r"\n{3,}")


def normalise(text: str) -> str:
    """Return NFC text with line feeds only, single spaces, at most one empty line, no controls.

    Idempotent.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _SPACES.sub(" ", _CONTROL.sub(" ", text))
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return _GAPS.sub("\n\n", text).strip()


@dataclass(frozen=True, slots=True)
class Split:
    """Documents to learn from and documents kept back, each in the order they came."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def hold_out(texts: Iterable[str], fraction: float, seed: int) -> Split:
    """Keep back a fraction of whole documents: those whose seeded content hash is smallest.

    Exact duplicates are dropped first, so no text is on both sides; adding documents to a corpus
    moves few others across. At least one document stays on each side where there are two.
    """
    unique: dict[bytes, str] = {}
    for text in texts:
        if text:
            unique.setdefault(_key(text, seed), text)
    count = min(max(1, round(len(unique) * fraction)), max(0, len(unique) - 1))
    kept_back = set(sorted(unique)[:count])
    return Split(train=_where(unique, kept_back, False), held_out=_where(unique, kept_back, True))


def _where(texts: dict[bytes, str], chosen: set[bytes], inside: bool) -> tuple[str, ...]:
    return tuple(text for key, text in texts.items() if (key in chosen) == inside)


def _key(text: str, seed: int) -> bytes:
    return hashlib.blake2b(text.encode(), key=seed.to_bytes(8, "big"), digest_size=16).digest()


def sample(texts: Sequence[str], limit: int) -> list[str]:
    """Return documents spread evenly over the corpus, about `limit` characters in all."""
    total = sum(map(len, texts))
    if total <= limit:
        return list(texts)
    chosen: list[str] = []
    seen = taken = 0
    for text in texts:
        seen += len(text)
        if taken + len(text) / 2 <= seen * limit / total:
            chosen.append(text)
            taken += len(text)
    return chosen or [texts[0][:limit]]
