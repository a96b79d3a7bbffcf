"""Training reads the mix that was asked for, on any number of ranks, and never damaged tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.mixture import ROUND, SourceMixture, open_mixture
from llmtrain_trainer.data.preparation.manifest_plan import plan_preparation
from llmtrain_trainer.data.preparation.run import run_share
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.prepared import PreparedData, load, verify
from llmtrain_trainer.data.shards import BLOCK, TokenStream, write_shards
from llmtrain_trainer.errors import InputError

pytestmark = pytest.mark.torch  # batches are tensors

WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=64)


@settings(max_examples=50)
@given(WEIGHTS, st.integers(0, 10**9))
def test_every_source_has_its_share_of_any_stretch(weights: list[float], start: int) -> None:
    """To within a few sequences, and every one of its sequences once, in order.

    Of every other source one turn more or less may fall into the stretch, and another one where
    many of them come at the same place; those turns are taken from all sources by weight.
    """
    mixture = SourceMixture.of([], weights)
    drawn = [mixture.draw(start + offset) for offset in range(500)]
    for source, weight in enumerate(weights):
        mine = [number for owner, number in drawn if owner == source]
        assert mine == list(range(mine[0], mine[0] + len(mine))) if mine else True
        part = weight / sum(weights)
        assert abs(len(mine) - 500 * part) <= 2 + len(weights) * (500 / ROUND + part)
    assert SourceMixture.of([], weights).draw(start) == drawn[0]


def three(folder: Path) -> PreparedData:
    """Sources whose tokens say where they are: the source above, the place below."""
    for index, (name, count) in enumerate((("a", 900), ("b", 300), ("c", 2100))):
        (folder / name).mkdir()
        ids = np.arange(count, dtype=np.uint32) + 10_000 * index
        write_shards(folder / name, "train", [ids], 40_000, limit=250)
        write_shards(folder / name, "held-out", [ids[:200]], 40_000, limit=250)
    return PreparedData(folder, 3300, 600, "digest", (("a", 1.0), ("b", 2.0), ("c", 5.0)))


def test_batches_follow_the_weights_and_resume_on_other_ranks(tmp_path: Path) -> None:
    import torch

    from llmtrain_trainer.data.batches import BatchShard, TrainingBatches

    mixture = open_mixture(three(tmp_path), "train", 40_000)
    whole = TrainingBatches(mixture, 10, 5, BatchShard(8, 0, 1))
    rows = torch.cat([whole.at(8 * step)[0] for step in range(100)])
    owners = (rows[:, 0] // 10_000).bincount().tolist()
    assert owners == [100, 200, 500]
    assert torch.equal(rows[:, 1:], rows[:, :-1] + 1)
    b = rows[rows[:, 0] // 10_000 == 1][:, 0]
    assert len(set(b[:29].tolist())) == 29 and set(b.tolist()) == set(b[:29].tolist())
    for count in (2, 4, 8):
        fresh = [
            TrainingBatches(mixture, 10, 5, BatchShard(8, rank, count)) for rank in range(count)
        ]
        assert torch.equal(torch.cat([each.at(8 * 63)[0] for each in fresh]), rows[63 * 8 : 64 * 8])


def test_a_source_shorter_than_a_sequence_is_refused(tmp_path: Path) -> None:
    from llmtrain_trainer.data.batches import BatchShard, TrainingBatches

    mixture = open_mixture(three(tmp_path), "train", 40_000)
    with pytest.raises(InputError, match="300 tokens, less than one sequence of 500") as caught:
        TrainingBatches(mixture, 500, 5, BatchShard(8, 0, 1))
    assert caught.value.remedy


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "bit":
            content[BLOCK + 7] ^= 4
        case "short":
            del content[-2:]
        case "long":
            content += b"\0\0"
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["bit", "short", "long", "gone", "checksums"])
def test_a_damaged_shard_is_never_read(tmp_path: Path, how: str) -> None:
    ids = np.random.default_rng(0).integers(0, 300, BLOCK * 2).astype(np.uint32)
    write_shards(tmp_path, "train", [ids], 300, limit=BLOCK)
    path = tmp_path / "train-00000.bin"
    stream = TokenStream(tmp_path, "train", 300)
    assert stream.read(0, len(stream)).tolist() == ids.tolist()
    if how == "gone":
        path.unlink()
    elif how == "checksums":
        path.with_suffix(".json").write_text("{")
    else:
        damage(path, how)
    with pytest.raises(InputError, match=str(path.stem)) as caught:
        stream = TokenStream(tmp_path, "train", 300)
        assert stream.read(0, 9).tolist() == ids[:9].tolist()  # another block, not damaged
        stream.read(BLOCK // 2 - 5, 10)
    assert caught.value.reason == "CorpusCorrupt" and caught.value.remedy


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, "train", [np.array([1, 2, 299], np.uint32)], 300)
    stream = TokenStream(tmp_path, "train", 299)
    assert stream.read(0, 2).tolist() == [1, 2]
    with pytest.raises(InputError, match="token 299 of a vocabulary of 299"):
        stream.read(0, 3)


def test_verifying_and_loading_name_the_damaged_file(speeches: list[Path], tmp_path: Path) -> None:
    config = DataConfig((Source("s", f"file://{speeches[0].parent}", "s"),), 0.1, 600, 1)
    run_share(Workspace(plan_preparation(config), tmp_path))
    assert verify(tmp_path) == 2
    path = tmp_path / "s" / "train-00000.bin"
    damage(path, "bit")
    load(tmp_path, 600, 64, "f")
    with pytest.raises(InputError, match=str(path)):
        verify(tmp_path)
    damage(path, "short")
    with pytest.raises(InputError, match=str(path)):
        load(tmp_path, 600, 64, "f")
