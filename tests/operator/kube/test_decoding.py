"""One object that no decoder can read does not make a list or a watch unreadable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtrain_core.api.untrusted import is_nested_deeper
from llmtrain_operator.kube.decoding import (
    MAX_DEPTH,
    read_event,
    read_object,
    read_page,
)

pytestmark = pytest.mark.unit

LEVELS = 10_000
"""What an API server stores."""


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + closing * levels


DEEP = {
    "lists": nested(LEVELS),
    "objects": nested(LEVELS - 1, b'{"f:a":', b"}").replace(b":}", b":{}}"),
    "beside strings": b'["]]]", "\\"[[", ' + nested(LEVELS) + b', "}"]',
}


def metadata(name: str, **more: bytes) -> bytes:
    fields = {b"name": name, b"uid": f"uid-{name}", b"resourceVersion": "7"}
    parts = [b'"%s":%s' % (key, json.dumps(value).encode()) for key, value in fields.items()]
    parts += [b'"%s":%s' % (key.encode(), value) for key, value in more.items()]
    return b'"metadata":{' + b",".join(sorted(parts)) + b"}"


def event(item: bytes, kind: bytes = b"ADDED") -> bytes:
    return b'{"type":"' + kind + b'","object":' + item + b"}"


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
def test_deep_managed_fields_are_left_out_and_nothing_else(deep: bytes) -> None:
    managed = b'[{"fieldsV1":' + deep + b',"manager":"x"}]'
    annotations = b'{"a\\"managedFields\\":[":"b","managedFields":"c"}'
    whole = metadata("a", managedFields=managed, annotations=annotations)
    kind, item = read_event(event(b"{" + whole + b',"spec":{"a":[1,{"b":2}]}}'))
    assert (kind, item.damage) == ("ADDED", "")
    assert item.object == {
        "metadata": {
            "annotations": {'a"managedFields":[': "b", "managedFields": "c"},
            "managedFields": None,
            "name": "a",
            "resourceVersion": "7",
            "uid": "uid-a",
        },
        "spec": {"a": [1, {"b": 2}]},
    }


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
def test_an_object_that_is_nested_elsewhere_is_damaged(deep: bytes) -> None:
    item = b"{" + metadata("a") + b',"spec":{"deep":' + deep + b',"after":1}}'
    _, found = read_event(event(item))
    assert "nested" in found.damage
    assert found.object["metadata"]["uid"] == "uid-a"
    assert found.object["spec"]["after"] == 1
    assert not is_nested_deeper(found.object, MAX_DEPTH)


@pytest.mark.parametrize("value", [b'"\\ud800"', b"1e999999"])
def test_values_that_json_allows_and_no_program_can_read_are_left_out(value: bytes) -> None:
    whole = metadata("a", managedFields=b"[" + value + b"]")
    assert read_event(event(b"{" + whole + b"}"))[1].damage == ""
    item = b"{" + metadata("a") + b',"spec":{"list":[' + value + b"]}}"
    _, found = read_event(event(item))
    assert found.damage.startswith("invalid JSON")
    assert found.object["metadata"]["uid"] == "uid-a"


def test_a_page_has_all_items_but_the_parts_that_cannot_be_read() -> None:
    bad = {
        "deep": b"{" + metadata("deep") + b',"spec":' + nested(LEVELS) + b"}",
        "managed": b"{" + metadata("managed", managedFields=nested(LEVELS)) + b"}",
        "invalid": b'{"metadata":{"uid":nothing}}',
    }
    good = b"{" + metadata("good") + b',"spec":{"items":[{"items":[]}]}}'
    items = [good, *bad.values(), good]
    data = (
        b'{"kind":"List","metadata":{"continue":"next","resourceVersion":"9"},"items":['
        + b",".join(items)
        + b'],"more":{}}'
    )
    page = read_page(data)
    assert (page.version, page.continue_) == (9, "next")
    names = [item.object.get("metadata", {}).get("name") for item in page.items]
    assert names == ["good", "deep", "managed", None, "good"]
    assert [bool(item.damage) for item in page.items] == [False, True, False, True, False]
    assert page.items[0].object["spec"] == {"items": [{"items": []}]}


def test_a_page_that_is_whole_is_read_at_once() -> None:
    page = read_page(b'{"metadata":{"resourceVersion":"3"},"items":[{"metadata":{}}]}')
    assert [item.damage for item in page.items] == [""]
    assert read_page(b'{"metadata":{"resourceVersion":"3"},"items":null}').items == []


def test_a_response_is_read_without_what_is_too_deep() -> None:
    data = b"{" + metadata("a", managedFields=nested(LEVELS)) + b"}"
    assert read_object(data)["metadata"]["resourceVersion"] == "7"


@pytest.mark.parametrize("data", [b"", b"{", b"[[[", b'{"a', b"no"])
def test_what_is_no_json_is_an_error(data: bytes) -> None:
    for read in (read_object, read_event, read_page):
        with pytest.raises(ValueError):
            read(data)


def test_the_scan_takes_linear_time() -> None:
    """The work for the largest object that a user can store is far below a second."""
    deep = b"[" + nested(2000) + b"," + nested(700_000) + b"]"
    _, item = read_event(event(b"{" + metadata("a", managedFields=deep) + b"}"))
    assert item.damage == ""


@pytest.mark.parametrize(
    ("value", "levels"), [({}, 0), ([], 0), ({"a": 1}, 0), ({"a": [[]]}, 2), ([{"a": {}}, []], 2)]
)
def test_levels_are_counted(value: Any, levels: int) -> None:
    assert not is_nested_deeper(value, levels)
    assert levels == 0 or is_nested_deeper(value, levels - 1)
