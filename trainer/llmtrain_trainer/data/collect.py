"""The first stage, by unit: read, normalise, filter, and note what duplicates are found by."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain_trainer.config import Source
from llmtrain_trainer.data.documents import Document
from llmtrain_trainer.data.duplicates import BANDS, band_hashes
from llmtrain_trainer.data.plan import Unit
from llmtrain_trainer.data.quality import gopher
from llmtrain_trainer.data.readers import read
from llmtrain_trainer.data.text import content_key, normalise, normalise_code
from llmtrain_trainer.data.workspace import Workspace

STAGE = "clean"

FACTS = np.dtype(
    [("held_out", "<u8"), ("choice", "<u8"), ("length", "<i8"), ("bands", "<u8", (BANDS,))]
)
"""What is noted of a document: both halves of its content key, characters, band hashes."""


def collect(work: Workspace, unit: Unit) -> None:
    """Write a unit's clean documents, their facts and its counts, the counts last."""
    source = work.plan.sources[unit.source]
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    facts: list[tuple[int, int, int, Any]] = []
    with (
        work.draft(work.file(STAGE, unit.number, ".jsonl")) as draft,
        draft.open("w", encoding="utf-8") as file,
    ):
        for document in (document for each in unit.files for document in read(each)):
            counts["read"] += 1
            _fold(digest, document)
            text = clean(document.text, unit.files[0].format)
            broken = "empty" if not text else rule_broken(text, source, unit.files[0].format)
            if broken:
                counts[broken] += 1
                continue
            file.write(json.dumps([document.name, text], ensure_ascii=False) + "\n")
            key = content_key(text, work.plan.config.seed)
            halves = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
            facts.append((*halves, len(text), band_hashes(text)))
    with work.draft(work.file(STAGE, unit.number, ".npy")) as draft, draft.open("wb") as binary:
        np.save(binary, np.array(facts, FACTS))
    work.write_json(
        work.file(STAGE, unit.number, ".json"), {"counts": counts, "digest": digest.hexdigest()}
    )


def _fold(digest: Any, document: Document) -> None:
    for part in (document.name, document.text):
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())


def clean(text: str, kind: str) -> str:
    """Normalise text as suits its format."""
    return normalise_code(text) if kind == "code" else normalise(text)


def rule_broken(text: str, source: Source, kind: str) -> str | None:
    """Return the rule by which a source's filter drops a document."""
    wanted = source.filter == "gopher" or (source.filter == "auto" and kind == "warc")
    return gopher(text) if wanted else None


def clean_texts(path: Path) -> Iterator[str]:
    """Yield the texts that `collect` wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)[1]
