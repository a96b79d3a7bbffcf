"""Cleaning of text, and what a document's content is known by. Pure functions."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_CONTROL = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]")
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACES = re.compile(r"[ \t]{2,}|\t")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_GAPS = re.compile(r"\n{3,}")


def normalize(text: str) -> str:
    """Return NFC text with line feeds only, single spaces, at most one empty line, no controls.

    Idempotent.
    """
    text = unicodedata.normalize("NFC", _scalars(text))
    text = _SPACES.sub(" ", _CONTROL.sub(" ", text))
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return _GAPS.sub("\n\n", text).strip()


def normalize_code(text: str) -> str:
    """Return source code as it is, without controls and white space at the ends of lines.

    Indentation and characters stay: they are part of the program. Idempotent.
    """
    return _TRAILING.sub("", _HIDDEN.sub("", _scalars(text))).strip("\n")


def _scalars(text: str) -> str:
    """Return text of Unicode scalar values only, its lines ended by line feeds."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:  # half a pair, as JSON can spell it
        return _SURROGATE.sub("\ufffd", text)
    return text


def content_key(text: str, seed: int) -> bytes:
    """Return 16 bytes that know a document by its content alone.

    Equal text has equal keys. The first eight bytes decide who is held out, the last eight which of
    near duplicates stays: two independent draws.
    """
    return hashlib.blake2b(text.encode(), key=seed.to_bytes(8, "big"), digest_size=16).digest()
