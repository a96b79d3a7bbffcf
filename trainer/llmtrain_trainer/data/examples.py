"""Fine-tuning examples as tokens with loss marks, one example per sequence.

A shard holds 32-bit numbers: the id of a token, and two bits above it, for the first token of an
example and for a token in the loss. So examples are packed, checked and read like other tokens, and
need no index.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from llmtrain_trainer.data.chat_template import ChatTemplate, template_error
from llmtrain_trainer.data.conversation_tokens import ConversationTokenizer
from llmtrain_trainer.data.conversations import counted_turns, loads, tool_use_of
from llmtrain_trainer.data.shards import TokenStream, corrupt_error, padded
from llmtrain_trainer.data.tokenizer import end_token
from llmtrain_trainer.data.tool_use import argument_forms
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX

OVERLONG_FIELD = "spec.model.architecture.sequenceLength"

FIRST, COUNTED = 1 << 31, 1 << 30
ID = COUNTED - 1

FORMAT = 2
"""Increased whenever the same conversation would get other tokens or marks."""

_CHUNK = 1 << 20


class ExampleEncoder:
    """Encodes conversations as marked tokens.

    The tokens are those of the whole text, as `transformers` encodes it. The loss covers every
    token of a response, and what follows it up to the added token that ends the turn: a model that
    is not trained on this token does not stop. If none ends the last turn, the end token follows.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, longest: int, end: int | None = None
    ) -> None:
        self._template, self._longest = template, longest
        self.truncates = False
        """Whether an example that is longer than a sequence is cut at its end."""
        self.truncated = 0
        """Number of examples that were cut."""
        self._text = ConversationTokenizer(tokenizer)
        self._end = end_token(tokenizer) if end is None else end
        self._end_name = str(tokenizer.id_to_token(self._end))

    def encode(self, name: str, text: str) -> npt.NDArray[np.uint32]:
        """Return the marked tokens of one conversation. `name` is its position, for errors.

        Raises InputError if it does not fit a sequence, or if no token of it is in the loss.
        """
        ids = np.fromiter(self._marked(text), np.uint32)
        if not (ids[1:] & COUNTED).any():
            problem = f"{name}: the template yields no token that counts in the loss"
            raise template_error(problem, self._template.origin)
        if len(ids) > self._longest + 1:
            cut = ids[: self._longest + 1]
            if not self.truncates or not (cut[1:] & COUNTED).any():
                raise InputError(
                    "InvalidSpec",
                    f"{name} has {len(ids)} tokens, and the model's sequences have {self._longest}"
                    " and the one that follows",
                    field=OVERLONG_FIELD,
                    remedy="use longer sequences, or data.overlong: truncate, or raise"
                    " maxUnusableRows of the source",
                )
            ids, self.truncated = cut, self.truncated + 1
        ids[0] |= FIRST
        return ids

    def _marked(self, text: str) -> Iterator[int]:
        messages, in_loss = loads(text), counted_turns(text)
        use = tool_use_of(text)
        if use is not None and any(
            self._text.spells_special(form.serialized) for form in argument_forms(use)
        ):
            problem = "a tool or a call spells a special token, which would be one in its text"
            raise template_error(problem, self._template.origin)
        segments = self._template.segments(messages, self._end_name, use=use)
        responses = self._text.responses(segments)
        counted = [each for each in responses if in_loss[each.message]]
        end = sum(len(segment.text) for segment in segments)
        first = 0
        for token, start, stop in self._text.encode(segments):
            while first < len(counted) and counted[first].end <= start:
                first += 1
            counts = first < len(counted) and start < counted[first].end
            counts = counts and stop > counted[first].start
            yield token | COUNTED if counts else token
        if counted and counted[-1].end == end and counted[-1].stop is None:
            yield self._end | COUNTED


class ExampleStream:
    """All examples of one part of a source."""

    def __init__(self, folder: Path, part: str, vocab_size: int) -> None:
        self.folder = folder
        self._vocab_size = vocab_size
        self._tokens = TokenStream(folder, part, 1 << 32)
        starts, counted = [], []
        total = len(self._tokens)
        for begin in range(0, total, _CHUNK):
            marks = self._tokens.read(begin, min(_CHUNK, total - begin))
            starts.append(np.flatnonzero(marks & FIRST) + begin)
            counted.append(np.flatnonzero(marks & COUNTED) + begin)
        self._starts = np.concatenate([*starts, [total]]).astype(np.int64)
        places = np.concatenate([np.zeros(0, np.int64), *counted])
        # the first token of an example is not a target
        places = np.setdiff1d(places, self._starts, assume_unique=True)
        self._counted = np.diff(np.searchsorted(places, self._starts))

    def __len__(self) -> int:
        return len(self._tokens)

    def windows(self, length: int) -> int:
        """Return the number of examples. Each is a sequence, padded to `length` tokens."""
        return len(self._starts) - 1

    def sequences(self, length: int) -> int:
        """Return the number of examples."""
        return self.windows(length)

    def window(self, number: int, length: int) -> tuple[npt.NDArray[np.int64], ...]:
        """Return inputs and targets of an example, each (length,)."""
        start, end = self._starts[number : number + 2].tolist()
        marked = self._tokens.read(start, end - start)
        ids = marked & ID
        if int(ids.max()) >= self._vocab_size or len(ids) > length + 1:
            raise corrupt_error(self.folder, f"example {number} is not one of this model's")
        targets = np.where(marked[1:] & COUNTED, ids[1:], IGNORE_INDEX)
        return padded(ids[:-1], length, 0), padded(targets, length, IGNORE_INDEX)

    def loss_tokens(self, number: int, length: int) -> int:
        """Return the number of targets of an example in the loss."""
        return int(self._counted[number])

    def real_tokens(self, number: int, length: int) -> int:
        """Return the number of inputs of an example. The last token is a target only."""
        return int(self._starts[number + 1] - self._starts[number]) - 1

    def document_lengths(self, number: int, length: int) -> tuple[int, ...]:
        """Return the number of inputs of an example, which is a sequence of its own."""
        return (self.real_tokens(number, length),)

    def document_totals(self, number: int, length: int) -> tuple[int, int, int]:
        """Return the sums over the only document: see `SequenceStream`."""
        count = self.real_tokens(number, length)
        return 1, count, count * count
