"""Conversations as JSON lines.

A line is a pair, {"prompt": .., "response": ..}, or {"messages": [{"role": .., "content": ..}]}.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmtrain_trainer.data.conversations import RESPONSE_ROLE, ROLES, Messages, dumps
from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.records import (
    SFT_COLUMNS,
    RowError,
    rows_of,
)
from llmtrain_trainer.data.text import apply_cleaning


def read_chat(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield the conversations of a file, named by their line numbers."""
    for number, row in rows_of(file, report, SFT_COLUMNS):
        try:
            if isinstance(row, RowError):
                raise row
            messages = _messages(row, file.source.cleaning)
        except ValueError as error:
            raise file.unreadable(f"line {number}: {error}") from error
        yield Document(f"{file.name}:{number}", dumps(messages))


def _messages(record: dict[str, Any], cleaning: str) -> Messages:
    """Return the cleaned turns of a record. Raises ValueError that says what is missing."""
    if "messages" in record:
        turns = record["messages"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError("messages is not a list of objects with role and content")
        found = [_turn(turn.get("role"), turn.get("content"), cleaning) for turn in turns]
    elif "prompt" in record:
        if "response" not in record:
            raise ValueError("the pair has no response")
        found = [
            _turn("user", record["prompt"], cleaning),
            _turn(RESPONSE_ROLE, record["response"], cleaning),
        ]
    else:
        raise ValueError("it has neither prompt and response nor messages")
    if not any(role == RESPONSE_ROLE for role, _ in found):
        raise ValueError(f"no message has the role {RESPONSE_ROLE}, so there is nothing to learn")
    return found


def _turn(role: Any, content: Any, cleaning: str) -> tuple[str, str]:
    if role not in ROLES:
        raise ValueError(f"the role {str(role)[:32]!r} is none of " + ", ".join(ROLES))
    if not isinstance(content, str) or not content.strip():
        raise ValueError(
            "a response is empty" if role == RESPONSE_ROLE else f"a {role} turn is empty"
        )
    return role, apply_cleaning(content, cleaning)
