"""Text and JSON from untrusted sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.api.untrusted import (
    MAX_JSON_DEPTH,
    printable,
    printable_entry,
    printable_page,
    read_json,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("text", ["", "nothing", b"\xff", '{"a": 1' + "0" * 5000 + "}", "[1"])
def test_no_json_is_none(text: str | bytes) -> None:
    assert read_json(text) is None


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_the_depth_of_json_is_limited(opening: str, closing: str) -> None:
    def nested(depth: int) -> str:
        return opening * depth + "1" + closing * depth

    assert read_json(nested(MAX_JSON_DEPTH)) is not None
    assert read_json(nested(MAX_JSON_DEPTH + 1)) is None
    assert read_json(nested(100_000)) is None
    assert read_json(opening * 100_000) is None


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)


@given(st.text())
def test_only_the_first_line_of_a_log_entry_starts_at_the_margin(text: str) -> None:
    first, *rest = printable_entry(text).split("\n")
    assert first.isprintable()
    assert all(line.startswith("  ") and line.isprintable() for line in rest)


@given(st.text())
def test_a_page_keeps_line_breaks_and_tabs_only(text: str) -> None:
    page = printable_page(text)
    assert "".join(page.replace("\t", "\n").split("\n")).isprintable()
    assert [c for c in page if c in "\n\t"] == [c for c in text if c in "\n\t"]
