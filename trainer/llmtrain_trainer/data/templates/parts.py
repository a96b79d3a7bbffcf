"""The parts of a rendered conversation: text of the template, contents of messages, responses.

A conversation is rendered with a mark in place of each content. So it is known which parts of the
text are contents, whatever they are, and which belong to a response.

Templates treat the reasoning of a response apart from its answer. So a response with the tags
`<think>` and `</think>` has one mark for each part between them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from llmtrain_trainer.data.conversations import RESPONSE_ROLE, Messages
from llmtrain_trainer.data.templates.renderer import TemplateFailureError

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}([0-9]{{1,9}}){_CLOSE}")
_UNKNOWN_CALLS = "it is not known which part of its text is the call of a tool"
_LAST = f"{_OPEN}{_CLOSE}"
"""Stands for a response that calls no tools."""
_THINK, _END_THINK = "<think>", "</think>"
_REASONING = re.compile(f"({_THINK}|{_END_THINK})")


class Render(Protocol):
    """Renders a conversation. Raises TemplateFailureError."""

    def __call__(self, messages: Messages, prompt: bool, plain: int | None = None) -> str:
        """Return the text, with a prompt for a response. Message `plain` calls no tools."""


Form = tuple[str | None, ...]
"""A content in pieces. None: a piece that varies. Others are white space and tags of reasoning."""

ConversationShape = tuple[tuple[str, Form], ...]
"""Role and form of every message."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a rendered text: text of the template, or the place of piece number `piece`."""

    text: str
    piece: int | None = None
    message: int | None = None
    response: int | None = None
    ends_turn: bool = False
    """The response has the end of its turn, too."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """The place of a piece in a marked text."""

    start: int
    end: int
    piece: int
    message: int


@dataclass(frozen=True, slots=True)
class _Span:
    """The place of a response in a marked text."""

    start: int
    end: int
    response: int
    ends_turn: bool = False


def form_of(role: str, content: str) -> tuple[list[str], Form]:
    """Return the pieces of a content that vary, and its form."""
    pieces = _split(role, content)
    form = tuple(None if _varies(pieces, number) else each for number, each in enumerate(pieces))
    varying = [piece for piece, fixed in zip(pieces, form, strict=True) if fixed is None]
    return varying, form


def _split(role: str, content: str) -> list[str]:
    """Return a content in pieces: a response is split at the tags of its reasoning."""
    if role != RESPONSE_ROLE or max(map(content.count, (_THINK, _END_THINK))) != 1:
        return [content]
    pieces = _REASONING.split(content)
    return pieces if any(_varies(pieces, number) for number in range(len(pieces))) else [content]


def _varies(pieces: Sequence[str], number: int) -> bool:
    """Return True for a piece that gets a mark. Templates may ask whether a part is blank."""
    return len(pieces) == 1 or (number % 2 == 0 and bool(pieces[number].strip()))


def parts_of(
    render: Render, shape: ConversationShape, prompt: bool, prompts: bool, calling: Collection[int]
) -> list[Part]:
    """Return the parts of a conversation. Raises TemplateFailureError.

    `prompts` says whether the template can write a prompt, and `calling` which messages call tools.
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
    text = render(marked, prompt)
    marks = []
    for mark in _MARK.finditer(text):
        piece = int(mark[1])
        if piece >= len(owners):
            raise TemplateFailureError("the template writes a mark of its own")
        marks.append(_Mark(mark.start(), mark.end(), piece, owners[piece]))
    _require_shown(shape, marks, calling)
    begins = _begins(render, marked, text) if prompts and not prompt else {}
    spans = [each for each in _spans(text, shape, marks, begins) if each.response not in calling]
    spans += [_span_of_calls(render, marked, text, each, begins) for each in calling]
    spans.sort(key=lambda span: span.start)
    for span in spans:
        if span.response in calling:
            _require_alone(span, spans, marks)
    return list(_cut(text, marks, spans))


def _require_shown(
    shape: ConversationShape, marks: Sequence[_Mark], calling: Collection[int]
) -> None:
    """Raise TemplateFailureError if the answer of a tool or the content of a call is not there.

    Reasoning may be left out.
    """
    shown = {mark.piece for mark in marks}
    pieces = 0
    for index, (role, form) in enumerate(shape):
        pieces += form.count(None)
        if not form or form[-1] is not None or pieces - 1 in shown:
            continue
        if role == "tool":
            raise TemplateFailureError("the template leaves out or changes the answer of a tool")
        if index in calling:
            raise TemplateFailureError("the template leaves out the content of a call of tools")


def _begins(render: Render, marked: Messages, text: str) -> dict[int, int]:
    """Return where responses begin in a marked text: at the end of the prompt for them.

    The model writes what follows this place, such as an empty reasoning before the content.
    """
    found = {}
    for index, (role, _) in enumerate(marked):
        if role == RESPONSE_ROLE and index:
            try:
                before = render(marked[:index], True)
            except TemplateFailureError:  # it may refuse a part of a conversation
                continue
            if text.startswith(before):
                found[index] = len(before)
    return found


def _spans(
    text: str, shape: ConversationShape, marks: Sequence[_Mark], begins: dict[int, int]
) -> Iterator[_Span]:
    """Yield the places of the responses with a content. They end with it, or with its reasoning."""
    before = 0  # where the text after the last mark begins
    ended = 0  # where the last response ends
    for number, (message, group) in enumerate(runs := _by_message(marks)):
        first, last = group[0], group[-1]
        role, form = shape[message]
        if role == RESPONSE_ROLE:
            begin = begins.get(message, -1)
            if not before <= begin <= first.start:
                tag = text.rfind(_THINK, before, first.start) if _THINK in form else -1
                begin = first.start if tag < 0 else tag
            following = runs[number + 1][1][0].start if number + 1 < len(runs) else len(text)
            begin, ended = max(begin, ended), last.end
            ended += _end_of_reasoning(text[last.end : following], form)
            yield _Span(begin, ended, message)
        before = last.end


def _by_message(marks: Sequence[_Mark]) -> list[tuple[int, list[_Mark]]]:
    """Return runs of marks of one message."""
    return [(message, list(run)) for message, run in groupby(marks, lambda mark: mark.message)]


def _end_of_reasoning(text: str, form: Form) -> int:
    """Return where a response ends in the text after its last mark, if a tag is part of it."""
    last = max(place for place, fixed in enumerate(form) if fixed is None)
    tag = text.rfind(_END_THINK) if _END_THINK in form[last:] else -1
    return 0 if tag < 0 else tag + len(_END_THINK)


def _span_of_calls(
    render: Render, marked: Messages, text: str, index: int, begins: dict[int, int]
) -> _Span:
    """Return the place of a response that calls tools.

    It begins where the prompt for it ends, and ends where the text of the conversation up to it
    ends. If the text goes on in another way, the text around a response without calls in its place
    is around it, too. It begins at the latest where the text of the earlier messages ends.
    """
    begin = begins.get(index)
    whole = text if index == len(marked) - 1 else render(marked[: index + 1], False)
    end = len(whole) if text.startswith(whole) else None
    ends_turn = end is not None
    if begin is None or end is None:
        before, after = _around_plain(render, marked, index)
        if begin is None and before and text.startswith(before):
            begin = len(before)
        if end is None and after and text.endswith(after):
            end = len(text) - len(after)
    if begin is None and index:
        earlier = render(marked[:index], False)
        begin = len(earlier) if text.startswith(earlier) else None
    if begin is None or end is None or begin >= end:
        raise TemplateFailureError(_UNKNOWN_CALLS)
    return _Span(begin, end, index, ends_turn)


def _around_plain(render: Render, marked: Messages, index: int) -> tuple[str, str]:
    """Return the text before and after a response without its calls; empty if it is refused."""
    role, content = marked[index]
    try:
        others = [*marked[:index], (role, content + _LAST), *marked[index + 1 :]]
        plain = render(others, False, index)
    except TemplateFailureError:  # a template may refuse the answer to no call
        return "", ""
    said, mark, after = plain.partition(_LAST)
    before = said[: said.find(content)] if content and content in said else said
    return (before, after) if mark else ("", "")


def _require_alone(span: _Span, spans: Sequence[_Span], marks: Sequence[_Mark]) -> None:
    """Raise TemplateFailureError if other messages are in the place of a response with calls."""
    for mark in marks:
        inside = span.start <= mark.start and mark.end <= span.end
        if inside != (mark.message == span.response):
            raise TemplateFailureError(_UNKNOWN_CALLS)
    for other in spans:
        if other is not span and other.start < span.end and span.start < other.end:
            raise TemplateFailureError(_UNKNOWN_CALLS)


def _cut(text: str, marks: Sequence[_Mark], spans: Sequence[_Span]) -> Iterator[Part]:
    """Yield the parts of a marked text, divided at its marks and at the ends of responses."""
    place = 0
    for mark in marks:
        yield from _of_template(text, place, mark.start, spans)
        owner = next((each for each in spans if each.start <= mark.start < each.end), None)
        response, ends_turn = (owner.response, owner.ends_turn) if owner else (None, False)
        yield Part("", mark.piece, mark.message, response, ends_turn)
        place = mark.end
    yield from _of_template(text, place, len(text), spans)


def _of_template(text: str, start: int, stop: int, spans: Sequence[_Span]) -> Iterator[Part]:
    """Yield text of the template, apart for each response in it."""
    for span in spans:
        first, last = max(span.start, start), min(span.end, stop)
        if first < last:
            if start < first:
                yield Part(text[start:first])
            yield Part(text[first:last], response=span.response, ends_turn=span.ends_turn)
            start = last
    if start < stop:
        yield Part(text[start:stop])
