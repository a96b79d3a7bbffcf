"""Examples of near duplicates, for the manifest: templated text looks like copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmtrain_trainer.data.conversations import contents
from llmtrain_trainer.data.preparation import extract
from llmtrain_trainer.data.preparation.workspace import Workspace

STAGE = "near"
GROUPS, DOCUMENTS = 3, 3
"""Largest groups of a source that are reported, and removed documents of each."""
CHARACTERS = 200
"""Characters of a text that are reported."""

Indices = npt.NDArray[np.int64]


def near_groups_path(work: Workspace) -> Path:
    """Return the file of the groups of all sources."""
    return work.file(STAGE, 0, ".json")


def near_groups(
    work: Workspace, kept: Indices, sources: Indices, sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Return for every source the number of groups, and the largest ones with examples.

    `kept` has, for every document, the one that is kept instead, or -1. `sizes` are the documents
    of each unit. Only the units with examples are read.
    """
    chosen: list[tuple[int, list[tuple[int, int, list[int]]]]] = []
    for source in range(len(work.plan.sources)):
        removed = np.flatnonzero((kept >= 0) & (sources == source))
        groups, counts = np.unique(kept[removed], return_counts=True)
        largest = np.argsort(-counts, kind="stable")[:GROUPS]
        found = [
            (int(groups[place]), int(counts[place]), _first(removed, kept, int(groups[place])))
            for place in largest
        ]
        chosen.append((len(groups), found))
    wanted = {
        index for _, found in chosen for group, _, removed in found for index in (group, *removed)
    }
    texts = _excerpts(work, wanted, sizes)
    return [
        {
            "groups": count,
            "largest": [
                {
                    "removed": removed,
                    "kept": texts[group],
                    "first": [texts[index] for index in first],
                }
                for group, removed, first in found
            ],
        }
        for count, found in chosen
    ]


def _first(removed: Indices, kept: Indices, group: int) -> list[int]:
    first: list[int] = removed[kept[removed] == group][:DOCUMENTS].tolist()
    return first


def _excerpts(work: Workspace, wanted: set[int], sizes: Sequence[int]) -> dict[int, dict[str, str]]:
    """Return the names and the beginnings of documents, by their numbers over all units."""
    said = contents if work.plan.template else str
    found: dict[int, dict[str, str]] = {}
    start = 0
    for unit, size in zip(work.plan.units, sizes, strict=True):
        if not wanted.isdisjoint(range(start, start + size)):
            path = work.file(extract.STAGE, unit.number, ".jsonl")
            for number, (name, text) in enumerate(extract.clean_documents(path), start):
                if number in wanted:
                    found[number] = {"name": name, "text": said(text)[:CHARACTERS]}
        start += size
    return found
