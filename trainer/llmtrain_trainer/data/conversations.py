"""Conversations, the examples of supervised fine-tuning, and their serialized form."""

from __future__ import annotations

import json

ROLES = ("system", "user", "assistant")
RESPONSE_ROLE = "assistant"
"""The role whose messages are responses. Only their tokens are in the loss."""

Messages = list[tuple[str, str]]
"""(role, content) of every turn, in order."""


def dumps(messages: Messages) -> str:
    """Return a conversation as text, which the stages of the preparation pass on."""
    return json.dumps(messages, ensure_ascii=False)


def loads(text: str) -> Messages:
    """Return the conversation of a text from `dumps`."""
    return [(role, content) for role, content in json.loads(text)]


def prompt_of(text: str) -> str:
    """Return everything before the last response. Equal prompts are held out together."""
    messages = loads(text)
    last = max(place for place, (role, _) in enumerate(messages) if role == RESPONSE_ROLE)
    return dumps(messages[:last])


def contents(text: str) -> str:
    """Return the contents of a conversation, one message per line."""
    return "\n".join(content for _, content in loads(text))
