"""Conversations in the layouts of common data sets, as turns.

- `messages`: objects with role and content; the chat format of most APIs.
- `conversations`: objects with from and value (ShareGPT), or with role and content.
- `prompt` with `response` or `completion`: texts, or lists of messages.
- `instruction` and `output`, with or without `input` (Alpaca).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llmtrain_trainer.data.conversations import RESPONSE_ROLE, ROLES, Turn
from llmtrain_trainer.data.readers.records import RowError
from llmtrain_trainer.data.readers.tool_rows import fields_of

_OTHER_NAMES = {
    **dict.fromkeys(("human", "question"), "user"),
    **dict.fromkeys(("gpt", "bot", "chatgpt", "model", "answer"), RESPONSE_ROLE),
    **dict.fromkeys(("function", "observation", "ipython"), "tool"),
    "developer": "system",
}
"""Names of roles in data sets -> ours."""
_LONGEST_NAME = 32


def turns_of(row: dict[str, Any]) -> list[Turn]:
    """Return the turns of a row. Raises RowError that says what is missing, or cannot be used."""
    turns = [turn for turn in _turns(row) if turn is not None]
    responses = [turn for turn in turns if turn.role == RESPONSE_ROLE]
    if not responses:
        raise RowError(
            "no response", f"no message has the role {RESPONSE_ROLE}, so there is nothing to learn"
        )
    if not any(turn.counts for turn in responses):
        raise RowError("no response", "all responses have the weight 0, so nothing is learnt")
    return turns


def _turns(row: dict[str, Any]) -> Iterator[Turn | None]:
    for field in ("messages", "conversations"):
        if row.get(field) is not None:
            if field == "conversations" and row.get("system"):
                yield _turn({"role": "system", "content": row["system"]})
            yield from map(_turn, _messages(row[field], field))
            return
    if row.get("prompt") is not None:
        yield from _side(row["prompt"], "user", "prompt")
        field = "completion" if row.get("response") is None else "response"
        if row.get(field) is None:
            raise RowError("no response", "the pair has no response")
        yield from _side(row[field], RESPONSE_ROLE, field)
    elif row.get("instruction") is not None:
        if row.get("system"):
            yield _turn({"role": "system", "content": row["system"]})
        parts = [row["instruction"], row.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise RowError("content", "the instruction or its input is not a text")
        yield _turn({"role": "user", "content": "\n\n".join(filter(None, parts))})
        if row.get("output") is None:
            raise RowError("no response", "the instruction has no output")
        yield _turn({"role": RESPONSE_ROLE, "content": row["output"]})
    else:
        raise RowError(
            "fields",
            "it has neither prompt and response nor messages, conversations or instruction",
        )


def _side(value: Any, role: str, field: str) -> Iterator[Turn | None]:
    """Yield the turns of one side of a pair: a text or a list of messages."""
    if isinstance(value, str):
        yield _turn({"role": role, "content": value})
    else:
        yield from map(_turn, _messages(value, field))


def _messages(value: Any, field: str) -> list[dict[str, Any]]:
    if isinstance(value, str):  # a column of CSV or Parquet
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError("json", f"{field} is not JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise RowError("fields", f"{field} is not a list of objects with role and content")
    return value


def _turn(message: dict[str, Any]) -> Turn | None:
    """Return a message as a turn; None for a system turn without text, which says nothing."""
    named = message.get("role") if message.get("role") is not None else message.get("from")
    role = _OTHER_NAMES.get(named, named) if isinstance(named, str) else named
    if role not in ROLES:
        shown = repr(str(named)[:_LONGEST_NAME])
        raise RowError("role", f"the role {shown} is none of {', '.join(ROLES)}")
    fields = fields_of(role, message)
    content = message.get("content", message.get("value"))
    calls = "tool_calls" in fields
    text = "" if calls and content is None else _text(role, content)
    if calls and not text.strip():
        given = {"content": content if content is None else text} if "content" in message else {}
        return Turn(role, "", _weight(message.get("weight")), {**given, **fields})
    if not text.strip():
        if role == "system":
            return None
        if role == RESPONSE_ROLE:
            raise RowError("empty", "a response is empty")
        raise RowError("empty", f"a {role} turn is empty")
    return Turn(role, text, _weight(message.get("weight")), fields)


def _text(role: str, content: Any) -> str:
    if content is None:
        raise RowError("null", f"the content of {_a(role)} turn is null")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError("content", f"the content of {_a(role)} turn is not a text")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in ("text", "input_text", "output_text", "str") or not isinstance(text, str):
            shown = repr(str(kind)[:_LONGEST_NAME])
            raise RowError("content", f"{_a(role)} turn has a part of the type {shown}, not text")
        parts.append(text)
    return "".join(parts)


def _a(role: str) -> str:
    return f"an {role}" if role == RESPONSE_ROLE else f"a {role}"


def _weight(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise RowError("weight", f"the weight {str(value)[:_LONGEST_NAME]} is neither 0 nor 1")
