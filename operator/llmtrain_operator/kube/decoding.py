"""Decode JSON of the API server, one object at a time.

All tenants share the loops that read it, so what one tenant stores must not make a whole list or
watch unreadable. The API server stores JSON that is nested 10,000 levels deep, and no decoder that
recurses reads that. Values that are nested too deeply are cut out before the rest is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from llmtrain_operator.kube.api import Item, ListPage

MAX_DEPTH = 100
"""Levels of a response that are kept when it cannot be decoded as a whole."""
_EVENT_METADATA_DEPTH = 3
"""Depth of the scalars of `object.metadata` in an event of a watch."""
_ITEM_METADATA_DEPTH = 2
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_OPENING, _CLOSING, _QUOTE = b"[{", b"]}", ord('"')
_MANAGED_FIELDS = re.compile(rb'"managedFields"\s*:\s*\Z')
_ITEMS = re.compile(rb'"items"\s*:\s*\Z')
_KEY_BYTES = 40
"""Bytes before a bracket in which its key is searched."""


def read_object(data: bytes) -> Any:
    """Decode a response, without values that are nested too deeply."""
    return _read(data, _ITEM_METADATA_DEPTH)[0]


def read_event(line: bytes) -> tuple[str, Item]:
    """Decode an event of a watch: its type and its object. Raise ValueError if it has none."""
    event, damage = _read(line, _EVENT_METADATA_DEPTH)
    return str(event["type"]), Item(event["object"], damage)


def read_page(data: bytes) -> ListPage:
    """Decode a page of a list."""
    try:
        page = orjson.loads(data)
        items = [Item(item) for item in page.get("items") or ()]
    except orjson.JSONDecodeError:
        start, end, parts = _split_items(data)
        page = orjson.loads(data[:start] + b"null" + data[end:])
        items = [_read_item(part) for part in parts]
    metadata = page["metadata"]
    return ListPage(items, int(metadata["resourceVersion"]), metadata.get("continue") or "")


def _read_item(data: bytes) -> Item:
    try:
        return Item(*_read(data, _ITEM_METADATA_DEPTH))
    except ValueError as error:
        return Item({}, f"invalid JSON: {error}")


def _read(data: bytes, metadata_depth: int) -> tuple[Any, str]:
    """Decode JSON. Return it with the reason why something is missing, or an empty one.

    Managed fields are cut out without a reason: no caller uses them.
    """
    try:
        return orjson.loads(data), ""
    except orjson.JSONDecodeError:
        pass
    rest, where = _cut(data, MAX_DEPTH)
    try:
        return orjson.loads(rest), f"nested more than {MAX_DEPTH} levels" if where else ""
    except orjson.JSONDecodeError as error:
        rest, _ = _cut(data, metadata_depth)
        return orjson.loads(rest), f"invalid JSON: {error}"


def _brackets(data: bytes) -> Iterator[tuple[int, bool]]:
    """Yield the offset of each bracket outside of strings, and whether it opens."""
    for token in _TOKEN.finditer(data):
        offset = token.start()
        byte = data[offset]
        if byte != _QUOTE:
            yield offset, byte in _OPENING


def _cut(data: bytes, deepest: int) -> tuple[bytes, bool]:
    """Replace values below `deepest` levels, and managed fields, by null.

    Return the rest, and whether it lacks a value other than managed fields. The scan takes linear
    time and does not recurse.
    """
    kept: list[bytes] = []
    begin = depth = cut_depth = 0
    is_damaged = False
    for offset, opens in _brackets(data):
        if opens:
            depth += 1
            if cut_depth:
                continue
            managed = _MANAGED_FIELDS.search(data, max(begin, offset - _KEY_BYTES), offset)
            if depth > deepest or managed:
                cut_depth = depth
                is_damaged = is_damaged or not managed
                kept += [data[begin:offset], b"null"]
        else:
            if depth == cut_depth:
                cut_depth, begin = 0, offset + 1
            depth -= 1
    kept.append(data[begin:])
    return b"".join(kept), is_damaged


def _split_items(data: bytes) -> tuple[int, int, list[bytes]]:
    """Return the bounds of the list of items in a page, and the bytes of each item."""
    parts: list[bytes] = []
    depth = start = begin = 0
    end = -1
    for offset, opens in _brackets(data):
        if opens:
            depth += 1
            if depth == 2 and _ITEMS.search(data, max(0, offset - _KEY_BYTES), offset):
                start, end = offset, 0
            elif depth == 3 and start and not end:
                begin = offset
        else:
            if depth == 3 and start and not end:
                parts.append(data[begin : offset + 1])
            elif depth == 2 and start and not end:
                end = offset + 1
            depth -= 1
    if end < 1:
        raise ValueError("the page has no list of items")
    return start, end, parts
