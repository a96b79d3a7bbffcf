"""Conversations, the examples of supervised fine-tuning, and their serialized form."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

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


def dumps_turns(turns: Iterable[Turn]) -> str:
    """Return turns as text like `dumps`, with a third item for responses that do not count."""
    return json.dumps(
        [[turn.role, turn.text] if turn.counts else [turn.role, turn.text, 0] for turn in turns],
        ensure_ascii=False,
    )


def loads(text: str) -> Messages:
    """Return the conversation of a text from `dumps` or `dumps_turns`."""
    return [(turn[0], turn[1]) for turn in json.loads(text)]


def counted_turns(text: str) -> list[bool]:
    """Return for every message of a text whether it is a response in the loss."""
    return [turn[0] == RESPONSE_ROLE and len(turn) == 2 for turn in json.loads(text)]


def prompt_of(text: str) -> str:
    """Return everything before the last response. Equal prompts are held out together."""
    messages = loads(text)
    last = max(place for place, (role, _) in enumerate(messages) if role == RESPONSE_ROLE)
    return dumps(messages[:last])


def contents(text: str) -> str:
    """Return the contents of a conversation, one message per line."""
    return "\n".join(content for _, content in loads(text))
