"""Read manifests and object lists, YAML or JSON, with errors that name the file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llmtrain_cli.errors import CliError
from llmtrain_core.api.base import API_VERSION
from llmtrain_core.api.check import Job, check
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.topology.levels import PRESETS, Levels, levels_of

# libyaml's loader reads a node list of thousands about ten times faster.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_document(path: str) -> Mapping[str, Any]:
    """Read one YAML or JSON mapping; `-` is standard input."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: cannot be read: {error}") from error
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise CliError(f"{path}: neither YAML nor JSON: {error}") from error
    if not isinstance(document, dict):
        raise CliError(f"{path}: holds no object; write a manifest there")
    return document


def read_job(path: str) -> Job:
    """Read and check an LLMTrainingJob. Raises CliError that lists every problem."""
    document = read_document(path)
    if (document.get("apiVersion"), document.get("kind")) != (API_VERSION, "LLMTrainingJob"):
        raise CliError(
            f"{path}: is not an LLMTrainingJob of {API_VERSION}; see apiVersion and kind"
        )
    name = (document.get("metadata") or {}).get("name")
    spec = document.get("spec")
    if not isinstance(name, str) or not isinstance(spec, dict):
        raise CliError(f"{path}: metadata.name and spec are required")
    answer = check(name, spec)
    if isinstance(answer, list):
        raise CliError("\n".join([f"{path}: the job is not valid:", *(f"  {p}" for p in answer)]))
    return answer


def read_items(path: str, kind: str) -> list[Mapping[str, Any]]:
    """Read a list as `kubectl get ... -o json` prints it, or a single object."""
    document = read_document(path)
    items = document.get("items") if str(document.get("kind")).endswith("List") else [document]
    if not isinstance(items, list):
        raise CliError(f"{path}: the list has no items; print it with kubectl get -o json")
    for position, item in enumerate(items):
        if not isinstance(item, dict) or item.get("kind", kind) != kind:
            raise CliError(f"{path}: items[{position}] is not a {kind}")
        if not (item.get("metadata") or {}).get("name"):
            raise CliError(f"{path}: items[{position}] has no metadata.name")
    return items


def read_fabric(text: str) -> Levels:
    """Read a fabric: the name of a preset, or the file of a Fabric object."""
    if text in PRESETS:
        return PRESETS[text]
    if not Path(text).exists():
        raise CliError(
            f"--fabric {text}: neither a file nor a preset; presets are "
            + ", ".join(sorted(PRESETS))
        )
    document = read_document(text)
    try:
        return levels_of(FabricSpec.from_wire(document.get("spec") or {}))
    except (ValidationError, ValueError) as error:
        raise CliError(f"{text}: {error}") from error
