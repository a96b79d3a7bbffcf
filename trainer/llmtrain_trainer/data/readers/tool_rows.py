"""Tools in rows of conversations, and calls of them, as `transformers` passes them to templates.

- `tools` of a row: JSON schemas, `{"type": "function", "function": {"name": ..}}`.
- `tool_calls` of a response: `{"type": "function", "function": {"name": .., "arguments": ..}}`.
- `name` and `tool_call_id` of the answer of a tool.

Columns of CSV and Parquet may have any of them as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmtrain_trainer.data.conversations import RESPONSE_ROLE
from llmtrain_trainer.data.readers.records import RowError

_OF_ANSWERS = ("name", "tool_call_id")


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the descriptions of the tools of a row. Raises RowError if they cannot be used."""
    tools = _objects(row.get("tools"), "tools", "tools")
    for tool in tools:
        _require_name(tool, "tools", "a tool")
    return tools


def fields_of(role: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a message for templates: see `Turn.fields`. Raises RowError."""
    calls = _objects(message.get("tool_calls"), "tool calls", "tool_calls")
    for call in calls:
        _require_name(call, "tool calls", "a call")
    if (calls and role != RESPONSE_ROLE) or message.get("function_call"):
        found = "tool calls" if calls else "a function call, an old form of tool calls"
        raise RowError("tool calls", f"a turn of the {role} has {found}")
    if role == "tool":
        return {name: message[name] for name in _OF_ANSWERS if isinstance(message.get(name), str)}
    return {"tool_calls": calls} if calls else {}


def without_nulls(value: Any) -> Any:
    """Return a value of Parquet without fields that are null.

    A column has all fields of all its rows, so null says that the row does not have the field.
    Every message has a content, which may be null.
    """
    if isinstance(value, dict):
        return {
            name: without_nulls(each)
            for name, each in value.items()
            if each is not None or name == "content"
        }
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _objects(value: Any, kind: str, field: str) -> list[dict[str, Any]]:
    """Return a list of objects, or of their JSON. Empty if there are none."""
    found = _parsed(value, kind, field) if isinstance(value, str) and value.strip() else value
    if not found:
        return []
    if not isinstance(found, list):
        raise RowError(kind, f"{field} is not a list")
    objects = [_parsed(each, kind, field) if isinstance(each, str) else each for each in found]
    if not all(isinstance(each, dict) for each in objects):
        raise RowError(kind, f"{field} is not a list of objects")
    try:
        json.dumps(objects, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError, TypeError) as error:  # halves of surrogate pairs
        raise RowError(kind, f"{field} cannot be written as JSON: {str(error)[:200]}") from error
    return objects


def _parsed(value: str, kind: str, field: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(kind, f"{field} is not JSON: {error}") from error


def _require_name(value: Mapping[str, Any], kind: str, what: str) -> None:
    function = value.get("function", value)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(kind, f"{what} has no function with a name")
