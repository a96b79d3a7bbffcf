"""Chat templates: a conversation as text segments, each with the message it came from.

Templates are Jinja, as published with tokenizers, and run in Jinja's sandbox in a process with
limits. A conversation is rendered twice: as it is, and with a mark in place of each content. The
first has the text that the model gets, and the second shows which parts of it are contents. So text
that spells a special token remains text, and it is known which text belongs to a response.

Templates treat the reasoning of a response apart from its answer. So a response with the tags
`<think>` and `</think>` has one mark for each part between them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from llmtrain_trainer.data.conversations import RESPONSE_ROLE, Messages
from llmtrain_trainer.data.templates.renderer import TemplateFailureError, TemplateRenderer
from llmtrain_trainer.data.tokenizer_settings import TokenizerSettings
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

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}([0-9]{{1,9}}){_CLOSE}")
_SPECIAL = re.compile(r"<\|[^|<>\s]+\|>")
_THINK, _END_THINK = "<think>", "</think>"
_REASONING = re.compile(f"({_THINK}|{_END_THINK})")

MAX_TRIES = 10_000
"""Comparisons of the text of one conversation with its parts, besides one for each part."""

Form = tuple[str | None, ...]
"""A content in pieces. None: a piece that varies. Others are white space and tags of reasoning."""

ConversationShape = tuple[tuple[str, Form], ...]
"""Role and form of every message."""


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A segment of text: of the template, or of the content of message number `message`."""

    text: str
    message: int | None = None
    response: int | None = None
    """Number of the response that the text is part of: the model writes it."""


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

    def segments(self, messages: Messages, end: str, prompt: bool = False) -> list[TextSegment]:
        """Return the segments of a conversation in order. `end` is the token that ends documents.

        With `prompt`, the text ends where a response begins. It is that of `transformers`. Raises
        InputError if a content is in it neither whole nor trimmed: it would not be known which part
        of the text is a response.
        """
        pieces: list[str] = []
        shape = []
        for role, content in messages:
            split = _split(role, content)
            form = tuple(None if _varies(split, k) else piece for k, piece in enumerate(split))
            pieces += [piece for piece, fixed in zip(split, form, strict=True) if fixed is None]
            shape.append((role, form))
        parts = _parts(self, end, tuple(shape), prompt)
        options = [
            [part.text] if part.piece is None else _variants(pieces[part.piece]) for part in parts
        ]
        found = align(options, _render(self, end, messages, prompt))
        if found is None:
            problem = (
                "the template computes with the contents of messages, so it is not known which part"
                " of its text is a response"
            )
            raise template_error(problem, self.origin)
        return [
            TextSegment(text, part.message, part.response)
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


def _split(role: str, content: str) -> list[str]:
    """Return a content in pieces: a response is split at the tags of its reasoning."""
    if role != RESPONSE_ROLE or max(map(content.count, (_THINK, _END_THINK))) != 1:
        return [content]
    pieces = _REASONING.split(content)
    return pieces if any(_varies(pieces, number) for number in range(len(pieces))) else [content]


def _varies(pieces: Sequence[str], number: int) -> bool:
    """Return True for a piece that gets a mark. Templates may ask whether a part is blank."""
    return len(pieces) == 1 or (number % 2 == 0 and bool(pieces[number].strip()))


def _variants(content: str) -> list[str]:
    """Return what templates make of a content, the longest first."""
    trimmed = (
        trim(content, characters)
        for characters in (None, "\n")
        for trim in (str.rstrip, str.lstrip, str.strip)
    )
    return sorted({content, *trimmed}, key=lambda text: (-len(text), text))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a rendered text: text of the template, or the place of piece number `piece`."""

    text: str
    piece: int | None = None
    message: int | None = None
    response: int | None = None


@lru_cache(maxsize=256)
def _parts(template: ChatTemplate, end: str, shape: ConversationShape, prompt: bool) -> list[_Part]:
    """Return the parts of a conversation with marks in place of its contents.

    They depend on its shape only, so most conversations share them with others.
    """
    marked: Messages = []
    owners: list[int] = []  # the message of every piece
    for index, (role, form) in enumerate(shape):
        content = ""
        for fixed in form:
            if fixed is None:
                content += f"{_OPEN}{len(owners)}{_CLOSE}"
                owners.append(index)
            else:
                content += fixed
        marked.append((role, content))
    text = _render(template, end, marked, prompt)
    begins = {} if prompt else _begins(template, end, marked, text)
    return list(_split_parts(template, text, shape, owners, begins))


def _begins(template: ChatTemplate, end: str, marked: Messages, text: str) -> dict[int, int]:
    """Return where responses begin in a marked text: at the end of the prompt for them.

    The model writes what follows this place, such as an empty reasoning before the content.
    """
    if "add_generation_prompt" not in template.source:
        return {}
    found = {}
    for index, (role, _) in enumerate(marked):
        if role == RESPONSE_ROLE and index:
            try:
                before = _render(template, end, marked[:index], prompt=True)
            except InputError:  # it may refuse a part of a conversation
                continue
            if text.startswith(before):
                found[index] = len(before)
    return found


def _split_parts(
    template: ChatTemplate,
    text: str,
    shape: ConversationShape,
    owners: Sequence[int],
    begins: dict[int, int],
) -> Iterator[_Part]:
    """Yield the parts of a marked text."""
    place = 0  # where the text after the last mark begins
    before: int | None = None  # the response that this mark is part of
    marks = list(_MARK.finditer(text))
    if any(int(mark.group(1)) >= len(owners) for mark in marks):
        raise template_error("the template writes a mark of its own", template.origin)
    for mark in [*marks, None]:
        piece = None if mark is None else int(mark.group(1))
        message = None if piece is None else owners[piece]
        between = text[place : None if mark is None else mark.start()]
        after = message if message is not None and shape[message][0] == RESPONSE_ROLE else None
        if before is not None and before == after:
            yield from _of_template(between, 0, after)
        else:
            ended = 0 if before is None else _end_of_reasoning(between, shape[before][1])
            yield from _of_template(between[:ended], 0, before)
            start = len(between) if after is None else _begin(between, place, after, shape, begins)
            yield from _of_template(between[ended:], max(start - ended, 0), after)
        if mark is not None:
            yield _Part("", piece, message, after)
            place, before = mark.end(), after


def _of_template(text: str, start: int, response: int | None) -> Iterator[_Part]:
    """Yield text of the template, of which that from `start` on belongs to a response."""
    if text[:start]:
        yield _Part(text[:start])
    if text[start:]:
        yield _Part(text[start:], response=response)


def _begin(
    text: str, place: int, response: int, shape: ConversationShape, begins: dict[int, int]
) -> int:
    """Return where a response begins in the text before its first mark, which is at `place`."""
    begin = begins.get(response, -1) - place
    if 0 <= begin <= len(text):
        return begin
    tag = text.rfind(_THINK) if _THINK in shape[response][1] else -1
    return len(text) if tag < 0 else tag


def _end_of_reasoning(text: str, form: Form) -> int:
    """Return where a response ends in the text after its last mark, if a tag is part of it."""
    last = max(place for place, fixed in enumerate(form) if fixed is None)
    tag = text.rfind(_END_THINK) if _END_THINK in form[last:] else -1
    return 0 if tag < 0 else tag + len(_END_THINK)


def _render(template: ChatTemplate, end: str, messages: Messages, prompt: bool) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    variables = {
        **dict(template.variables),
        "messages": turns,
        "tools": None,
        "documents": None,
        **({"bos_token": template.bos_token} if template.bos_token else {}),
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
