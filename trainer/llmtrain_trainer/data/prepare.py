"""The data step: from the job's sources to packed shards in the pod's work folder, once per pod."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmtrain_trainer.config import DataConfig
from llmtrain_trainer.data.shards import write_shards
from llmtrain_trainer.data.sources import Document, read_source
from llmtrain_trainer.data.text import Split, hold_out, normalise
from llmtrain_trainer.data.tokens import Encoder, train_bpe
from llmtrain_trainer.errors import InputError

FORMAT = 1
"""Raised whenever the same input would be prepared differently."""

TRAIN, HELD_OUT = "train", "held-out"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Where the shards are and how much is in them."""

    folder: Path
    train_tokens: int
    held_out_tokens: int
    digest: str
    """Hash of the sources' content and of everything that shaped the tokens."""


def prepare(config: DataConfig, sequence: int, work_dir: Path) -> PreparedData:
    """Prepare the data, or find it prepared. Raises InputError where a source cannot be used."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The API treats sources as a map by name, so their order in the list must not matter.
    sources = sorted(config.sources, key=lambda source: source.name)
    documents = [document for source in sources for document in read_source(source)]
    digest = _digest(config, documents)
    root = work_dir / "data"
    root.mkdir(parents=True, exist_ok=True)
    folder = root / digest
    with _locked(root / f"{digest}.lock"):
        if not folder.exists():
            _write(config, sequence, documents, folder)
    return _describe(folder, digest)


def _digest(config: DataConfig, documents: list[Document]) -> str:
    shape = [FORMAT, config.vocab_size, config.held_out_fraction, config.seed]
    digest = hashlib.sha256(json.dumps(shape).encode())
    for document in documents:
        digest.update(hashlib.sha256(document.name.encode()).digest())
        digest.update(hashlib.sha256(document.text.encode()).digest())
    return digest.hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel gives back even when this process is killed."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(config: DataConfig, sequence: int, documents: list[Document], folder: Path) -> None:
    split = hold_out(
        (normalise(document.text) for document in documents), config.held_out_fraction, config.seed
    )
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    tokenizer = train_bpe(split.train, config.vocab_size)
    tokenizer.save(str(draft / "tokenizer.json"))
    counts = _encode(Encoder(tokenizer), split, config.vocab_size, draft)
    for name, count in counts.items():
        if count <= sequence:
            raise InputError(
                "CorpusTooSmall",
                f"the {name} part has {count} tokens, less than one sequence of {sequence}",
                field=config.sources[0].field,
                remedy="add text, or change data.heldOutFraction or the sequence length",
            )
    (draft / "manifest.json").write_text(json.dumps(counts))
    draft.rename(folder)  # a folder by its final name is complete


def _encode(encoder: Encoder, split: Split, vocab_size: int, folder: Path) -> dict[str, int]:
    parts = {TRAIN: split.train, HELD_OUT: split.held_out}
    return {
        name: write_shards(folder, name, map(encoder.encode, texts), vocab_size)
        for name, texts in parts.items()
    }


def _describe(folder: Path, digest: str) -> PreparedData:
    counts = json.loads((folder / "manifest.json").read_text())
    return PreparedData(folder, counts[TRAIN], counts[HELD_OUT], digest)
