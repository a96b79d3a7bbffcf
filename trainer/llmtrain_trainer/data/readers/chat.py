"""Conversations, one per row of JSON, CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llmtrain_trainer.data.conversations import dumps_turns
from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.conversation_rows import turns_of
from llmtrain_trainer.data.readers.records import SFT_COLUMNS, RowError, rows_of
from llmtrain_trainer.data.readers.tool_rows import tools_of, without_nulls
from llmtrain_trainer.data.text import apply_cleaning


def read_chat(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield the conversations of a file, named by their numbers. Other rows are counted."""
    cleaning = file.source.cleaning
    for number, row in rows_of(file, report, SFT_COLUMNS):
        name = f"{file.name}:{number}"
        try:
            if isinstance(row, RowError):
                raise row
            if file.format == "parquet":
                row = without_nulls(row)
            turns, tools = turns_of(row), tools_of(row)
        except RowError as error:
            report.dropped.add(error.kind, f"{name}: {error}")
            continue
        cleaned = [replace(turn, text=apply_cleaning(turn.text, cleaning)) for turn in turns]
        yield Document(name, dumps_turns(cleaned, tools))
