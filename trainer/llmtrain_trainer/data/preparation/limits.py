"""The share of rows that may be left out of a source before the preparation is an error."""

from __future__ import annotations

from llmtrain_trainer.config import Source
from llmtrain_trainer.data.documents import Causes
from llmtrain_trainer.errors import InputError

FORMAT_REMEDY = "repair or remove the rows, set the source's format, or raise its maxUnusableRows"


def require_usable(
    source: Source, dropped: Causes, total: int, field: str = "", remedy: str = FORMAT_REMEDY
) -> None:
    """Raise InputError if more than the source's share of its rows was dropped."""
    count = dropped.counts.total()
    if count <= source.max_unusable_rows * total:
        return
    raise InputError(
        "InvalidSpec" if field else "CorpusUnreadable",
        f"source {source.name!r} ({source.uri}): {count} of {total} rows cannot be used: {dropped}",
        field=field or source.field,
        remedy=remedy,
    )
