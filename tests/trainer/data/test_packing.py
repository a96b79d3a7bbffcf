"""Packed examples: which share a sequence, and that nothing of them is lost or added."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_trainer.data.packing import example_numbers, pack

LENGTHS = st.lists(st.integers(1, 40), max_size=200)


@pytest.mark.unit
@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(20, 60))
def test_every_example_is_in_one_sequence_that_has_room_for_it(
    lengths: list[int], capacity: int
) -> None:
    order, ends = pack(np.array(lengths, np.int64), capacity)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    bins = [part.tolist() for part in np.split(order, ends[:-1])] if len(ends) else []
    filled = [sum(lengths[item] for item in each) for each in bins]
    for members, tokens in zip(bins, filled, strict=True):
        assert members and (tokens <= capacity or len(members) == 1)
    # otherwise the second of two would have gone into the first
    assert sum(tokens <= capacity // 2 for tokens in filled) <= 1
    again = pack(np.array(lengths, np.int64), capacity)
    assert all(np.array_equal(a, b) for a, b in zip((order, ends), again, strict=True))


@pytest.mark.unit
def test_the_fullest_sequence_with_room_is_taken() -> None:
    order, ends = pack(np.array([6, 3, 7, 4, 3, 1]), 10)
    assert [part.tolist() for part in np.split(order, ends[:-1])] == [[2, 1], [0, 3], [4, 5]]


@pytest.mark.unit
def test_padding_is_no_example() -> None:
    assert example_numbers((2, 1, 3), 8).tolist() == [0, 0, 1, 2, 2, 2, -1, -1]


@pytest.mark.torch
def test_a_sequence_has_the_tokens_and_targets_of_its_examples(tmp_path: Path) -> None:
    """Across shards, and no target of an example is a token of the next."""
    from llmtrain_trainer.data.batches import BatchShard, TrainingBatches
    from llmtrain_trainer.data.examples import ExampleStream
    from llmtrain_trainer.data.mixture import open_mixture
    from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX
    from tests.support.trainer.example_data import random_examples

    lengths = np.random.default_rng(3).integers(2, 18, 60).tolist()
    data = random_examples(tmp_path, lengths)
    alone = ExampleStream(tmp_path, "train", 320)
    mixture = open_mixture(data, "train", 320, packed_length=16)
    (packed,) = mixture.streams
    expected, found = [], []
    for number in range(alone.windows(16)):
        count = alone.real_tokens(number, 16)
        tokens, targets = (part[:count].tolist() for part in alone.window(number, 16))
        expected.append((tokens, targets))
    for number in range(packed.windows(16)):
        tokens, targets = packed.window(number, 16)
        start = 0
        for count in packed.document_lengths(number, 16):
            part = slice(start, start + count)
            found.append((tokens[part].tolist(), targets[part].tolist()))
            start += count
        assert start == packed.real_tokens(number, 16) <= 16
        assert not tokens[start:].any() and (targets[start:] == IGNORE_INDEX).all()
        assert packed.loss_tokens(number, 16) == (targets != IGNORE_INDEX).sum()
        lengths_here = packed.document_lengths(number, 16)
        squares = sum(each * each for each in lengths_here)
        assert packed.document_totals(number, 16) == (len(lengths_here), start, squares)
    assert sorted(found) == sorted(expected)
    assert packed.windows(16) < 0.7 * len(lengths) and len(packed) == len(alone)

    # data ranks together read what one reads, and one epoch has every example once
    whole = TrainingBatches(mixture, 16, 1, BatchShard(4, 0, 1))
    halves = [TrainingBatches(mixture, 16, 1, BatchShard(4, rank, 2)) for rank in range(2)]
    rows = [each for part in halves for each in part.at(8)[0].tolist()]
    assert rows == whole.at(8)[0].tolist()
    owned = [each for part in halves for each in part.own_document_lengths(8)]
    assert owned == whole.own_document_lengths(8)
    flat = [length for each in owned for length in each]
    totals = len(flat), sum(flat), sum(length**2 for length in flat)
    assert [each.document_totals(8) for each in (whole, *halves)] == [totals] * 3
    epoch = TrainingBatches(mixture, 16, 1, BatchShard(packed.windows(16), 0, 1))
    read = [length for each in epoch.own_document_lengths(0) for length in each]
    assert sorted(read) == sorted(length - 1 for length in lengths)


@pytest.mark.torch
def test_an_example_that_is_too_long_for_the_model_is_refused(tmp_path: Path) -> None:
    from llmtrain_trainer.data.mixture import open_mixture
    from llmtrain_trainer.errors import InputError
    from tests.support.trainer.example_data import random_examples

    data = random_examples(tmp_path, [4, 18, 5])
    (packed,) = open_mixture(data, "train", 320, packed_length=16).streams
    with pytest.raises(InputError, match="example 1 is not one of this model's") as caught:
        for number in range(packed.windows(16)):
            packed.window(number, 16)
    assert caught.value.reason == "CorpusCorrupt"
