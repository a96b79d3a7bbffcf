"""Rows with named fields: JSON lines and arrays, CSV and Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llmtrain_trainer.data.documents import Document, InputFile, ReadReport
from llmtrain_trainer.data.readers.charsets import open_text

TEXT_FIELDS = ("text", "content")
NAME_FIELDS = ("id", "url")
SFT_FIELDS = ("messages", "conversations", "prompt", "instruction")
SFT_COLUMNS = (*SFT_FIELDS, "response", "completion", "input", "output", "system", "tools")
"""Columns of conversations, and those that tell one from a row of text."""

ROWS = 1024
"""Rows of Parquet decoded at a time."""
_PIECE = 1 << 20
_DELIMITERS = ",\t;|"
_LONGEST_CELL = 1 << 30
_LONGEST_OBJECT = 256 << 20
_BETWEEN = frozenset(" \t\n\r,[]")
"""Characters between objects, and around them in an array."""
_STARTS_ARRAY = re.compile(r"\[\s*(?:\{|\Z)|\{\Z")
_COLUMNS = frozenset((*TEXT_FIELDS, *SFT_FIELDS))


class RowError(ValueError):
    """A row that cannot be used, and why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


Row = tuple[int, dict[str, Any] | RowError]
"""Number of a row in its file, from 1, and its fields."""


def read_jsonl(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield one document per JSON object, its `text` or `content`."""
    return _documents(file, report, json_rows(file, report))


def read_csv(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield one document per row, its column `text` or `content`."""
    return _documents(file, report, csv_rows(file, report))


def read_parquet(file: InputFile, report: ReadReport) -> Iterator[Document]:
    """Yield one document per row, its column `text` or `content`, read by row group."""
    return _documents(file, report, parquet_rows(file, (*TEXT_FIELDS, *NAME_FIELDS)))


def _documents(file: InputFile, report: ReadReport, rows: Iterator[Row]) -> Iterator[Document]:
    for number, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            text = _text_of(row)
        except RowError as error:
            report.dropped.add(error.kind, f"{file.name}:{number}: {error}")
            continue
        name = first_of(row, NAME_FIELDS)
        yield Document(f"{file.name}#{number if name is None else name}", text)


def _text_of(row: dict[str, Any]) -> str:
    """Return the text of a row. Raises RowError if it has none."""
    text = first_of(row, TEXT_FIELDS)
    if isinstance(text, str):
        return text
    found = [name for name in TEXT_FIELDS if name in row]
    if not found:
        raise RowError("fields", "it has no field text or content")
    if text is None:
        raise RowError("null", f"its {found[0]} is null")
    raise RowError("content", f"its {found[0]} is not a string")


def first_of(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first field that a record has."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def rows_of(file: InputFile, report: ReadReport, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a file of any of these formats. Of Parquet, only `columns` are read."""
    if file.format == "parquet":
        return parquet_rows(file, columns)
    return csv_rows(file, report) if file.format == "csv" else json_rows(file, report)


def json_rows(file: InputFile, report: ReadReport) -> Iterator[Row]:
    """Yield the JSON objects of a file: one per line, or the items of an array."""
    with open_text(file.path, file.source.charset) as stream:
        start = stream.readline(_PIECE).strip()
        while not start and (more := stream.readline(_PIECE)):
            start = more.strip()
    with open_text(file.path, file.source.charset, report.charsets) as stream:
        if _STARTS_ARRAY.match(start):
            yield from enumerate(map(_object, _values(stream)), 1)
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: str) -> dict[str, Any] | RowError:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:
        return RowError("json", f"it is not JSON: {error}")


def _object(value: Any) -> dict[str, Any] | RowError:
    if isinstance(value, dict):
        return value
    return RowError("json", "it is not a JSON object")


def _values(stream: IO[str]) -> Iterator[Any]:
    """Yield the values of a stream: the items of an array, or objects one after the other."""
    decoder = json.JSONDecoder()
    held, place, size, is_end = "", 0, _PIECE, False
    while True:
        while held[place : place + 1] in _BETWEEN:
            place += 1
        if place < len(held):
            try:
                value, place = decoder.raw_decode(held, place)
            except (ValueError, RecursionError) as error:
                if is_end or len(held) - place > _LONGEST_OBJECT:
                    raise ValueError(f"it is not JSON: {error}") from error
            else:
                yield value
                size = _PIECE
                continue
        if is_end:
            return
        chunk = stream.read(size)
        is_end, size = not chunk, 2 * size
        held, place = held[place:] + chunk, 0


def csv_rows(file: InputFile, report: ReadReport) -> Iterator[Row]:
    """Yield the rows of a table whose first line names its columns."""
    csv.field_size_limit(_LONGEST_CELL)
    with open_text(file.path, file.source.charset, report.charsets) as stream:
        delimiter, names = _header(stream)
        if not set(names) & _COLUMNS:
            raise file.unreadable(f"no column text or content among {', '.join(names)[:200]}")
        for number, cells in _cells(stream, delimiter):
            if isinstance(cells, RowError):
                yield number, cells
            elif cells and len(cells) != len(names):
                problem = f"it has {len(cells)} cells for {len(names)} columns"
                yield number, RowError("cells", problem)
            elif cells:
                yield number, dict(zip(names, cells, strict=True))


def _cells(stream: IO[str], delimiter: str) -> Iterator[tuple[int, list[str] | RowError]]:
    """Yield the rows of a table with their numbers.

    A quote that opens or closes in the wrong place takes following lines with it. Each of them is
    counted.
    """
    rows = csv.reader(stream, delimiter=delimiter, strict=True)
    number = 0
    while True:
        line = rows.line_num
        number += 1
        try:
            yield number, next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"its quotes do not match: {error}"
            for lost in range(rows.line_num - line):
                number += lost > 0
                yield number, RowError("quotes", problem)


def has_text_column(path: Path, charset: str | None) -> bool:
    """Return True if the first line of a table names a column of text or of a conversation."""
    with open_text(path, charset) as stream:
        return bool(_COLUMNS.intersection(_header(stream)[1]))


def _header(stream: IO[str]) -> tuple[str, list[str]]:
    """Return the delimiter and the names of the columns from the first line."""
    first = stream.readline(_PIECE)
    delimiter = max(_DELIMITERS, key=lambda each: (_known(first, each), first.count(each)))
    return delimiter, next(csv.reader([first], delimiter=delimiter), [])


def _known(line: str, delimiter: str) -> int:
    return len(set(next(csv.reader([line], delimiter=delimiter), [])) & _COLUMNS)


def parquet_rows(file: InputFile, wanted: tuple[str, ...]) -> Iterator[Row]:
    """Yield the rows of a Parquet file, with the columns that are wanted."""
    import pyarrow.parquet as parquet  # takes long to import

    with parquet.ParquetFile(file.path) as table:
        names = table.schema_arrow.names
        columns = [name for name in wanted if name in names]
        if not set(columns) & _COLUMNS:
            raise file.unreadable(f"no column text or content among {', '.join(names)[:200]}")
        batches = table.iter_batches(batch_size=ROWS, columns=columns)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
