"""Real text as sources of data, each with the documents that an independent reader finds in it.

Programs and dialogues are those of the standard library: a dialogue is what its docstrings show of
an interactive session. The crawl is made of feeds and pages of the web.
"""

from __future__ import annotations

import ast
import doctest
import gzip
import html
import io
import json
import re
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow
import pyarrow.parquet
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

LIBRARY = Path(sysconfig.get_path("stdlib"))

CHARSETS = {
    "Big5": ("big5", "big5", "zh"),
    "GB2312": ("gbk", "gb2312", "zh"),
    "EUC-JP": ("euc_jp", "euc-jp", "ja"),
    "SHIFT_JIS": ("cp932", "shift_jis", "ja"),
    "EUC-KR": ("cp949", "euc-kr", "ko"),
    "KOI8-R": ("koi8_r", "koi8-r", "ru"),
    "windows-1251-russian": ("cp1251", "windows-1251", "ru"),
    "windows-1251-bulgarian": ("cp1251", "windows-1251", "bg"),
    "iso-8859-7-greek": ("iso8859_7", "iso-8859-7", "el"),
    "iso-8859-2-hungarian": ("iso8859_2", "iso-8859-2", "hu"),
    "windows-1255-hebrew": ("cp1255", "windows-1255", "he"),
    "iso-8859-9-turkish": ("cp1254", "iso-8859-9", "tr"),
    "TIS-620": ("cp874", "tis-620", "th"),
    "windows-1256-arabic": ("cp1256", "windows-1256", "ar"),
    "utf-8": ("utf-8", "utf-8", "und"),
}
"""Folder of texts -> Python's name of their character set, a label of it, their language."""

_SPACES = re.compile(r"[ \t\n\f\r]+")
_DECLARATION = re.compile(r"\s*<\?xml[^>]*\?>")
_C1 = re.compile("[\x7f-\x9f]")
_HIDDEN = re.compile(
    r"<!--.*?-->|<(script|style|title|noscript|nav|footer|svg|iframe)\b.*?</\1\s*>", re.S | re.I
)
_TAG = re.compile(r"<[/!?]?([a-zA-Z0-9:]*)[^>]*>")
_INLINE = (
    "a",
    "abbr",
    "b",
    "big",
    "em",
    "font",
    "i",
    "img",
    "input",
    "small",
    "span",
    "strong",
    "u",
)
_PARTS = ("title", "description", "summary", "encoded", "content")


Conversation = list[dict[str, str]]
"""Messages with role and content."""


@dataclass(frozen=True)
class WebText:
    """A response of a crawl and the text in it."""

    charset: str
    """Label in WHATWG's Encoding standard."""
    language: str
    content_type: str
    body: bytes
    text: str | None
    """None: no text that is read."""
    words: tuple[str, ...] = ()
    """Of a real page, whose white space depends on its layout."""


def programs(packages: Sequence[str]) -> dict[str, str]:
    """Return the programs of packages and modules of the standard library, by path."""
    found = {}
    for package in packages:
        place = LIBRARY / package
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            content = path.read_bytes()
            try:
                charset, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
                found[str(path.relative_to(LIBRARY))] = content.decode(charset)
            except (SyntaxError, UnicodeDecodeError):  # programs that test these errors
                continue
    return found


def write_parquet(path: Path, texts: Mapping[str, str]) -> None:
    """Write programs as tables of programs are: a path, the content and others."""
    table = pyarrow.table(
        {
            "path": list(texts),
            "size": [len(text) for text in texts.values()],
            "content": list(texts.values()),
            "license": ["psf-2.0"] * len(texts),
        }
    )
    pyarrow.parquet.write_table(table, path, row_group_size=64)


def sessions(texts: Mapping[str, str]) -> list[Conversation]:
    """Return the interactive sessions in docstrings: what is typed, and what is answered."""
    found = []
    for source in texts.values():
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                conversation = _session(ast.get_docstring(node, clean=False) or "")
                if conversation:
                    found.append(conversation)
    return found


def _session(text: str) -> Conversation:
    try:
        parts = doctest.DocTestParser().parse(text)
    except ValueError:
        return []
    conversation: Conversation = []
    typed = ""
    for part in parts:
        if isinstance(part, str):
            typed += part
        else:
            typed += part.source
            if part.want.strip():
                conversation += [{"role": "user", "content": typed}]
                conversation += [{"role": "assistant", "content": part.want}]
                typed = ""
    return conversation


def questions(texts: Mapping[str, bytes], per_folder: int) -> list[Conversation]:
    """Return articles of feeds in many languages, each as the answer to its title."""
    found = []
    for folder, (codec, _, _) in CHARSETS.items():
        mine = [body for name, body in texts.items() if name.startswith(f"{folder}/")]
        feeds = [_feed(body.decode(codec)) for body in mine if _is_strict(body, codec)]
        for title, *parts in [each for each in feeds if len(each) > 1][:per_folder]:
            answer = "\n\n".join(parts)[:600]
            asked = {"role": "user", "content": title}
            found.append([asked, {"role": "assistant", "content": answer}])
    return found


def rows(conversations: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
    """Yield conversations as rows of three layouts of data sets, in turn."""
    for number, conversation in enumerate(conversations):
        if number % 3 == 1:
            names = {"user": "human", "assistant": "gpt", "system": "system"}
            yield {
                "conversations": [
                    {"from": names[turn["role"]], "value": turn["content"]} for turn in conversation
                ]
            }
        elif number % 3 == 2:
            yield {"prompt": conversation[:-1], "completion": conversation[-1:]}
        else:
            yield {"id": number, "messages": conversation}


def write_jsonl(path: Path, found: Iterator[dict[str, Any]]) -> None:
    """Write rows, compressed."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        for row in found:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def crawl(texts: Mapping[str, bytes], per_folder: int) -> list[WebText]:
    """Return responses of a crawl with real text: feeds as pages, texts and XML, and pages.

    A third of the pages name their character set in the header, a third in a `<meta>`, and a third
    in the old form of it.
    """
    found = []
    for folder, (codec, label, language) in CHARSETS.items():
        mine = [(name, body) for name, body in texts.items() if name.startswith(f"{folder}/")]
        mine.sort(key=lambda each: (each[0].endswith(".html"), each[0]))
        chosen = [each for each in mine if _is_strict(each[1], codec)]
        for number, (name, body) in enumerate([*chosen[:per_folder], *chosen[per_folder:][-1:]]):
            text = body.decode(codec).removeprefix("\ufeff")
            lines = _feed(text) if name.endswith(".xml") else []
            if name.endswith(".html"):
                kind, words = f"text/html; charset={label}", _words(text)
                found.append(WebText(label, language, kind, body, " ".join(words), words))
            elif number % 5 == 4:
                found.append(WebText(label, language, "application/rss+xml", body, None))
            elif lines and number % 5:
                found.append(_page(lines, codec, label, language, number))
            else:
                kind = f"text/plain; charset={label}"
                found.append(WebText(label, language, kind, body, text))
    return found


def _words(page: str) -> tuple[str, ...]:
    """Return the words that a page shows, by patterns."""
    page = _HIDDEN.sub("", page)
    page = _TAG.sub(lambda tag: "" if tag[1].lower() in _INLINE else " ", page)
    return tuple(html.unescape(page).split())


def _is_strict(content: bytes, codec: str) -> bool:
    try:
        content.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def _feed(text: str) -> list[str]:
    """Return the texts of a feed; none if it is not well-formed."""
    try:
        root = ElementTree.fromstring(_DECLARATION.sub("", text.removeprefix("\ufeff"), count=1))
    except ElementTree.ParseError:
        return []
    texts = [
        _SPACES.sub(" ", element.text).strip(" ")
        for element in root.iter()
        if element.tag.rpartition("}")[2] in _PARTS and element.text
    ]
    return [] if any(map(_C1.search, texts)) else [each for each in texts if each]


def _page(lines: Sequence[str], codec: str, label: str, language: str, number: int) -> WebText:
    """Return a page with paragraphs. Characters that its character set lacks are references."""
    meta = {
        1: f'<meta charset="{label}">',
        2: f'<meta http-equiv=Content-Type content="text/html; charset={label}">',
    }.get(number % 3, "")
    kind = "text/html" if meta else f"text/html; charset={label}"
    title, *paragraphs = lines
    blocks = "\r\n".join(f"<p>\r\n  {html.escape(each)}\r\n</p>" for each in paragraphs)
    page = (
        f"<!DOCTYPE html><html><head>{meta}<title>not shown</title></head><body>"
        f"<h1>{html.escape(title)}</h1>{blocks}<script>no()</script></body></html>"
    )
    body = page.encode(codec, "xmlcharrefreplace")
    return WebText(label, language, kind, body, "\n\n".join(lines))


def write_warc(path: Path, responses: Sequence[WebText]) -> None:
    """Write a crawl: a record per response."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number, each in enumerate(responses):
            headers = StatusAndHeaders(
                "200 OK", [("Content-Type", each.content_type)], protocol="HTTP/1.1"
            )
            record = writer.create_warc_record(
                f"https://host.example/{number}",
                "response",
                payload=io.BytesIO(each.body),
                http_headers=headers,
            )
            writer.write_record(record)
