"""The text that is trained on, from the tokens that the loader yields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders

from llmtrain_trainer.data.batches import BatchShard, TrainingBatches
from llmtrain_trainer.data.held_out import DataShare, HeldOutSequences
from llmtrain_trainer.data.mixture import open_mixture
from llmtrain_trainer.data.prepared import (
    HELD_OUT,
    TRAIN,
    PreparedData,
    end_of_documents,
    tokenizer_of,
)
from llmtrain_trainer.data.tokenizer import open_tokenizer
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX

Ids = npt.NDArray[np.int64]

_BATCH = 4


def tokenizer_for(data: PreparedData) -> Tokenizer:
    """Return the tokenizer of prepared data."""
    path = tokenizer_of(data.folder)
    assert path is not None
    return open_tokenizer(path)


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of tokens, special ones included.

    The byte-level decoder of the library takes the letters of added tokens for bytes. So it does
    not get them: DeepSeek has some such as `ö`.
    """
    added = tokenizer.get_added_tokens_decoder()
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))
    return "".join(
        "".join(str(added[number].content) for number in run)
        if is_added
        else str(tokenizer.decode(list(run), skip_special_tokens=False))
        for is_added, run in groupby(ids, added.__contains__)
    )


@dataclass(frozen=True)
class TrainedDocuments:
    """The documents of a source of running text."""

    train: list[str]
    held_out: list[str]
    rest: int
    """Tokens at the end of the source that are in no sequence."""


def trained_documents(data: PreparedData, vocab_size: int, length: int) -> TrainedDocuments:
    """Read all sequences of one epoch and of an evaluation, and divide them into documents.

    The last document of training may be cut at the end of the last sequence.
    """
    tokenizer, end = tokenizer_for(data), end_of_documents(data)
    mixture = open_mixture(data, TRAIN, vocab_size)
    (stream,) = mixture.streams
    batches = TrainingBatches(mixture, length, 1, BatchShard(1, 0, 1))
    count = stream.windows(length)
    yielded = [
        np.concatenate([part[0].numpy() for part in batches.at(number)]) for number in range(count)
    ]
    in_order = [stream.window(number, length) for number in range(count)]
    # an epoch has every sequence once, in another order
    assert sorted(map(bytes, yielded)) == sorted(bytes(np.concatenate(each)) for each in in_order)
    for (_, targets), (tokens, _) in pairwise(in_order):
        assert targets[-1] == tokens[0]
    train = np.concatenate([*(tokens for tokens, _ in in_order), in_order[-1][1][-1:]])
    held_out = _held_out_tokens(data, vocab_size, length)
    return TrainedDocuments(
        [decoded(tokenizer, each) for each in _documents(train, end, data.first)],
        [decoded(tokenizer, each) for each in _documents(held_out, end, data.first)],
        len(stream) - len(train),
    )


def _held_out_tokens(data: PreparedData, vocab_size: int, length: int) -> Ids:
    """Return the held-out tokens in order: every one but the first is a target once."""
    parts: list[Ids] = []
    for tokens, targets in _held_out_rows(data, vocab_size, length):
        real = targets != IGNORE_INDEX
        parts += [tokens[real] if not parts else tokens[real][1:], targets[real][-1:]]
    return np.concatenate(parts)


def _held_out_rows(data: PreparedData, vocab_size: int, length: int) -> Iterator[tuple[Ids, Ids]]:
    mixture = open_mixture(data, HELD_OUT, vocab_size)
    sequences = HeldOutSequences(mixture, length, 1 << 60)
    for batch in sequences.batches(DataShare(0, 1, _BATCH, 1)):
        for row in range(len(batch.tokens)):
            if int(batch.sources[row]) < len(mixture.streams):
                yield batch.tokens[row].numpy(), batch.targets[row].numpy()


def _documents(ids: Ids, end: int, first: Sequence[int]) -> Iterator[list[int]]:
    """Yield the documents of a stream without their first and end tokens, and what follows."""
    rest = ids.tolist()
    while rest:
        assert tuple(rest[: len(first)]) == tuple(first)[: len(rest)]
        start = place = len(first)
        while place < len(rest) and not _ends(rest, place, end, first):
            place += 1
        yield rest[start:place]
        rest = rest[place + 1 :]


def _ends(ids: Sequence[int], place: int, end: int, first: Sequence[int]) -> bool:
    """Return True for an end token that the first tokens of the next document follow, if any."""
    following = tuple(ids[place + 1 : place + 1 + len(first)])
    return ids[place] == end and following == tuple(first)[: len(following)]


@dataclass(frozen=True)
class TrainedExample:
    """A conversation as it is trained on."""

    text: str
    """The inputs, and the last target if it is in the loss."""
    learned: list[str]
    """The text of each run of targets in the loss."""


def trained_examples(data: PreparedData, vocab_size: int, length: int) -> list[TrainedExample]:
    """Read all packed examples of one epoch, then those of an evaluation."""
    tokenizer = tokenizer_for(data)
    mixture = open_mixture(data, TRAIN, vocab_size, length)
    batches = TrainingBatches(mixture, length, 1, BatchShard(1, 0, 1))
    found = []
    for number in range(mixture.streams[0].windows(length)):
        tokens, targets = (part[0].numpy() for part in batches.at(number))
        start = 0
        for count in batches.own_document_lengths(number)[0]:
            part = slice(start, start + count)
            found.append(_example(tokenizer, tokens[part], targets[part]))
            start += count
        assert (targets[start:] == IGNORE_INDEX).all()
    held_out = open_mixture(data, HELD_OUT, vocab_size).streams[0]
    for number, (tokens, targets) in enumerate(_held_out_rows(data, vocab_size, length)):
        count = held_out.real_tokens(number, length)
        found.append(_example(tokenizer, tokens[:count], targets[:count]))
    return found


def _example(tokenizer: Tokenizer, tokens: Ids, targets: Ids) -> TrainedExample:
    in_loss = targets != IGNORE_INDEX
    last = targets[-1:][in_loss[-1:]]
    runs = np.split(np.arange(len(targets)), np.flatnonzero(np.diff(in_loss)) + 1)
    learned = [decoded(tokenizer, targets[run].tolist()) for run in runs if in_loss[run[0]]]
    return TrainedExample(decoded(tokenizer, [*tokens, *last]), learned)
