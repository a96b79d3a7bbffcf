"""An evaluation sees every held-out target once, or the same part of them each time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_trainer.data.mixture import SourceMixture, open_mixture
from llmtrain_trainer.data.prepared import PreparedData
from llmtrain_trainer.data.shards import TokenStream, write_shards
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.runtime.ignore_index import IGNORE_INDEX

pytestmark = pytest.mark.torch  # batches are tensors

VOCAB = 40_000


def sources(folder: Path, sizes: list[int]) -> SourceMixture:
    """Sources whose tokens say where they are: the source above, the place below."""
    names = [f"s{index}" for index in range(len(sizes))]
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        (folder / name).mkdir()
        ids = np.arange(size, dtype=np.uint32) + 1000 * index
        write_shards(folder / name, "held-out", [ids], VOCAB)
    data = PreparedData(folder, 0, sum(sizes), "digest", tuple((name, 1.0) for name in names))
    return open_mixture(data, "held-out", VOCAB)


def targets(
    mixture: SourceMixture, length: int, limit: int, ranks: int, local: int, micro: int
) -> list[int]:
    """Return the targets that all data ranks see, after checks of what each of them gets."""
    from llmtrain_trainer.data.held_out import DataShare, HeldOutSequences

    chosen = HeldOutSequences(mixture, length, limit)
    shares = [DataShare(rank, ranks, local, micro) for rank in range(ranks)]
    found: list[int] = []
    for batches in zip(*(chosen.batches(share) for share in shares), strict=True):
        rows = {len(batch.tokens) for batch in batches}
        assert len(rows) == 1 and rows.pop() in range(micro, local + 1, micro)
        for batch in batches:
            for row, ahead, source in zip(batch.tokens, batch.targets, batch.sources, strict=True):
                real = ahead != IGNORE_INDEX
                assert (row[real] + 1 == ahead[real]).all()
                assert (ahead[real] // 1000 == source).all()
                assert real.any() == (source < len(mixture.streams))
                found += ahead[real].tolist()
    assert len(found) == sum(chosen.loss_tokens)
    return found


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=4).filter(lambda sizes: max(sizes) > 1),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
)
def test_every_target_is_seen_once_by_any_ranks_in_any_batches(
    sizes: list[int], length: int, ranks: int, micro: int, accumulation: int
) -> None:
    """Sources may be shorter than a sequence; only the first token of each is no target."""
    with tempfile.TemporaryDirectory() as folder:
        mixture = sources(Path(folder), sizes)
        found = targets(mixture, length, 1000, ranks, micro * accumulation, micro)
    assert sorted(found) == [
        1000 * source + place for source, size in enumerate(sizes) for place in range(1, size)
    ]


def test_a_part_is_bounded_by_its_tokens_and_the_same_for_every_batch(tmp_path: Path) -> None:
    sizes, length, limit = [900, 300, 3, 600], 10, 250
    mixture = sources(tmp_path, sizes)
    found = targets(mixture, length, limit, 1, 4, 2)
    for ranks, local, micro in ((2, 4, 1), (3, 2, 2), (4, 8, 4)):
        assert sorted(targets(mixture, length, limit, ranks, local, micro)) == sorted(found)
    assert len(set(found)) == len(found) and limit - 40 <= len(found) <= limit
    counts = [sum(target // 1000 == source for target in found) for source in range(4)]
    assert counts[2] == 2  # a source that is small has a sequence, too
    assert counts[0] == pytest.approx(3 * counts[1], abs=20)
    first = [target for target in found if target < 1000]
    assert first[0] < 30 and first[-1] > 800  # from all over the source


def test_the_part_of_examples_is_bounded_by_their_tokens_not_by_their_padding(
    tmp_path: Path,
) -> None:
    from llmtrain_trainer.data.examples import COUNTED, FIRST
    from llmtrain_trainer.data.held_out import HeldOutSequences

    example = np.array([1 | FIRST, 2, 3 | COUNTED, 4 | COUNTED], np.uint32)
    write_shards(tmp_path, "held-out", [example] * 100, 1 << 32)
    data = PreparedData(tmp_path, 0, 400, "digest", examples=True)
    mixture = open_mixture(data, "held-out", VOCAB)
    chosen = HeldOutSequences(mixture, 64, 100)
    assert (chosen.counts, chosen.loss_tokens) == ([25], [50])
    assert HeldOutSequences(mixture, 64, 400).counts == [100]


def test_nothing_to_evaluate_is_an_error(tmp_path: Path) -> None:
    from llmtrain_trainer.data.held_out import HeldOutSequences

    with pytest.raises(InputError, match="no held-out token") as caught:
        HeldOutSequences(sources(tmp_path, [1, 1]), 8, 100)
    assert caught.value.reason == "CorpusTooSmall" and caught.value.remedy


def test_training_reads_whole_sequences_only(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", [np.arange(28, dtype=np.uint32)], VOCAB)
    stream = TokenStream(tmp_path, "train", VOCAB)
    assert (stream.windows(9), stream.windows(10), stream.sequences(10)) == (3, 2, 3)
    assert stream.window(2, 9)[1].tolist() == list(range(19, 28))
