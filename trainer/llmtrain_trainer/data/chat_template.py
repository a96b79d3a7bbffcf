"""Chat templates: a conversation as text segments, each with the message it came from.

Templates are Jinja, as published with tokenizers, and run in Jinja's sandbox in a process with
limits. User text is never rendered: a template gets a mark in place of each content, and the result
is split at the marks. So text that spells a special token remains text, and it is known which text
belongs to a response.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmtrain_trainer.data.conversations import Messages
from llmtrain_trainer.data.template_renderer import TemplateFailureError, TemplateRenderer
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError, read_file

FIELD = "spec.data.chat"

PRESETS = {
    "plain": "{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}",
    "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}",
    "llama3": "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}",
}
"""The published formats of ChatML and Llama 3."""

MAX_BYTES = 16 << 20
"""Length of a template, or of the configuration of a tokenizer."""

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>")


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A segment of text: of the template, or of message number `message`."""

    text: str
    message: int | None = None


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the tokens that it can use as variables."""

    source: str
    bos_token: str = ""
    eos_token: str | None = None
    """None: the token that ends documents."""
    origin: str = field(default=FIELD, compare=False)
    """Its file, or its field in the job: for errors."""

    def special_tokens(self) -> list[str]:
        """Return the texts in the template that look like special tokens, in order."""
        named = [token for token in (self.bos_token, self.eos_token) if token]
        return list(dict.fromkeys([*_SPECIAL.findall(self.source), *named]))

    def segments(self, messages: Messages, end: str) -> Iterator[TextSegment]:
        """Yield the segments of a conversation in order. `end` is the token that ends documents."""
        text = _render(self, end, tuple(role for role, _ in messages))
        for index, part in enumerate(_MARK.split(text)):
            if index % 2:
                number = int(part[:9])
                if number >= len(messages):
                    raise template_error("the template writes a mark of its own", self.origin)
                yield TextSegment(messages[number][1], number)
            elif part:
                yield TextSegment(part)


@lru_cache(maxsize=256)
def _render(template: ChatTemplate, end: str, roles: tuple[str, ...]) -> str:
    """Return the text of a conversation with marks in place of its contents.

    It depends on the roles only, so most conversations share it with others.
    """
    turns = [
        {"role": role, "content": f"{_OPEN}{number}{_CLOSE}"} for number, role in enumerate(roles)
    ]
    try:
        return _renderer(template.source, os.getpid()).render(
            {
                "messages": turns,
                "bos_token": template.bos_token,
                "eos_token": template.eos_token or end,
                "add_generation_prompt": False,
            }
        )
    except TemplateFailureError as error:
        raise template_error(str(error), template.origin) from error


@lru_cache(maxsize=8)
def _renderer(source: str, process: int) -> TemplateRenderer:
    """Return the renderer of a template. Each process has its own: a forked one needs another."""
    return TemplateRenderer(source)


def preset_template(name: str) -> ChatTemplate:
    """Return a template by name."""
    return ChatTemplate(PRESETS[name])


def tokenizer_template(tokenizer: Path) -> ChatTemplate | None:
    """Return the template next to a tokenizer.json, or None.

    It is `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, as in published
    models. Of several templates, the one named `default` is used.
    """
    beside, jinja = (
        tokenizer.with_name("tokenizer_config.json"),
        tokenizer.with_name("chat_template.jinja"),
    )
    config = _read_config(beside) if beside.exists() else {}
    origin = str(jinja if jinja.exists() else beside)
    source = _read(jinja) if jinja.exists() else config.get("chat_template")
    if isinstance(source, list):
        named = {each.get("name"): each.get("template") for each in source if _is_named(each)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    bos, eos = _token(config, "bos_token") or "", _token(config, "eos_token")
    return ChatTemplate(source, bos, eos, origin)


def _is_named(template: Any) -> bool:
    return isinstance(template, dict) and isinstance(template.get("name"), str)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_read(path)))
    except (ValueError, TypeError, RecursionError) as error:
        raise template_error(f"it cannot be read: {error}", str(path)) from error


def _read(path: Path) -> str:
    try:
        return read_file(path, MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError, DamagedFileError) as error:
        raise template_error(f"it cannot be read: {error}", str(path)) from error


def _token(config: dict[str, Any], name: str) -> str | None:
    value = config.get(name)
    if isinstance(value, dict):  # an added token, written as an object
        value = value.get("content")
    return value if isinstance(value, str) else None


def template_error(problem: str, origin: str = FIELD) -> InputError:
    """Return the error for a template that cannot be used. `origin` is its file or its field."""
    return InputError(
        "InvalidSpec",
        f"{origin}: {problem[:500]}",
        field=FIELD,
        remedy="correct the template, or choose a preset: " + ", ".join(PRESETS),
    )
