"""The third stage, by unit: the documents that stay become tokens."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from llmtrain_trainer.data import collect, select
from llmtrain_trainer.data.plan import Unit
from llmtrain_trainer.data.shards import token_type
from llmtrain_trainer.data.tokens import Encoder
from llmtrain_trainer.data.workspace import Workspace

STAGE = "tokens"

PARTS = {"train": select.TRAIN, "held-out": select.HELD_OUT}
"""Name of a part to the fate of its documents."""


def load_encoder(work: Workspace) -> Encoder:
    """Return the encoder of the tokenizer that `select` wrote."""
    tokenizer = Tokenizer.from_file(str(work.tokenizer))
    return Encoder(tokenizer, by_pieces=work.plan.tokenizer is None)


def encode(work: Workspace, unit: Unit, encoder: Encoder) -> None:
    """Write a unit's tokens, one file per part, and how many there are."""
    dtype = token_type(work.plan.config.vocab_size)
    texts = work.file(collect.STAGE, unit.number, ".jsonl")
    fates = np.load(work.file(select.STAGE, unit.number, ".npy"))
    counts: dict[str, int] = {}
    for part, fate in PARTS.items():
        path = work.file(STAGE, unit.number, f".{part}.bin")
        with work.draft(path) as draft, draft.open("wb") as file:
            for text, met in zip(collect.clean_texts(texts), fates, strict=True):
                if met == fate:
                    file.write(encoder.encode(text).astype(dtype).tobytes())
            counts[part] = file.tell() // dtype.itemsize
    work.write_json(work.file(STAGE, unit.number, ".json"), counts)
