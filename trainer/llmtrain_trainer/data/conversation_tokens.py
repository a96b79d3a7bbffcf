"""The tokens of a conversation, each with its place in the text.

Special tokens of the template are tokens. Those that the text of a message spells are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice

from tokenizers import AddedToken, Tokenizer

from llmtrain_trainer.data.chat_template import TextSegment, template_error
from llmtrain_trainer.data.tokenizer import is_unmarked_end_token, with_special_tokens

PlacedToken = tuple[int, int, int]
"""(id, start, end): the characters of the text that a token covers."""

_BOUNDARY = "\ufdd0\ufdd1\ufdd0"
"""Stands for a special token before a run of text. No text has these noncharacters of Unicode."""


@dataclass(frozen=True, slots=True)
class ResponseSpan:
    """The place of a response in the text, with the end of its turn."""

    message: int
    start: int
    end: int
    stop: int | None
    """Id of the added token that ends the turn."""


class ConversationTokenizer:
    """Encodes the segments of a conversation as one text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer = with_special_tokens(tokenizer, is_unmarked_end_token)
        # a post-processor only changes the places of tokens, because nothing is added to the text
        changes = dict.fromkeys(("post_processor", "truncation", "padding"))
        described = {**json.loads(tokenizer.to_str()), **changes}
        self._tokenizer = Tokenizer.from_str(json.dumps(described))
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        self._added = {str(token.content): (number, token) for number, token in added.items()}
        names = sorted(filter(None, self._added), key=len, reverse=True)
        special = [name for name in names if self._added[name][1].special]
        self._stop = _any_of(names)
        self._spelled = _any_of(special)
        self._tokenizer.add_tokens([AddedToken(_BOUNDARY, normalized=False)])

    def encode(self, segments: Sequence[TextSegment]) -> Iterator[PlacedToken]:
        """Yield the tokens of a conversation in order. Raises InputError for noncharacters."""
        text = "".join(segment.text for segment in segments)
        if _BOUNDARY in text:
            raise template_error("a message has noncharacters of Unicode, U+FDD0 and U+FDD1")
        if self._spells_special(segments, text):
            yield from self._encode_runs(segments)
        else:
            yield from self._placed(text, 0, special=True)

    def responses(self, segments: Sequence[TextSegment]) -> list[ResponseSpan]:
        """Return the responses of a conversation in order, each with the end of its turn.

        The turn ends with the first added token after the response. If there is none, it ends with
        the first character after the response, and the last turn ends with the text. A response
        that has the end of its turn ends with its last special token, or the first one after it.
        """
        found = []
        place = 0
        for response, group in groupby(segments, lambda segment: segment.response):
            members = list(group)
            start, place = place, place + sum(len(segment.text) for segment in members)
            if response is not None:
                found.append((response, start, place, members[0].ends_turn))
        text = "".join(segment.text for segment in segments)
        contents = _content_spans(segments)
        return [self._with_stop(each, text, contents) for each in found]

    def _with_stop(
        self, response: tuple[int, int, int, bool], text: str, contents: Sequence[tuple[int, int]]
    ) -> ResponseSpan:
        message, start, end, ends_turn = response
        following = next((first for first, _ in contents if first >= end), len(text))
        stop = self._stop.search(text, end, following)
        if ends_turn:
            said = max((last for _, last in contents if start < last <= end), default=start)
            inside = list(self._spelled.finditer(text, said, end))
            stop = inside[-1] if inside else self._spelled.search(text, end, following)
        if stop:
            return ResponseSpan(message, start, stop.end(), self._added[stop.group()][0])
        if ends_turn:
            return ResponseSpan(message, start, end, None)
        is_last = following == len(text)
        return ResponseSpan(message, start, following if is_last else min(end + 1, following), None)

    def spells_special(self, text: str) -> bool:
        """Return True if a special token is spelled in a text."""
        return self._spelled.search(text) is not None

    def _spells_special(self, segments: Sequence[TextSegment], text: str) -> bool:
        """Return True if a special token in the text is spelled by a content, at least in part."""
        contents = iter(_content_spans(segments))
        span = next(contents, None)
        for match in self._spelled.finditer(text):
            while span is not None and span[1] <= match.start():
                span = next(contents, None)
            if span is not None and span[0] < match.end():
                return True
        return False

    def _encode_runs(self, segments: Sequence[TextSegment]) -> Iterator[PlacedToken]:
        """Encode a text in which a content spells a special token.

        The text is split at the special tokens of the template, as the library does it, and the
        parts between them are encoded without special tokens.
        """
        run, place, start, strip = "", 0, 0, False
        for segment in segments:
            position = 0
            matches = self._spelled.finditer(segment.text) if segment.message is None else ()
            for match in matches:
                number, token = self._added[match.group()]
                run += segment.text[position : match.start()]
                yield from self._run(run, start, strip, token.lstrip)
                position = match.end()
                yield number, place + match.start(), place + position
                run, start, strip = "", place + position, token.rstrip
            run += segment.text[position:]
            place += len(segment.text)
        yield from self._run(run, start, strip, False)

    def _run(self, text: str, start: int, left: bool, right: bool) -> Iterator[PlacedToken]:
        after = _BOUNDARY if start else ""
        kept = text.lstrip() if left else text
        start += len(text) - len(kept)
        kept = kept.rstrip() if right else kept
        if kept:
            tokens = self._placed(after + kept, start - len(after), special=False)
            yield from islice(tokens, 1 if after else 0, None)

    def _placed(self, text: str, start: int, special: bool) -> Iterator[PlacedToken]:
        self._tokenizer.encode_special_tokens = not special
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        for number, (first, end) in zip(encoded.ids, encoded.offsets, strict=True):
            yield int(number), start + first, start + end


def _content_spans(segments: Sequence[TextSegment]) -> list[tuple[int, int]]:
    """Return the places of all contents that are not empty."""
    ends = list(accumulate(len(segment.text) for segment in segments))
    return [
        (end - len(segment.text), end)
        for segment, end in zip(segments, ends, strict=True)
        if segment.message is not None and segment.text
    ]


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")
