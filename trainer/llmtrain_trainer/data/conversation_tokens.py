"""The tokens of a conversation, each with its place in the text.

Special tokens of the template are tokens. Those that the text of a message spells are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Tokenizer

from llmtrain_trainer.data.chat_template import TextSegment

PlacedToken = tuple[int, int, int]
"""(id, start, end): the characters of the text that a token covers."""

Span = tuple[int, int]


class ConversationTokenizer:
    """Encodes the segments of a conversation as one text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # a post-processor only changes the places of tokens, because nothing is added to the text
        described = {**json.loads(tokenizer.to_str()), "post_processor": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(described))
        added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        self._added = {str(token.content): (number, token) for number, token in added.items()}
        names = sorted(self._added, key=len, reverse=True)
        special = [name for name in names if self._added[name][1].special]
        self._stop = _any_of(names)
        self._spelled = _any_of(special)

    def encode(self, segments: Sequence[TextSegment]) -> Iterator[PlacedToken]:
        """Yield the tokens of a conversation in order."""
        contents = (each.text for each in segments if each.message is not None)
        if any(self._spelled.search(content) for content in contents):
            yield from self._encode_runs(segments)
            return
        text = "".join(segment.text for segment in segments)
        yield from self._placed(text, 0, special=True)

    def turns(self, segments: Sequence[TextSegment]) -> list[Span | None]:
        """Return the place of every segment that is a content, with the end of its turn.

        The turn ends with the first added token after the content, or else with the first
        character.
        """
        found: list[Span | None] = []
        start = 0
        for index, segment in enumerate(segments):
            end = start + len(segment.text)
            found.append(None)
            if segment.message is not None:
                after = segments[index + 1] if index + 1 < len(segments) else None
                tail = after.text if after is not None and after.message is None else ""
                stop = self._stop.search(tail)
                found[-1] = (start, end + (stop.end() if stop else min(1, len(tail))))
            start = end
        return found

    def stops(self, segments: Sequence[TextSegment]) -> bool:
        """Return True if the text goes on after the last content."""
        return bool(segments) and segments[-1].message is None

    def stop_token(self, segments: Sequence[TextSegment]) -> int | None:
        """Return the id of the added token that ends the last turn, if there is one."""
        if not self.stops(segments):
            return None
        stop = self._stop.search(segments[-1].text)
        return self._added[stop.group()][0] if stop else None

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
        kept = text.lstrip() if left else text
        start += len(text) - len(kept)
        yield from self._placed(kept.rstrip() if right else kept, start, special=False)

    def _placed(self, text: str, start: int, special: bool) -> Iterator[PlacedToken]:
        if not text:
            return
        self._tokenizer.encode_special_tokens = not special
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        for number, (first, end) in zip(encoded.ids, encoded.offsets, strict=True):
            yield int(number), start + first, start + end


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")
