"""Parquet: a column `text` or `content`, read by row group."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as parquet

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.plain import NAME_FIELDS, TEXT_FIELDS, first_of

ROWS = 1024
"""Rows decoded at a time."""


def read_parquet(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield every row as a document."""
    with parquet.ParquetFile(file.path) as table:
        names = table.schema_arrow.names
        if not set(TEXT_FIELDS) & set(names):
            raise file.unreadable(f"no column text or content among {', '.join(names)}")
        columns = [name for name in (*TEXT_FIELDS, *NAME_FIELDS) if name in names]
        number = 0
        for batch in table.iter_batches(batch_size=ROWS, columns=columns):
            for record in batch.to_pylist():
                text = first_of(record, TEXT_FIELDS)
                if not isinstance(text, str | None):
                    raise file.unreadable("the text column does not hold strings")
                name = first_of(record, NAME_FIELDS)
                yield Document(f"{file.name}#{number if name is None else name}", text or "")
                number += 1
