"""Sequences of prepared text are divided where their documents were divided."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from llmtrain_trainer.config import DataConfig, Source
from llmtrain_trainer.data.prepare import prepare
from llmtrain_trainer.data.tokenizer import END_OF_TEXT, train_bpe
from llmtrain_trainer.job_spec import from_spec
from tests.support.trainer.jobs import job_spec

pytestmark = pytest.mark.torch

FINISH, BEGIN = "<|finish|>", "<|begin|>"
TEXTS = [f"{'say hi, and be brief ' * (number % 3 + 1)}{number}" for number in range(16)]


@pytest.mark.parametrize("bos", [None, BEGIN, FINISH])
def test_documents_end_where_the_tokenizer_of_the_model_ends_them(
    bos: str | None, tmp_path: Path
) -> None:
    """Its settings may name a token of any name, and the one that also begins a text."""
    import torch

    from llmtrain_trainer.data.batches import BatchShard
    from llmtrain_trainer.data.shards import TokenStream
    from llmtrain_trainer.training.training_data import TrainingData

    made = train_bpe(TEXTS, 310, [BEGIN]).to_str().replace(END_OF_TEXT, FINISH)
    (tmp_path / "tokenizer.json").write_text(made)
    settings = {"eos_token": FINISH, "bos_token": bos, "add_bos_token": bos is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "text").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    source = Source("text", (tmp_path / "text").as_uri(), "field", near_duplicates="keep")
    uri = (tmp_path / "tokenizer.json").as_uri()
    data = prepare(DataConfig((source,), 0.25, 320, 3, tokenizer=uri), 16, tmp_path / "work")

    stream = TokenStream(data.folder / "text", "train", 320)
    tokens = stream.read(0, len(stream)).tolist()
    tokenizer, starts = Tokenizer.from_str(made), [0]
    around = "{}" if bos is None else f"{bos}{{}}"
    encoded = [tokenizer.encode(f"{around.format(text)}{FINISH}").ids for text in TEXTS]
    while starts[-1] < len(tokens):
        rest = tokens[starts[-1] :]
        (found,) = [each for each in encoded if rest[: len(each)] == each]
        starts.append(starts[-1] + len(found))
    assert len(starts) > 8

    spec = job_spec()
    spec["data"]["attention"] = "document"
    cpu, alone = torch.device("cpu"), BatchShard(1, 0, 1)
    training = TrainingData(from_spec("test", spec), data, cpu, alone)
    for window in range(stream.windows(16)):
        inputs, _ = stream.window(window, 16)
        numbers = training.running_text(torch.from_numpy(inputs)[None]).documents
        assert numbers is not None
        places = np.arange(16 * window, 16 * window + 16)
        expected = np.searchsorted(starts, places, side="right")
        assert numbers[0].tolist() == (expected - expected[0]).tolist()
