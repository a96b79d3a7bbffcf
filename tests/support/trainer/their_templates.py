"""Chat templates as `transformers` renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llmtrain_trainer.data.templates.renderer import DATE


def rendered(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str | None:
    """Return the text of a conversation, as `apply_chat_template`; None if the template fails."""
    from transformers.utils import chat_template_utils

    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Fixed:
            return cls(DATE.year, DATE.month, DATE.day)

    chat_template_utils.datetime = Fixed
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [list(messages)],
            tools=None if tools is None else list(tools),
            chat_template=source,
            **variables,
        )
    except Exception:  # whatever a template raises
        return None
    return str(texts[0])
