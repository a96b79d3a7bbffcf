"""What a conversation has besides the texts of its messages: tools, and calls of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Descriptions of tools, and the fields of messages that say which are called.

    It is kept as JSON, so that it can be compared and hashed.
    """

    serialized: str

    @classmethod
    def of(cls, tools: Sequence[Any], fields: Mapping[Any, Any]) -> ToolUse | None:
        """Return the tools and the fields of messages by number, or None if there are neither."""
        if not tools and not fields:
            return None
        return cls(json.dumps({"tools": tools, "fields": fields}, ensure_ascii=False))

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The descriptions of the tools, as JSON schemas."""
        return list(json.loads(self.serialized)["tools"])

    @property
    def fields(self) -> dict[int, dict[str, Any]]:
        """Number of a message -> its fields besides role and text, such as `tool_calls`.

        A message without text that has fields has a `content` only if it is one of them.
        """
        found = json.loads(self.serialized)["fields"]
        return {int(number): fields for number, fields in found.items()}


def calls_of(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the functions that a message calls, each with a name and arguments."""
    for call in fields.get("tool_calls", ()):
        yield function_of(call)


def function_of(value: dict[str, Any]) -> dict[str, Any]:
    """Return the function of a tool or a call. It may be the tool or the call itself."""
    function: dict[str, Any] = value.get("function", value)
    return function


def argument_forms(use: ToolUse) -> list[ToolUse]:
    """Return the forms of the arguments of calls for templates, the first one preferred.

    Templates expect objects, and some of them JSON. Data sets have objects, or JSON as in APIs.
    """
    fields = use.fields
    changed = False
    for each in fields.values():
        for function in calls_of(each):
            arguments = function.get("arguments")
            parsed = _object(arguments) if isinstance(arguments, str) else None
            if parsed is not None:
                function["arguments"], changed = parsed, True
    objects = ToolUse.of(use.tools, fields)
    return [objects, use] if changed and objects is not None else [use]


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def without_calls(use: ToolUse, message: int) -> ToolUse | None:
    """Return tools and calls without those of one message."""
    fields = {number: each for number, each in use.fields.items() if number != message}
    return ToolUse.of(use.tools, fields)


def with_marked_names(use: ToolUse) -> tuple[ToolUse, list[tuple[str, str]]]:
    """Return tools and calls with other names, and each of these names with what it names."""
    tools, fields = deepcopy(use.tools), use.fields
    functions = [("the description of a tool", function_of(tool)) for tool in tools]
    for each in fields.values():
        functions += [("the call of a tool", function) for function in calls_of(each)]
    names = []
    for number, (kind, function) in enumerate(functions):
        function["name"] = f"zq{number}qz"  # no text has such a word
        names.append((kind, function["name"]))
    renamed = ToolUse.of(tools, fields)
    return use if renamed is None else renamed, names
