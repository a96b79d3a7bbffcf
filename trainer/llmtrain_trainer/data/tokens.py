"""Byte-level BPE (Sennrich et al., arXiv:1508.07909; byte level as in GPT-2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmtrain_trainer.data.text import sample
from llmtrain_trainer.errors import InputError

END = "<|endoftext|>"
"""Ends every document; token 0."""

SMALLEST = 257
"""One token per byte, and END."""

_PIECE = re.compile(r"\s*\S+|\s+")
"""Runs that byte-level pre-tokenisation never joins: white space and what follows it."""


def train_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a vocabulary of at most `vocab_size` tokens; deterministic.

    Merges of a small vocabulary are settled by a small share of the text: at most 4 MiB, or 2 KiB
    per token where that is more, is looked at.
    """
    if vocab_size < SMALLEST:
        raise InputError(
            "InvalidSpec",
            f"a byte-level vocabulary has at least {SMALLEST} tokens, not {vocab_size}",
            field="spec.model.architecture.vocabSize",
            remedy=f"use {SMALLEST} or more",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    limit = max(4 << 20, vocab_size * 2048)
    tokenizer.train_from_iterator(sample(texts, limit), trainer)
    return tokenizer


class Encoder:
    """Text to token ids, each distinct piece of text encoded once.

    Natural text repeats itself: looking up pieces is about five times faster than encoding whole
    documents, and equal to it, since tokens never cross the border of a piece.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self._end = tokenizer.token_to_id(END)

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """Read a tokenizer that `train_bpe` made and saved."""
        return cls(Tokenizer.from_file(str(path)))

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Return one document's ids, END last."""
        pieces = _PIECE.findall(text)
        self._learn(pieces)
        ids = chain.from_iterable(map(self._known.__getitem__, pieces))
        return np.fromiter(chain(ids, (self._end,)), dtype=np.uint32)

    def _learn(self, pieces: list[str]) -> None:
        new = list(set(pieces).difference(self._known))
        for piece, encoding in zip(
            new, self._tokenizer.encode_batch_fast(new, add_special_tokens=False), strict=True
        ):
            self._known[piece] = tuple(encoding.ids)
