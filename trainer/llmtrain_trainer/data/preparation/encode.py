"""Third stage, per unit: encode the kept documents as tokens."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from llmtrain_trainer.data.examples import ExampleEncoder
from llmtrain_trainer.data.preparation import dedup_split, extract
from llmtrain_trainer.data.preparation.manifest_plan import Unit
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.tokenizer import FIELD, Encoder, cpu_limit, is_panic
from llmtrain_trainer.errors import InputError

STAGE = "tokens"

PARTS = {"train": dedup_split.TRAIN, "held-out": dedup_split.HELD_OUT}
"""Name of a part -> outcome of its documents."""


def load_encoder(work: Workspace) -> Encoder | ExampleEncoder:
    """Return the encoder of the tokenizer that `select_documents` wrote."""
    tokenizer = Tokenizer.from_file(str(work.tokenizer))
    chat, template = work.plan.config.chat, work.plan.template
    by_pieces = work.plan.tokenizer is None
    if chat is None or template is None:
        return Encoder(tokenizer, by_pieces)
    return ExampleEncoder(tokenizer, template, chat.max_length, by_pieces)


def encode_unit(work: Workspace, unit: Unit, encoder: Encoder | ExampleEncoder) -> None:
    """Write the tokens of a unit, one file per part, and their counts."""
    dtype = work.plan.token_type
    texts = work.file(extract.STAGE, unit.number, ".jsonl")
    outcomes = np.load(work.file(dedup_split.STAGE, unit.number, ".npy"))
    counts: dict[str, int] = {}
    for part, wanted in PARTS.items():
        path = work.file(STAGE, unit.number, f".{part}.bin")
        with work.draft(path) as draft, draft.open("wb") as file:
            documents = extract.clean_documents(texts)
            for (name, text), outcome in zip(documents, outcomes, strict=True):
                if outcome == wanted:
                    ids = _ids(encoder, name, text, work.plan.tokenizer)
                    file.write(ids.astype(dtype).tobytes())
            counts[part] = file.tell() // dtype.itemsize
    work.write_json(work.file(STAGE, unit.number, ".json"), counts)


def _ids(
    encoder: Encoder | ExampleEncoder, name: str, text: str, tokenizer: Path | None
) -> npt.NDArray[np.uint32]:
    """Encode a document. `tokenizer` is the file of a tokenizer that was not trained here."""
    with nullcontext() if tokenizer is None else cpu_limit(len(text)):
        try:
            if isinstance(encoder, ExampleEncoder):
                return encoder.encode(name, text)
            return encoder.encode(text)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise InputError(
                "InvalidSpec",
                f"{tokenizer}: encoding {name} fails: {str(error)[:300]}",
                field=FIELD,
                remedy="use a tokenizer from a source that you trust",
            ) from error
