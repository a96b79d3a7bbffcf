"""Character sets as browsers choose them (WHATWG Encoding and HTML standards).

A byte order mark wins, then what the source, the protocol or the page declares. Text that declares
nothing is UTF-8 if it is valid as such, else windows-1252, but for its lines of valid UTF-8.
"""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from pathlib import Path
from typing import IO, Protocol

import webencodings

from llmtrain_trainer.data.readers.compressed import open_bytes

UTF_8, FALLBACK = "utf-8", "windows-1252"
MIXED = f"{UTF_8} and {FALLBACK}"
"""For a text with lines of both."""

_MARKS = (  # the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, UTF_8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CHUNK = 64 << 10
_LONGEST_LINE = 4 * _CHUNK
"""Bytes of a longer line are decoded in parts."""
_CHARACTERS = 16
"""Fewer bytes are a whole text; of more, the last character may be cut."""
_PRESCAN = 4096
_IN_HEADER = re.compile(r"charset\s*=\s*[\"']?([\w.:()+-]+)", re.IGNORECASE)
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_IN_PAGE = re.compile(
    rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([\w.:()+-]+)|<\?xml\s[^>]*?encoding\s*=\s*[\"']([\w.:-]+)",
    re.IGNORECASE,
)


class TextDecoder(Protocol):
    """An incremental decoder of the standard library."""

    def decode(self, data: bytes, final: bool = False) -> str:
        """Decode the next bytes."""


def is_charset(label: str) -> bool:
    """Return True for a label of the WHATWG Encoding standard."""
    return webencodings.lookup(label) is not None


def decode_page(content: bytes, content_type: str = "") -> tuple[str, str]:
    """Return the text of an HTML page, and its character set. Invalid bytes become U+FFFD."""
    mark = _mark(content)
    if mark is not None:
        start, name = mark
        return content[len(start) :].decode(name, errors="replace"), name
    encoding = _declared(content, content_type)
    if encoding is not None:
        name = str(encoding.name)
        return _decoder(name).decode(content, True), name
    name = _without_declaration(content)
    return _decoder(name).decode(content, True), name


def _declared(content: bytes, content_type: str) -> webencodings.Encoding | None:
    """Return the encoding of the header, else of the start of the page. Unknown labels are none."""
    if (found := _IN_HEADER.search(content_type)) and (named := webencodings.lookup(found[1])):
        return named
    place = _IN_PAGE.search(_COMMENT.sub(b"", content[:_PRESCAN]))
    if place is None:
        return None
    encoding = webencodings.lookup((place[1] or place[2]).decode("ascii", "replace"))
    if encoding is not None and encoding.name.startswith("utf-16"):
        return webencodings.UTF8  # a declaration that can be read as ASCII is not UTF-16
    return encoding


def _mark(content: bytes) -> tuple[bytes, str] | None:
    return next((mark for mark in _MARKS if content.startswith(mark[0])), None)


def _without_declaration(content: bytes) -> str:
    """Return the more likely one of UTF-8 and windows-1252."""
    try:
        content.decode()
        return UTF_8
    except UnicodeDecodeError:
        text = content.decode(errors="replace")
    invalid = text.count("\ufffd")
    valid = sum(char > "\x7f" for char in text) - invalid
    return UTF_8 if valid > invalid else FALLBACK


def utf16_of(start: bytes) -> str | None:
    """Return the name of UTF-16 without a byte order mark, by where its zero bytes are."""
    pairs = len(start) // 2
    even, odd = start[0 : 2 * pairs : 2].count(0), start[1 : 2 * pairs : 2].count(0)
    if pairs >= _CHARACTERS and max(even, odd) > 0.3 * pairs and min(even, odd) < 0.01 * pairs:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def decode_start(start: bytes) -> str | None:
    """Return the start of a file as text, or None if it is not text."""
    mark = _mark(start)
    name = mark[1] if mark else utf16_of(start)
    if name is None or name == UTF_8:
        if b"\0" in start or sum(map(start.count, _CONTROLS)) > 0.02 * len(start):
            return None
        name = _without_declaration(start[:-3] if len(start) > _CHARACTERS else start)
    return _decoder(name).decode(start[len(mark[0]) if mark else 0 :])


_CONTROLS = [bytes([code]) for code in range(32) if code not in b"\t\n\r\f\x1b"]


def open_text(
    path: Path, charset: str | None = None, chosen: Counter[str] | None = None
) -> IO[str]:
    """Open a file as text with line feeds, without a byte order mark. Invalid bytes become U+FFFD.

    `charset` is a WHATWG label for files without a byte order mark; None detects the character set.
    `chosen` counts the character set when the file has been read.
    """
    raw = _Utf8Stream(open_bytes(path), charset, Counter() if chosen is None else chosen)
    return io.TextIOWrapper(io.BufferedReader(raw, _CHUNK), encoding=UTF_8, errors="replace")


class _Utf8Stream(io.RawIOBase):
    """The bytes of a text as UTF-8. The character set is chosen at the first byte over 0x7F."""

    def __init__(self, stream: IO[bytes], charset: str | None, chosen: Counter[str]) -> None:
        self._stream, self._charset, self._chosen = stream, charset, chosen
        self._name = ""
        self._decoder: TextDecoder | None = None
        self._ready = b""
        self._starts = True
        self._ended = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._ready and not self._ended:
            self._ready = self._next()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next(self) -> bytes:
        """Return the next bytes as UTF-8."""
        content = self._stream.read(_CHUNK)
        if self._starts:
            self._starts = False
            content = self._choose_at_start(content)
        if not self._name and not content.isascii():
            more = self._stream.read(_CHUNK)
            content += more
            # a character at the end of a chunk may be cut
            self._name = _without_declaration(content[:-3] if len(more) == _CHUNK else content)
            if self._name != UTF_8:
                self._decoder = _LineDecoder()
        self._ended = not content
        if self._decoder is not None:
            content = self._decoder.decode(content, self._ended).encode("utf-8", "replace")
        if self._ended:
            is_mixed = isinstance(self._decoder, _LineDecoder) and self._decoder.is_mixed
            self._chosen[MIXED if is_mixed else self._name or UTF_8] += 1
        return content

    def _choose_at_start(self, content: bytes) -> bytes:
        mark = _mark(content)
        label = webencodings.lookup(self._charset) if self._charset else None
        if mark is not None:
            self._name = mark[1]
            content = content[len(mark[0]) :]
        elif label is not None:
            self._name = str(label.name)
        else:
            self._name = utf16_of(content[:4096]) or ""
        if self._name not in ("", UTF_8):
            self._decoder = _decoder(self._name)
        return content


class _LineDecoder:
    """Decodes each line as UTF-8 if it is valid as such, else as windows-1252.

    One damaged byte at the start of a file, or one old file in a concatenation, then costs no more
    than its line.
    """

    def __init__(self) -> None:
        self.is_mixed = False
        """Some characters beyond ASCII were UTF-8."""
        self._rest = b""

    def decode(self, data: bytes, final: bool = False) -> str:
        data = self._rest + data
        end = len(data) if final else data.rfind(b"\n") + 1
        if not end and len(data) > _LONGEST_LINE:
            end = _before_last_character(data)
        whole, self._rest = data[:end], data[end:]
        if whole.isascii():
            return whole.decode()
        return "".join(map(self._line, whole.splitlines(keepends=True)))

    def _line(self, line: bytes) -> str:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return line.decode("cp1252", "replace")
        self.is_mixed |= not line.isascii()
        return text


def _before_last_character(data: bytes) -> int:
    """Return where the last character of UTF-8 starts, which may be cut."""
    for end in range(len(data) - 1, len(data) - 4, -1):
        if data[end] & 0xC0 != 0x80:  # not a continuation
            return end
    return len(data)


def _decoder(name: str) -> TextDecoder:
    """Return a decoder by the name that the standard gives to a character set."""
    if name.startswith("utf-") or name == "gbk":  # gbk is decoded as its superset
        return codecs.getincrementaldecoder(name.replace("gbk", "gb18030"))("replace")
    return webencodings.lookup(name).codec_info.incrementaldecoder("replace")  # type: ignore[no-any-return]
