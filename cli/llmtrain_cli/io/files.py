"""Read manifests and object lists in YAML or JSON. Errors name the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmtrain_cli.errors import CliError
from llmtrain_cli.io.parsing import MAX_DOCUMENT, MAX_LIST, parse, read_text
from llmtrain_core.api.base import API_VERSION
from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.node_health import (
    DEFAULT_TABLE,
    HealthRowError,
    HealthTable,
    changed_rows,
    read_changes,
)
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_core.topology.label_presets import PRESETS, detect, fit, levels_of
from llmtrain_core.topology.links import links_of
from llmtrain_core.validation.check import Job, check, problems_of

Raw = Mapping[str, Any]

NODE_KINDS = ("Node", "ResourceSlice", "DeviceClass", "ResourceClaim")
"""Kinds of objects in a list of nodes: what a node has, by itself or by its DRA drivers."""
MAX_NAME = 253
"""Characters of the name of an object. Values of labels are shorter."""

UNEXPECTED = (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError)
"""What reading a value of the wrong type raises."""


def read_document(path: str) -> Raw:
    """Read one YAML or JSON mapping of a person; `-` is standard input."""
    return _mapping(parse(read_text(path, MAX_DOCUMENT), path), path)


def _mapping(document: Any, path: str) -> Raw:
    if not isinstance(document, dict):
        raise CliError(f"{path}: is not an object; use the file of a manifest")
    return document


def read_job(path: str) -> Job:
    """Read and check an LLMTrainingJob. Raises CliError that lists every problem."""
    return read_manifest(path)[0]


def read_manifest(path: str) -> tuple[Job, Mapping[str, str]]:
    """Read and check an LLMTrainingJob; return it with its annotations."""
    return job_of(read_document(path), path)


def job_of(document: Raw, path: str) -> tuple[Job, Mapping[str, str]]:
    """Check an LLMTrainingJob; return it with its annotations. Errors name the file."""
    if (document.get("apiVersion"), document.get("kind")) != (API_VERSION, "LLMTrainingJob"):
        raise CliError(
            f"{path}: is not an LLMTrainingJob of {API_VERSION}; see apiVersion and kind"
        )
    metadata, spec = document.get("metadata"), document.get("spec")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not isinstance(spec, dict):
        raise CliError(f"{path}: metadata.name and spec are required")
    answer = check(name, spec)
    if isinstance(answer, list):
        raise CliError("\n".join([f"{path}: the job is not valid:", *(f"  {p}" for p in answer)]))
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    return answer, annotations if isinstance(annotations, dict) else {}


def read_nodes(path: str) -> dict[str, list[Raw]]:
    """Read Nodes, and what may be listed with them, by kind."""
    found: dict[str, list[Raw]] = {kind: [] for kind in NODE_KINDS}
    for item in _read_items(path, *NODE_KINDS):
        found[item.get("kind", "Node")].append(item)
    return found


def read_items(path: str, kind: str) -> list[Mapping[str, Any]]:
    """Read a list as `kubectl get ... -o json` prints it, or a single object."""
    return _read_items(path, kind)


def _read_items(path: str, kind: str, *also: str) -> list[Mapping[str, Any]]:
    document = _mapping(parse(read_text(path, MAX_LIST), path), path)
    listed = "items" in document or str(document.get("kind")).endswith("List")
    items = document.get("items") if listed else [document]
    if not isinstance(items, list):
        raise CliError(f"{path}: the list has no items; print it with kubectl get -o json")
    seen: dict[tuple[str, str, str], int] = {}
    for position, item in enumerate(items):
        if not isinstance(item, dict) or item.get("kind", kind) not in {kind, *also}:
            raise CliError(f"{path}: items[{position}] is not a {kind}")
        metadata = item.get("metadata")
        if not isinstance(metadata, dict) or not metadata.get("name"):
            raise CliError(f"{path}: items[{position}] has no metadata.name")
        if not _has_names(metadata):
            raise CliError(f"{path}: items[{position}].metadata is not that of an object")
        found, name = item.get("kind", kind), str(metadata["name"])
        key = (found, str(metadata.get("namespace") or ""), name)
        if key in seen:
            raise CliError(
                f"{path}: items[{seen[key]}] and items[{position}] are both the {found} {name!r};"
                " keep one of them"
            )
        seen[key] = position
    return items


def _has_names(metadata: Raw) -> bool:
    """Return True if the names and labels of an object are text of the length of names."""
    labels = metadata.get("labels") or {}
    names = (metadata["name"], metadata.get("namespace") or "")
    return isinstance(labels, dict) and all(
        isinstance(each, str) and len(each) <= MAX_NAME for each in (*names, *labels.values())
    )


def read_health_table(path: str | None) -> HealthTable:
    """Read changes of the node health table: a list of rows, as in the chart's values."""
    if path is None:
        return DEFAULT_TABLE
    document = parse(read_text(path, MAX_DOCUMENT), path)
    try:
        return HealthTable(changed_rows(read_changes(document)))
    except HealthRowError as error:
        raise CliError(f"--node-health {path}: {error}") from error


def read_fabric(text: str) -> FabricSpec:
    """Read a fabric: the name of a preset, or the file of a Fabric object."""
    if text in PRESETS:
        return FabricSpec(preset=text)
    if not Path(text).exists():
        raise CliError(
            f"--fabric {text}: neither a file nor a preset; presets are "
            + ", ".join(sorted(PRESETS))
        )
    return fabric_of(read_document(text), text)


def fabric_of(document: Mapping[str, Any], source: str) -> FabricSpec:
    """Check a Fabric object; errors name its `source`."""
    try:
        spec = FabricSpec.from_wire(document.get("spec") or {})
        levels_of(spec)
    except ValidationError as error:
        found = "\n".join(f"  {problem}" for problem in problems_of(error))
        raise CliError(f"{source}: the Fabric is not valid:\n{found}") from error
    except UNEXPECTED as error:
        raise CliError(f"{source}: {error}") from error
    return spec


def snapshot_for(
    fabric: FabricSpec | None, nodes: Sequence[Node], usage: Iterable[Usage] = ()
) -> Snapshot:
    """Build a snapshot of nodes with the levels of a fabric, or with levels from labels."""
    labels = [node.labels for node in nodes]
    if fabric is None:
        return snapshot(detect(labels), nodes, usage)
    state = snapshot(fit(levels_of(fabric), labels), nodes, usage)
    return replace(state, links=links_of(fabric))
