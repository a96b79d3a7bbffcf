"""Conversations: what supervised fine-tuning learns from, and the text they travel as."""

from __future__ import annotations

import json

ROLES = ("system", "user", "assistant")
RESPONSE_ROLE = "assistant"
"""The role whose messages are responses: what the loss counts."""

Messages = list[tuple[str, str]]
"""(role, content) of every turn, in order."""


def dumps(messages: Messages) -> str:
    """Return a conversation as the text that the stages of the preparation hand on."""
    return json.dumps(messages, ensure_ascii=False)


def loads(text: str) -> Messages:
    """Return the conversation behind a text of `dumps`."""
    return [(role, content) for role, content in json.loads(text)]


def prompt_of(text: str) -> str:
    """Return what comes before the last response: equal questions are held out together."""
    messages = loads(text)
    last = max(place for place, (role, _) in enumerate(messages) if role == RESPONSE_ROLE)
    return dumps(messages[:last])


def contents(text: str) -> str:
    """Return all that is said in a conversation, a message a line."""
    return "\n".join(content for _, content in loads(text))
