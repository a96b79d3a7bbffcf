"""values.yaml: the defaults of all values, each with its description."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from llmtrain_chart.values.root import Values

HEADER = """\
# Values of the chart. Generated from hack/llmtrain_chart/values by `make chart`; do not edit.
"""
WIDTH = 100


@dataclass(frozen=True, slots=True)
class ValueEntry:
    """One value: its path, its default and what it means."""

    path: tuple[str, ...]
    default: Any
    description: str
    is_map: bool
    """The value is a map whose keys are entries, too."""


def entries() -> list[ValueEntry]:
    """Return all values in the order of the file; a map comes before its keys."""
    return list(_entries(Values(), ()))


def values_text() -> str:
    """Return the file values.yaml."""
    lines = [HEADER.rstrip()]
    for entry in entries():
        indent = "  " * (len(entry.path) - 1)
        if len(entry.path) == 1:
            lines.append("")
        mark = "" if entry.is_map else "-- "
        lines += textwrap.wrap(
            f"{mark}{entry.description}",
            WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append(textwrap.indent(_assignment(entry), indent))
    return "\n".join(lines) + "\n"


def _assignment(entry: ValueEntry) -> str:
    name = entry.path[-1]
    if entry.is_map:
        return f"{name}:"
    if entry.default and isinstance(entry.default, dict | list):
        text = yaml.dump(entry.default, Dumper=_Dumper, sort_keys=False, width=WIDTH)
        return f"{name}:\n{textwrap.indent(text.rstrip(), '  ')}"
    return f"{name}: {default_text(entry.default)}"


def default_text(default: Any) -> str:
    """Return a default as JSON, which YAML includes."""
    return json.dumps(default, ensure_ascii=False)


def _entries(model: BaseModel, path: tuple[str, ...]) -> Iterator[ValueEntry]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        at = (*path, field.alias or name)
        description = " ".join((field.description or "").split())
        if isinstance(value, BaseModel):
            yield ValueEntry(at, None, description, is_map=True)
            yield from _entries(value, at)
        else:
            yield ValueEntry(at, _plain(value), description, is_map=False)


def _plain(value: Any) -> Any:
    """Return whole numbers without a decimal point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists in maps."""
        super().increase_indent(flow, False)
