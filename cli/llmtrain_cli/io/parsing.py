"""Read text and parse YAML or JSON from anywhere, with bounds. Errors name the file.

Numbers are those of the API server: 64-bit integers, and finite fractions.
"""

from __future__ import annotations

import json
import sys
from math import inf, isfinite
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import yaml

from llmtrain_cli.errors import CliError

MAX_DOCUMENT, MAX_YAML, MAX_LIST = 4 << 20, 64 << 20, 1 << 30
"""Bytes of the file of one object, of YAML, and of a list of objects."""

MAX_DEPTH, MAX_VALUES = 64, 1 << 20
"""Levels and values of the file of one object, with repeated anchors counted each time."""

_CHUNK = 1 << 20
_NUMBER = 40
"""Characters of a number."""
_MERGED = 10_000
"""Keys of a mapping with those of `<<`."""


def read_text(path: str, limit: int) -> str:
    """Return the text of a file; `-` is standard input."""
    try:
        if path == "-":
            return _read(sys.stdin.buffer, path, limit)
        with Path(path).open("rb") as file:
            return _read(file, path, limit)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null character in the path
        raise CliError(f"{path}: cannot be read: {error}") from error


def _read(file: BinaryIO, path: str, limit: int) -> str:
    parts: list[bytes] = []
    size = 0
    while part := file.read(_CHUNK):
        if b"\0" in part:
            raise CliError(f"{path}: cannot be read: it is not text")
        size += len(part)
        if size > limit:
            raise CliError(f"{path}: cannot be read: it is longer than {limit >> 20} MiB")
        parts.append(part)
    return b"".join(parts).decode()


def parse(text: str, path: str) -> Any:
    """Parse JSON, else YAML: the YAML parser takes a minute for a large JSON list."""
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=_refuse)
    except (_NumberError, RecursionError) as error:
        raise CliError(f"{path}: {_problem(error)}") from error
    except ValueError:
        value = _parse_yaml(text, path)
    if len(text) <= MAX_DOCUMENT:
        require_plain(value, path)
    return value


def _parse_yaml(text: str, path: str) -> Any:
    if len(text) > MAX_YAML:
        raise CliError(f"{path}: longer than {MAX_YAML >> 20} MiB and not JSON")
    try:
        _require_flat(text)
        return yaml.load(text, Loader=_Loader)
    except (_NumberError, RecursionError) as error:
        raise CliError(f"{path}: {_problem(error)}") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        # besides its own errors, PyYAML raises those of dates and of keys that are lists
        problem = " ".join(str(error).split())[:300]
        raise CliError(f"{path}: neither YAML nor JSON: {problem}") from error


def require_plain(value: Any, path: str) -> None:
    """Raise CliError for a value that is nested too deeply, too large, or that JSON cannot hold."""
    left = MAX_VALUES
    todo = [(value, 0)]
    while todo:
        part, depth = todo.pop()
        left -= 1
        if depth > MAX_DEPTH:
            raise CliError(f"{path}: nested more than {MAX_DEPTH} levels deep")
        if left < 0:
            raise CliError(f"{path}: more than {MAX_VALUES} values")
        if isinstance(part, dict):
            if not all(isinstance(key, str) for key in part):
                raise CliError(f"{path}: a key is not text; write it in quotes")
            todo += [(each, depth + 1) for each in part.values()]
        elif isinstance(part, list):
            todo += [(each, depth + 1) for each in part]
        elif not isinstance(part, str | int | float | None):
            kind = type(part).__name__
            raise CliError(f"{path}: a value is a {kind}; write it in quotes")


class _NumberError(Exception):
    """A number that the API server does not accept."""


def _whole(text: str) -> int:
    if len(text) > _NUMBER or not -(1 << 63) <= int(text) < 1 << 63:
        raise _NumberError(text)
    return int(text)


def _real(text: str) -> float:
    if len(text) > 10 * _NUMBER or not isfinite(float(text)):
        raise _NumberError(text)
    return float(text)


def _refuse(text: str) -> NoReturn:
    raise _NumberError(text)


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"the number {str(error)[:20]}... does not fit 64 bits"


# libyaml's loader is about ten times faster.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Builds plain values with bounded numbers. YAML 1.1 has numbers of any length."""

    def flatten_mapping(self, node: Any) -> None:
        """Merge the mappings of `<<`. Merged ones can be merged again, and grow each time."""
        super().flatten_mapping(node)
        if len(node.value) > _MERGED:
            raise yaml.YAMLError("the mappings of << are too large")


def _construct_int(loader: Any, node: Any) -> int:
    number = 1 << 63 if len(node.value) > _NUMBER else int(loader.construct_yaml_int(node))
    if not -(1 << 63) <= number < 1 << 63:
        raise _NumberError(node.value)
    return number


def _construct_float(loader: Any, node: Any) -> float:
    number = inf if len(node.value) > 10 * _NUMBER else float(loader.construct_yaml_float(node))
    if not isfinite(number):
        raise _NumberError(node.value)
    return number


_TAG = "tag:yaml.org,2002:"
_Loader.add_constructor(f"{_TAG}int", _construct_int)
_Loader.add_constructor(f"{_TAG}float", _construct_float)
_Loader.add_constructor(f"{_TAG}timestamp", _Base.construct_yaml_str)


def _require_flat(text: str) -> None:
    """Raise RecursionError for deep YAML. Building its values would overflow the stack."""
    depth = 0
    starts, ends = (yaml.SequenceStartEvent, yaml.MappingStartEvent), yaml.CollectionEndEvent
    for event in yaml.parse(text, Loader=_Base):
        depth += isinstance(event, starts) - isinstance(event, ends)
        if depth > MAX_DEPTH:
            raise RecursionError
