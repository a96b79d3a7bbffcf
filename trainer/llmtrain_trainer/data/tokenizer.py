"""Byte-level BPE (Sennrich et al., arXiv:1508.07909; byte level as in GPT-2)."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.untrusted_files import Folder, read_file

END_OF_TEXT = "<|endoftext|>"
"""Ends every document. Token 0 of a tokenizer trained here."""

END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
"""Names of the token that ends a document in published tokenizers."""

MIN_VOCAB_SIZE = 257
"""One token per byte, and END_OF_TEXT."""

FIELD = "spec.data.tokenizer.uri"

CPU_SECONDS, CHARACTERS_PER_SECOND = 60, 20_000
"""The slowest tokenizer that is accepted. Published ones encode a million characters a second."""

MAX_TOKENIZER_BYTES = 256 << 20
"""Length of a tokenizer.json."""

_PIECE = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
"""Runs that byte-level pre-tokenization never joins: white space and the text after it.

U+001C to U+001F are white space for Python, but not for the library.
"""

_REMEMBERED = 1 << 20
"""Number of distinct runs in the cache."""


def sample_limit(vocab_size: int) -> int:
    """Return how many characters a vocabulary is trained on: 4 MiB, or 2 KiB per token if more."""
    return max(4 << 20, vocab_size * 2048)


def sample_indices(lengths: Sequence[int], limit: int) -> Iterator[int]:
    """Yield the indices of documents to train on, evenly spread, of about `limit` characters."""
    total = sum(lengths)
    seen = taken = 0
    for index, length in enumerate(lengths):
        seen += length
        if total <= limit or taken + length / 2 <= seen * limit / total:
            taken += length
            yield index
    if lengths and not taken:
        yield 0


def train_bpe(texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """Train a vocabulary of at most `vocab_size` tokens on all texts; deterministic.

    `special` are additional special tokens besides END_OF_TEXT.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError(
            "InvalidSpec",
            f"a byte-level vocabulary has at least {MIN_VOCAB_SIZE} tokens, not {vocab_size}",
            field="spec.model.architecture.vocabSize",
            remedy=f"use {MIN_VOCAB_SIZE} or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(dict.fromkeys([END_OF_TEXT, *special])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path, vocab_size: int, eos: str | None = None) -> Tokenizer:
    """Read a tokenizer.json. Raises InputError if it does not fit the model."""
    tokenizer = open_tokenizer(path)
    size = largest_token(tokenizer) + 1
    if size > vocab_size:
        raise InputError(
            "InvalidSpec",
            f"{path} has {size} tokens and the model's vocabulary {vocab_size}",
            field="spec.model.architecture.vocabSize",
            remedy=f"use {size} or more",
        )
    end_token(tokenizer, eos)
    return tokenizer


def open_tokenizer(path: Folder) -> Tokenizer:
    """Read a tokenizer.json. Raises InputError if it is none."""
    try:
        tokenizer = Tokenizer.from_buffer(read_file(path, MAX_TOKENIZER_BYTES))
        tokenizer.no_truncation()  # of the program that saved it; it would drop text
        tokenizer.no_padding()
        return tokenizer
    except BaseException as error:  # the library raises nothing more precise
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise InputError(
            "InvalidSpec",
            f"{path} is not a tokenizer: {str(error)[:300]}",
            field=FIELD,
            remedy="name the tokenizer.json of the `tokenizers` library",
        ) from error


def endless_tokenizer(name: str) -> InputError:
    """Return the error for a tokenizer that was stopped by `cpu_limit`."""
    return InputError(
        "InvalidSpec",
        f"{name}: encoding one document takes more than {CPU_SECONDS} seconds of CPU time: its"
        " regular expressions may never end",
        field=FIELD,
        remedy="use a tokenizer from a source that you trust",
    )


@contextmanager
def cpu_limit(characters: int) -> Iterator[None]:
    """Let the kernel end this process, by SIGVTALRM, if a text takes far too much CPU time.

    The regular expressions of a tokenizer can take forever, and the library cannot be interrupted.
    So texts of strangers' tokenizers are encoded in child processes, whose parent reports the end.
    """
    limit = CPU_SECONDS + characters / CHARACTERS_PER_SECOND
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def is_panic(error: BaseException) -> bool:
    """Return True for an error of the library that no `except Exception` catches."""
    return type(error).__name__ == "PanicException"


def add_special(tokenizer: Tokenizer, wanted: Sequence[str], vocab_size: int) -> int:
    """Add the special tokens that a tokenizer lacks; return their number.

    Raises InputError if the model's vocabulary is too small for them.
    """
    missing = [token for token in wanted if tokenizer.token_to_id(token) is None]
    size = largest_token(tokenizer) + 1
    if missing and size + len(missing) > vocab_size:
        raise InputError(
            "InvalidSpec",
            f"the tokenizer lacks {', '.join(missing)[:200]} of the chat template, and the model's"
            f" vocabulary of {vocab_size} has no room beside its {size} tokens",
            field="spec.data.chat",
            remedy="use preset plain, a tokenizer with these tokens, or a larger vocabSize",
        )
    return int(tokenizer.add_special_tokens(missing)) if missing else 0


def largest_token(tokenizer: Tokenizer) -> int:
    """Return the largest id, added tokens included. Ids may have gaps."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values()))


def end_token(tokenizer: Tokenizer, eos: str | None = None) -> int:
    """Return the id that ends documents. Raises InputError if there is none.

    `eos` is the EOS token that the settings of the tokenizer name, if they do. In models for chats
    it may end turns only, so the usual names come first.
    """
    for name in (*END_TOKENS, *([eos] if eos else [])):
        number = tokenizer.token_to_id(name)
        if number is not None:
            return int(number)
    raise InputError(
        "InvalidSpec",
        "the tokenizer has no token that ends a document",
        field=FIELD,
        remedy="add one of " + ", ".join(END_TOKENS),
    )


def is_unmarked_end_token(token: AddedToken) -> bool:
    """Return True for a token that ends texts and is not marked as special.

    `</s>` of Phi-3 is such a token.
    """
    return not token.special and token.content in END_TOKENS


def is_unmarked_control_token(token: AddedToken) -> bool:
    """Return True for a token that ends texts or strips white space, and is not special."""
    return is_unmarked_end_token(token) or (not token.special and (token.lstrip or token.rstrip))


def has_added_token(tokenizer: Tokenizer, is_wanted: Callable[[AddedToken], bool]) -> bool:
    """Return True if the tokenizer has such an added token."""
    return any(map(is_wanted, tokenizer.get_added_tokens_decoder().values()))


def with_special_tokens(
    tokenizer: Tokenizer, is_special: Callable[[AddedToken], bool]
) -> Tokenizer:
    """Return a tokenizer in which these added tokens are special, too."""
    if not has_added_token(tokenizer, is_special):
        return tokenizer
    added = tokenizer.get_added_tokens_decoder()
    described = json.loads(tokenizer.to_str())
    for entry in described["added_tokens"]:
        entry["special"] |= is_special(added[entry["id"]])
    return Tokenizer.from_str(json.dumps(described))


def _splits_as_gpt2(tokenizer: Tokenizer) -> bool:
    """Return True for byte-level BPE whose tokens never reach over white space, as those of GPT-2.

    Those that `train_bpe` makes are such tokenizers. Nothing but special tokens, which `Encoder`
    never recognizes in a text, is looked for before a text is split, and no template adds to it.
    """
    splits, template = tokenizer.pre_tokenizer, tokenizer.post_processor
    return (
        isinstance(tokenizer.model, models.BPE)
        and not tokenizer.model.dropout
        and tokenizer.normalizer is None
        and (template is None or isinstance(template, processors.ByteLevel))
        and isinstance(splits, pre_tokenizers.ByteLevel)
        and bool(splits.use_regex)
        and not splits.add_prefix_space
        and all(added.special for added in tokenizer.get_added_tokens_decoder().values())
    )


class Encoder:
    """Text to token ids. Control tokens spelled in a text are encoded as plain text.

    With a tokenizer that splits text as GPT-2 does, each distinct run of text is encoded once.
    Natural text repeats itself, so looking up runs is about five times faster than encoding whole
    documents. The result is equal, because tokens never cross the boundary of a run. Other
    tokenizers may join runs.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        by_pieces: bool | None = None,
        first: Sequence[int] = (),
        end: int | None = None,
    ) -> None:
        """Encode with `first` before each document, and `end` or the usual end token after it.

        `by_pieces` None: as the tokenizer allows.
        """
        self._tokenizer = with_special_tokens(tokenizer, is_unmarked_control_token)
        self._tokenizer.encode_special_tokens = True
        self._by_pieces = _splits_as_gpt2(self._tokenizer) if by_pieces is None else by_pieces
        self._known: dict[str, bytes] = {}
        self._first = _packed(first)
        self._end = _packed([end_token(tokenizer) if end is None else end])

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of one document, with BOS first if it has one, and the end token last."""
        if self._by_pieces:
            pieces = _PIECE.findall(text)
            self._learn(pieces)
            ids = b"".join(map(self._known.__getitem__, pieces))
        else:
            [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
            ids = _packed(encoding.ids)
        return np.frombuffer(self._first + ids + self._end, np.uint32)

    def _learn(self, pieces: list[str]) -> None:
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        new = list(set(pieces).difference(self._known))
        for piece, encoding in zip(
            new, self._tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True
        ):
            self._known[piece] = _packed(encoding.ids)


def _packed(ids: Sequence[int]) -> bytes:
    return np.array(ids, np.uint32).tobytes()
