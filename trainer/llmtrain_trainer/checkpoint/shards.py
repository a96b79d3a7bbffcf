"""Write and read the shards of a checkpoint. Each rank writes its own.

A checkpoint of one layout loads in any other layout. torch plans who writes and reads what, and
writes the files. The ranks exchange these plans as JSON, and no file is read as a pickle, except
that torch reads tensors with `weights_only`.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    ReadItem,
    SavePlan,
    WriteItem,
)
from torch.distributed.checkpoint.storage import WriteResult

from llmtrain_trainer.checkpoint.checksums import (
    ChecksumStoreWriter,
    ChecksumWriter,
    read_index_or_marker,
    verify_entry,
)
from llmtrain_trainer.checkpoint.collective import run_on_all
from llmtrain_trainer.checkpoint.paths import Folder
from llmtrain_trainer.checkpoint.retry import retry_transient
from llmtrain_trainer.checkpoint.save_plan import (
    plan_from_wire,
    plan_to_wire,
    results_from_wire,
    results_to_wire,
)
from llmtrain_trainer.runtime import json_collectives
from llmtrain_trainer.runtime.heartbeat import Heartbeat, no_heartbeat
from llmtrain_trainer.runtime.untrusted_files import DamagedFileError


def write_state(
    folder: Folder,
    state: dict[str, Any],
    group: dist.ProcessGroup | None,
    heartbeat: Heartbeat = no_heartbeat,
) -> None:
    """Write a state into an empty folder; collective over the ranks of `group`, if any."""
    writer, planner = _storage_writer(folder), _HeartbeatPlanner(heartbeat)
    coordinates = group is None or dist.get_rank(group) == 0
    metadata: Metadata | None = None

    def plan_own() -> SavePlan:
        planner.set_up_planner(state, writer.storage_meta(), coordinates)
        writer.set_up_storage_writer(coordinates)
        return writer.prepare_local_plan(planner.create_local_plan())

    def plan_all() -> list[SavePlan] | None:
        nonlocal metadata
        if plans is None:
            return None
        merged, metadata = planner.create_global_plan(plans)
        return writer.prepare_global_plan(merged)

    def write() -> list[WriteResult]:
        return list(writer.write_data(planner.finish_plan(plan), planner).wait())

    def finish() -> None:
        if results is not None and metadata is not None:
            writer.finish(metadata, results)

    plans = _gather_plans(run_on_all(plan_own, group), group)
    plan = _scatter_plans(run_on_all(plan_all, group), group)
    results = _gather_results(run_on_all(write, group), group)
    run_on_all(finish, group)


def load_index(folder: Folder) -> Metadata:
    """Return what a checkpoint contains and where. Raises DamagedFileError if it is damaged."""
    return retry_transient(partial(read_index_or_marker, folder))


def read_state(folder: Folder, index: Metadata, state: dict[str, Any]) -> None:
    """Read this rank's part of a checkpoint into the tensors of `state`; replace other values.

    Transient errors are retried on this rank, while the others wait.
    """
    planner = _DataPlanner()
    planner.set_up_planner(state, index, False)
    plan = planner.finish_plan(planner.create_local_plan())
    places = index.storage_data or {}
    by_file: dict[str, list[ReadItem]] = {}
    for item in plan.items:
        by_file.setdefault(places[item.storage_index].relative_path, []).append(item)
    for name, items in by_file.items():
        retry_transient(partial(_read_file, folder / name, items, places, planner))


def _read_file(
    path: Folder, items: list[ReadItem], places: dict[Any, Any], planner: DefaultLoadPlanner
) -> None:
    with path.open("rb") as file:
        for item in items:
            place = places[item.storage_index]
            file.seek(place.offset)
            content = file.read(place.length)
            verify_entry(content, place)
            try:
                _load(io.BytesIO(content), item, planner)
            except Exception as error:  # torch raises nearly any kind
                text = " ".join(str(error).split())[:300]
                raise DamagedFileError(f"{path.name}: {item.storage_index.fqn}: {text}") from error


def _load(content: io.BytesIO, item: ReadItem, planner: DefaultLoadPlanner) -> None:
    if item.type == LoadItemType.BYTE_IO:
        planner.load_bytes(item, content)
        return
    stored = torch.load(content, map_location="cpu", weights_only=True)
    if not isinstance(stored, torch.Tensor):
        raise ValueError(f"{type(stored).__name__} in the place of a tensor")
    part = narrow_tensor_by_index(stored, item.storage_offsets, item.lengths)
    target = planner.resolve_tensor(item).detach()
    if target.size() != part.size():
        raise ValueError(f"mismatch sizes {list(target.size())} and {list(part.size())}")
    target.copy_(part)
    planner.commit_tensor(item, target)


class _DataPlanner(DefaultLoadPlanner):
    """Reads values as data. torch's own planner reads them as pickles."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Put a value that is no tensor into the state."""
        name = read_item.dest_index.fqn
        if isinstance(self.state_dict[name], torch.Tensor):
            raise ValueError("a value in the place of a tensor")
        stored = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[name], stored)


class _HeartbeatPlanner(DefaultSavePlanner):
    """Sends a heartbeat for every tensor before it is written."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        super().__init__()
        self._heartbeat = heartbeat

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return the data to write."""
        self._heartbeat()
        return super().resolve_data(write_item)


def _storage_writer(folder: Folder) -> ChecksumWriter:
    if isinstance(folder, Path):
        writer = ChecksumWriter(folder)
    else:
        writer = ChecksumStoreWriter(str(folder), **folder.storage_options)
    writer.folder = folder
    return writer


def _gather_plans(plan: SavePlan, group: dist.ProcessGroup | None) -> list[SavePlan] | None:
    """Return the plans of all ranks on the first rank, and None on the others."""
    if group is None:
        return [plan]
    found = json_collectives.gather(plan_to_wire(plan), group)
    return None if found is None else [plan_from_wire(wire) for wire in found]


def _scatter_plans(plans: list[SavePlan] | None, group: dist.ProcessGroup | None) -> SavePlan:
    """Return this rank's plan of the list on the first rank."""
    if group is None:
        assert plans is not None
        return plans[0]
    wires = None if plans is None else [plan_to_wire(plan) for plan in plans]
    return plan_from_wire(json_collectives.scatter(wires, group))


def _gather_results(
    results: list[WriteResult], group: dist.ProcessGroup | None
) -> list[list[WriteResult]] | None:
    """Return what all ranks have written on the first rank, and None on the others."""
    if group is None:
        return [results]
    found = json_collectives.gather(results_to_wire(results), group)
    return None if found is None else [results_from_wire(wire) for wire in found]
