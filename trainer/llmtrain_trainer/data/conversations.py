"""Conversations, the examples of supervised fine-tuning, and their serialized form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtrain_trainer.data.tool_use import ToolUse

ROLES = ("system", "user", "assistant", "tool")
RESPONSE_ROLE = "assistant"
"""The role whose messages are responses. Only their tokens are in the loss."""

Messages = list[tuple[str, str]]
"""(role, content) of every turn, in order."""


def dumps(messages: Messages) -> str:
    """Return a conversation as text, which the stages of the preparation pass on."""
    return json.dumps(messages, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a row."""

    role: str
    text: str
    counts: bool = True
    """Whether a response is in the loss: its weight is not 0."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Its other fields: see `ToolUse.fields`."""


def dumps_turns(turns: Sequence[Turn], tools: Sequence[Any] = ()) -> str:
    """Return turns as text like `dumps`, with a third item for responses that do not count.

    If there are tools or fields, the text is an object with the turns.
    """
    listed = [
        [turn.role, turn.text] if turn.counts else [turn.role, turn.text, 0] for turn in turns
    ]
    fields = {str(number): turn.fields for number, turn in enumerate(turns) if turn.fields}
    use = ToolUse.of(tools, fields)
    value = listed if use is None else {"turns": listed, "use": use.serialized}
    return json.dumps(value, ensure_ascii=False)


def _turns(text: str) -> list[list[Any]]:
    value = json.loads(text)
    return list(value["turns"] if isinstance(value, dict) else value)


def loads(text: str) -> Messages:
    """Return the messages of a text from `dumps` or `dumps_turns`."""
    return [(turn[0], turn[1]) for turn in _turns(text)]


def tool_use_of(text: str) -> ToolUse | None:
    """Return the tools and calls of a text from `dumps` or `dumps_turns`, if there are any."""
    value = json.loads(text)
    return ToolUse(value["use"]) if isinstance(value, dict) else None


def counted_turns(text: str) -> list[bool]:
    """Return for every message of a text whether it is a response in the loss."""
    return [turn[0] == RESPONSE_ROLE and len(turn) == 2 for turn in _turns(text)]


def prompt_of(text: str) -> str:
    """Return everything before the last response. Equal prompts are held out together."""
    messages = loads(text)
    last = max(place for place, (role, _) in enumerate(messages) if role == RESPONSE_ROLE)
    return dumps(messages[:last])


def contents(text: str) -> str:
    """Return the contents of a conversation, one message per line."""
    return "\n".join(content for _, content in loads(text))
