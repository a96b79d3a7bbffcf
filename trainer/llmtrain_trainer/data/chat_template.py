"""Chat templates: a conversation as text segments, each with the message it came from.

Templates are Jinja, as published with tokenizers, and run in Jinja's sandbox in a process with
limits. A conversation is rendered twice: as it is, and with a mark in place of each content. The
first has the text that the model gets, and the second shows which parts of it are contents. So text
that spells a special token remains text, and it is known which text belongs to a response.

Tools and calls of them have no marks. They are rendered once more with other names, which shows
whether the template writes them at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from llmtrain_trainer.data.conversations import Messages
from llmtrain_trainer.data.templates.parts import ConversationShape, Part, form_of, parts_of
from llmtrain_trainer.data.templates.renderer import TemplateFailureError, TemplateRenderer
from llmtrain_trainer.data.tokenizer_settings import TokenizerSettings
from llmtrain_trainer.data.tool_use import (
    ToolUse,
    argument_forms,
    with_marked_names,
    without_calls,
)
from llmtrain_trainer.errors import InputError

FIELD = "spec.data.chat"

PRESETS = {
    "plain": "{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}",
    "chatml": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
}
"""The published formats of ChatML and Llama 3."""

_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>")

MAX_TRIES = 10_000
"""Comparisons of the text of one conversation with its parts, besides one for each part."""


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A segment of text: of the template, or of the content of message number `message`."""

    text: str
    message: int | None = None
    response: int | None = None
    """Number of the response that the text is part of: the model writes it."""
    ends_turn: bool = False
    """The response has the end of its turn, too."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the tokens that it can use as variables."""

    source: str
    bos_token: str = ""
    eos_token: str | None = None
    """None: the token that ends documents."""
    origin: str = field(default=FIELD, compare=False)
    """Its file, or its field in the job: for errors and for the status."""
    variables: tuple[tuple[str, str], ...] = ()
    """Other special tokens, by name."""
    of_model: bool = field(default=False, compare=False)
    """It came with the tokenizer, whose special tokens are those that the model knows."""

    def special_tokens(self) -> list[str]:
        """Return the texts in the template that look like special tokens, in order."""
        named = [token for token in (self.bos_token, self.eos_token) if token]
        return list(dict.fromkeys([*_SPECIAL.findall(self.source), *named]))

    def segments(
        self, messages: Messages, end: str, prompt: bool = False, use: ToolUse | None = None
    ) -> list[TextSegment]:
        """Return the segments of a conversation in order. `end` is the token that ends documents.

        With `prompt`, the text ends where a response begins. It is that of `transformers`. Raises
        InputError if a content is in it neither whole nor trimmed: it would not be known which part
        of the text is a response. The same holds for tools and calls that the template leaves out.
        """
        forms = [use] if use is None else argument_forms(use)
        for form in forms[:-1]:
            with suppress(InputError):  # it may need the other form
                return self._segments(messages, end, prompt, form)
        return self._segments(messages, end, prompt, forms[-1])

    def _segments(
        self, messages: Messages, end: str, prompt: bool, use: ToolUse | None
    ) -> list[TextSegment]:
        with_fields = () if use is None else use.fields
        pieces: list[str] = []
        shape = []
        for number, (role, content) in enumerate(messages):
            has_text = bool(content) or number not in with_fields
            varying, form = form_of(role, content) if has_text else ([], ())
            pieces += varying
            shape.append((role, form))
        parts = _parts(self, end, tuple(shape), prompt, use)
        options = [
            [part.text]
            if part.piece is None
            else _variants(pieces[part.piece], shape[part.message or 0][0])
            for part in parts
        ]
        found = align(options, _render(self, end, messages, prompt, use))
        if found is None:
            problem = (
                "the template computes with the contents of messages, so it is not known which part"
                " of its text is a response"
            )
            raise template_error(problem, self.origin)
        if use is not None:
            renamed, names = with_marked_names(use)
            text = _render(self, end, messages, prompt, renamed)
            for what, name in names:
                if name not in text:
                    raise template_error(f"the template leaves out {what}", self.origin)
        return [
            TextSegment(text, part.message, part.response, part.ends_turn)
            for text, part in zip(found, parts, strict=True)
            if text or part.piece is not None
        ]


def align(options: Sequence[Sequence[str]], text: str) -> list[str] | None:
    """Return one option of every part, such that they join to `text`; None if there are none.

    The first combination in the order of the options is taken.
    """
    chosen: list[int] = []  # the option of each part
    places = [0]
    choice = tries = 0
    while len(chosen) < len(options) or places[-1] != len(text):
        tries += 1
        if tries > MAX_TRIES + len(options):
            return None
        step = None
        if len(chosen) < len(options):
            texts, place = options[len(chosen)], places[-1]
            step = next(
                (k for k in range(choice, len(texts)) if text.startswith(texts[k], place)), None
            )
        if step is None:
            if not chosen:
                return None
            places.pop()
            choice = chosen.pop() + 1
            continue
        places.append(places[-1] + len(options[len(chosen)][step]))
        chosen.append(step)
        choice = 0
    return [texts[step] for texts, step in zip(options, chosen, strict=True)]


def _variants(content: str, role: str) -> list[str]:
    """Return what templates make of a content, the longest first. Answers of tools may be JSON."""
    trimmed = (
        trim(content, characters)
        for characters in (None, "\n")
        for trim in (str.rstrip, str.lstrip, str.strip)
    )
    found = {content, *trimmed}
    if role == "tool":
        found.add(json.dumps(content, ensure_ascii=False)[1:-1])
    return sorted(found, key=lambda text: (-len(text), text))


@lru_cache(maxsize=256)
def _parts(
    template: ChatTemplate, end: str, shape: ConversationShape, prompt: bool, use: ToolUse | None
) -> list[Part]:
    """Return the parts of a conversation with marks in place of its contents.

    They depend on its shape only, so most conversations without tools share them with others.
    """

    def render(messages: Messages, prompt: bool, plain: int | None = None) -> str:
        given = use if use is None or plain is None else without_calls(use, plain)
        return _rendered(template, end, messages, prompt, given)

    fields = {} if use is None or prompt else use.fields
    calling = [number for number, each in fields.items() if "tool_calls" in each]
    prompts = "add_generation_prompt" in template.source
    try:
        return parts_of(render, shape, prompt, prompts, calling)
    except TemplateFailureError as error:
        raise template_error(str(error), template.origin) from error


def _render(
    template: ChatTemplate, end: str, messages: Messages, prompt: bool, use: ToolUse | None
) -> str:
    try:
        return _rendered(template, end, messages, prompt, use)
    except TemplateFailureError as error:
        raise template_error(str(error), template.origin) from error


def _rendered(
    template: ChatTemplate, end: str, messages: Messages, prompt: bool, use: ToolUse | None
) -> str:
    """Return the text of a conversation. Raises TemplateFailureError."""
    fields = {} if use is None else use.fields
    variables = {
        **dict(template.variables),
        "messages": [
            _message(role, content, fields.get(number))
            for number, (role, content) in enumerate(messages)
        ],
        "tools": (use.tools or None) if use is not None else None,
        "documents": None,
        **({"bos_token": template.bos_token} if template.bos_token else {}),
        "eos_token": template.eos_token or end,
        "add_generation_prompt": prompt,
    }
    return _renderer(template.source, os.getpid()).render(variables)


def _message(role: str, content: str, fields: dict[str, Any] | None) -> dict[str, Any]:
    """Return a message as templates get it."""
    if fields is None:
        return {"role": role, "content": content}
    return {"role": role, **({"content": content} if content else {}), **fields}


@lru_cache(maxsize=8)
def _renderer(source: str, process: int) -> TemplateRenderer:
    """Return the renderer of a template. Each process has its own: a forked one needs another."""
    return TemplateRenderer(source)


def preset_template(name: str) -> ChatTemplate:
    """Return a template by name."""
    return ChatTemplate(PRESETS[name], origin=f"preset {name}")


def template_of(settings: TokenizerSettings) -> ChatTemplate | None:
    """Return the template beside a tokenizer, or None."""
    if settings.template is None:
        return None
    found = ChatTemplate(settings.template, origin=settings.template_file, of_model=True)
    return with_tokens(found, settings)


def with_tokens(template: ChatTemplate, settings: TokenizerSettings) -> ChatTemplate:
    """Return a template with the special tokens of a tokenizer as its variables."""
    others = {**settings.tokens}
    bos, eos = others.pop("bos_token", ""), others.pop("eos_token", None)
    return replace(template, bos_token=bos, eos_token=eos, variables=tuple(sorted(others.items())))


def template_error(problem: str, origin: str = FIELD) -> InputError:
    """Return the error for a template that cannot be used. `origin` is its file or its field."""
    return InputError(
        "InvalidSpec",
        f"{origin}: {problem[:500]}",
        field=FIELD,
        remedy="correct the template, or choose a preset: " + ", ".join(PRESETS),
    )
