"""Normalization of text, and the key of a document's content. Pure functions."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_CONTROL = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]")
_ASCII_CONTROL = "".join(_CONTROL.sub(" ", chr(code)) for code in range(128))
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACES = re.compile(r"[ \t]{2,}|\t")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_GAPS = re.compile(r"\n{3,}")


def apply_cleaning(text: str, cleaning: str, code: bool = False) -> str:
    """Return the text to train on.

    `none` keeps everything, but for halves of surrogate pairs, which no encoding has. `web`
    normalizes white space; that of source code is kept except at line ends.
    """
    if cleaning == "none":
        return _whole_pairs(text)
    return normalize_code(text) if code else normalize(text)


def normalize(text: str) -> str:
    """Return NFC text with line feeds only, single spaces, at most one empty line, no controls.

    Idempotent.
    """
    text = unicodedata.normalize("NFC", _scalars(text))
    text = text.translate(_ASCII_CONTROL) if text.isascii() else _CONTROL.sub(" ", text)
    if "  " in text or "\t" in text:
        text = _SPACES.sub(" ", text)
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return (_GAPS.sub("\n\n", text) if "\n\n\n" in text else text).strip()


def normalize_code(text: str) -> str:
    """Return source code without control characters and trailing white space.

    Indentation and characters are kept: they are part of the program. Idempotent.
    """
    return _TRAILING.sub("", _HIDDEN.sub("", _scalars(text))).strip("\n")


def _scalars(text: str) -> str:
    """Return text of Unicode scalar values only, with line feeds as line ends."""
    return _whole_pairs(text.replace("\r\n", "\n").replace("\r", "\n"))


def _whole_pairs(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can contain, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def content_key(text: str, seed: int) -> bytes:
    """Return a 16-byte key of a document's content.

    Equal texts have equal keys. The first eight bytes decide what is held out, the last eight which
    of several near duplicates is kept: two independent random numbers.
    """
    return hashlib.blake2b(text.encode(), key=seed.to_bytes(8, "big"), digest_size=16).digest()
