"""Chat templates: a conversation as text segments, each with the message it came from.

Templates are Jinja, as published with tokenizers, and run in Jinja's sandbox. User text is never
rendered: a template gets a mark in place of each content, and the result is split at the marks. So
text that spells a special token remains text, and it is known which text belongs to a response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmtrain_trainer.data.conversations import Messages
from llmtrain_trainer.errors import InputError

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

    @cached_property
    def _compiled(self) -> Any:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(self.source)
        except TemplateError as error:
            raise template_error(f"the template cannot be read: {error}") from error

    def special_tokens(self) -> list[str]:
        """Return the texts in the template that look like special tokens, in order."""
        named = [token for token in (self.bos_token, self.eos_token) if token]
        return list(dict.fromkeys([*_SPECIAL.findall(self.source), *named]))

    def segments(self, messages: Messages, end: str) -> Iterator[TextSegment]:
        """Yield the segments of a conversation in order. `end` is the token that ends documents."""
        turns = [
            {"role": role, "content": f"{_OPEN}{number}{_CLOSE}"}
            for number, (role, _) in enumerate(messages)
        ]
        try:
            text: str = self._compiled.render(
                messages=turns,
                bos_token=self.bos_token,
                eos_token=self.eos_token or end,
                add_generation_prompt=False,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise template_error(f"the template fails: {error}") from error
        for index, part in enumerate(_MARK.split(text)):
            if index % 2:
                yield TextSegment(messages[int(part)][1], int(part))
            elif part:
                yield TextSegment(part)


def preset_template(name: str) -> ChatTemplate:
    """Return a template by name."""
    return ChatTemplate(PRESETS[name])


def tokenizer_template(tokenizer: Path) -> ChatTemplate | None:
    """Return the template next to a tokenizer.json, or None.

    It is `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, as in published
    models. Of several templates, the one named `default` is used.
    """
    config: dict[str, Any] = {}
    beside, jinja = (
        tokenizer.with_name("tokenizer_config.json"),
        tokenizer.with_name("chat_template.jinja"),
    )
    if beside.is_file():
        try:
            config = dict(json.loads(beside.read_text()))
        except (ValueError, TypeError) as error:
            raise template_error(f"{beside} cannot be read: {error}") from error
    source = jinja.read_text() if jinja.is_file() else config.get("chat_template")
    if isinstance(source, list):
        named = {each.get("name"): each.get("template") for each in source}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, _token(config, "bos_token") or "", _token(config, "eos_token"))


def _token(config: dict[str, Any], name: str) -> str | None:
    value = config.get(name)
    if isinstance(value, dict):  # an added token, written as an object
        value = value.get("content")
    return value if isinstance(value, str) else None


def template_error(problem: str) -> InputError:
    """Return the error for a template that cannot be used."""
    return InputError(
        "InvalidSpec",
        problem[:500],
        field=FIELD,
        remedy="correct the template, or choose a preset: " + ", ".join(PRESETS),
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
