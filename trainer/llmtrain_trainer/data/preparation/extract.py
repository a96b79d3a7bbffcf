"""First stage, per unit: read, normalize, filter, and compute the keys for deduplication."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain_trainer.config import Source
from llmtrain_trainer.data.conversations import contents, prompt_of
from llmtrain_trainer.data.documents import Document, ReadReport
from llmtrain_trainer.data.preparation.languages import language_of
from llmtrain_trainer.data.preparation.manifest_plan import Unit
from llmtrain_trainer.data.preparation.minhash import BANDS, band_hashes, rows_for
from llmtrain_trainer.data.preparation.quality import gopher
from llmtrain_trainer.data.preparation.workspace import Workspace
from llmtrain_trainer.data.readers import read
from llmtrain_trainer.data.text import apply_cleaning, content_key, normalize

STAGE = "clean"

FACTS = np.dtype(
    [("held_out", "<u8"), ("choice", "<u8"), ("length", "<i8"), ("bands", "<u8", (BANDS,))]
)
"""The record of a document: both halves of its content key, characters, band hashes."""


def extract_unit(work: Workspace, unit: Unit) -> None:
    """Write the clean documents of a unit, their records, and its counts last."""
    source = work.plan.sources[unit.source]
    counts: Counter[str] = Counter()
    report = ReadReport()
    digest = hashlib.sha256()
    facts: list[tuple[int, int, int, Any]] = []
    with (
        work.draft(work.file(STAGE, unit.number, ".jsonl")) as draft,
        draft.open("w", encoding="utf-8", errors="replace") as file,  # for names
    ):
        documents = ((each, document) for each in unit.files for document in read(each, report))
        for origin, document in documents:
            counts["read"] += 1
            _fold(digest, document)
            kind = "chat" if source.format == "chat" else document.format or origin.format
            text = clean(document.text, source, kind)
            violation = "empty" if not text.strip() else violated_rule(text, source, kind, report)
            if violation:
                counts[violation] += 1
                continue
            if replaced := text.count("\ufffd"):
                report.undecoded.add("U+FFFD", f"{document.name}: {replaced} characters")
            file.write(json.dumps([document.name, text], ensure_ascii=False) + "\n")
            facts.append(_facts(text, kind, source, work.plan.config.seed))
    counts["read"] += report.dropped.counts.total()
    counts.update({f"row: {kind}": count for kind, count in report.dropped.counts.items()})
    with work.draft(work.file(STAGE, unit.number, ".npy")) as draft, draft.open("wb") as binary:
        np.save(binary, np.array(facts, FACTS))
    work.write_json(
        work.file(STAGE, unit.number, ".json"),
        {"counts": counts, "digest": digest.hexdigest(), "report": report.to_json()},
    )


def _facts(text: str, kind: str, source: Source, seed: int) -> tuple[int, int, int, Any]:
    """Return the record of a document.

    Conversations with similar prompts can differ. So only equal ones are duplicates, and those with
    equal prompts are held out together.
    """
    key = content_key(text, seed)
    held_out, choice = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
    if kind == "chat":
        asked = content_key(prompt_of(text), seed)
        held_out = int.from_bytes(asked[:8], "big")
    if kind == "chat" or source.near_duplicates == "keep":
        return held_out, choice, len(text), np.full(BANDS, choice, np.uint64)
    return held_out, choice, len(text), band_hashes(text, rows_for(source.similarity), choice)


def _fold(digest: Any, document: Document) -> None:
    for part in (document.name, document.text):
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())


def clean(text: str, source: Source, kind: str) -> str:
    """Clean text as the source asks for. The reader of conversations does this per turn."""
    return text if kind == "chat" else apply_cleaning(text, source.cleaning, kind == "code")


def violated_rule(text: str, source: Source, kind: str, report: ReadReport) -> str | None:
    """Return the rule by which the source drops a document, or None. Count its language."""
    wanted = source.filter == "gopher" or (source.filter == "auto" and kind == "warc")
    if not wanted and not source.languages:
        return None
    said = contents(text) if kind == "chat" else text
    language = language_of(said)
    report.languages[language] += 1
    if source.languages and language not in source.languages:
        return f"language {language}"
    return gopher(normalize(said), language) if wanted else None


def clean_documents(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and texts that `extract_unit` wrote."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            name, text = json.loads(line)
            yield name, text
