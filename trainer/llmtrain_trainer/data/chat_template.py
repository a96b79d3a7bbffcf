"""Chat templates: a conversation as text segments, each with the message it came from.

Templates are Jinja, as published with tokenizers, and run in Jinja's sandbox in a process with
limits. A conversation is rendered twice: as it is, and with a mark in place of each content. The
first has the text that the model gets, and the second shows which parts of it are contents. So text
that spells a special token remains text, and it is known which text belongs to a response.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from llmtrain_trainer.data.conversations import Messages
from llmtrain_trainer.data.template_renderer import TemplateFailureError, TemplateRenderer
from llmtrain_trainer.data.tokenizer_settings import TokenizerSettings
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
_MARK = re.compile(f"{_OPEN}([0-9]{{1,9}}){_CLOSE}")
_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>")

MAX_TRIES = 10_000
"""Comparisons of the text of one conversation with its parts."""


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
    variables: tuple[tuple[str, str], ...] = ()
    """Other special tokens, by name."""

    def special_tokens(self) -> list[str]:
        """Return the texts in the template that look like special tokens, in order."""
        named = [token for token in (self.bos_token, self.eos_token) if token]
        return list(dict.fromkeys([*_SPECIAL.findall(self.source), *named]))

    def segments(self, messages: Messages, end: str, prompt: bool = False) -> list[TextSegment]:
        """Return the segments of a conversation in order. `end` is the token that ends documents.

        With `prompt`, the text ends where a response begins. It is that of `transformers`. Raises
        InputError if a content is in it neither whole nor trimmed: it would not be known which part
        of the text is a response.
        """
        parts = _parts(self, end, tuple(role for role, _ in messages), prompt)
        for part in parts:
            if part.message is not None and part.message >= len(messages):
                raise template_error("the template writes a mark of its own", self.origin)
        text = _render(self, end, messages, prompt)
        found = align(parts, [content for _, content in messages], text)
        if found is None:
            problem = (
                "the template computes with the contents of messages, so it is not known which part"
                " of its text is a response"
            )
            raise template_error(problem, self.origin)
        return found


def align(
    parts: Sequence[TextSegment], contents: Sequence[str], text: str
) -> list[TextSegment] | None:
    """Return the segments of `text`, whose contents are marks in `parts`; None if they differ.

    A template may trim a content, or remove the reasoning before `</think>`. The first combination
    that yields the text is taken.
    """
    variants = [_variants(content) for content in contents]
    chosen: list[int] = []  # the variant of each part
    places = [0]
    choice = tries = 0
    while len(chosen) < len(parts) or places[-1] != len(text):
        tries += 1
        if tries > MAX_TRIES:
            return None
        step = None
        if len(chosen) < len(parts):
            part = parts[len(chosen)]
            options = [part.text] if part.message is None else variants[part.message]
            place = places[-1]
            step = next(
                (k for k in range(choice, len(options)) if text.startswith(options[k], place)), None
            )
        if step is None:
            if not chosen:
                return None
            places.pop()
            choice = chosen.pop() + 1
            continue
        chosen.append(step)
        places.append(places[-1] + len(options[step]))
        choice = 0
    return [
        TextSegment(text[start:end], part.message)
        for part, start, end in zip(parts, places, places[1:], strict=False)
        if start < end or part.message is not None
    ]


def _variants(content: str) -> list[str]:
    """Return what templates make of a content, the longest first."""
    texts = [content]
    if "</think>" in content:
        texts.append(content.rpartition("</think>")[2])
    found = [
        trimmed
        for text in texts
        for trimmed in (text, text.rstrip(), text.lstrip(), text.strip(), text.strip("\n"))
    ]
    return list(dict.fromkeys(found))


@lru_cache(maxsize=256)
def _parts(
    template: ChatTemplate, end: str, roles: tuple[str, ...], prompt: bool
) -> list[TextSegment]:
    """Return the segments of a conversation with marks in place of its contents.

    They depend on the roles only, so most conversations share them with others.
    """
    marked = [(role, f"{_OPEN}{number}{_CLOSE}") for number, role in enumerate(roles)]
    found = []
    for index, part in enumerate(_MARK.split(_render(template, end, marked, prompt))):
        if index % 2:
            found.append(TextSegment("", int(part)))
        elif part:
            found.append(TextSegment(part))
    return found


def _render(template: ChatTemplate, end: str, messages: Messages, prompt: bool) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    variables = {
        **dict(template.variables),
        "messages": turns,
        "tools": None,
        "documents": None,
        "bos_token": template.bos_token,
        "eos_token": template.eos_token or end,
        "add_generation_prompt": prompt,
    }
    try:
        return _renderer(template.source, os.getpid()).render(variables)
    except TemplateFailureError as error:
        raise template_error(str(error), template.origin) from error


@lru_cache(maxsize=8)
def _renderer(source: str, process: int) -> TemplateRenderer:
    """Return the renderer of a template. Each process has its own: a forked one needs another."""
    return TemplateRenderer(source)


def preset_template(name: str) -> ChatTemplate:
    """Return a template by name."""
    return ChatTemplate(PRESETS[name])


def template_of(settings: TokenizerSettings) -> ChatTemplate | None:
    """Return the template beside a tokenizer, or None."""
    if settings.template is None:
        return None
    return with_tokens(ChatTemplate(settings.template, origin=settings.template_file), settings)


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
