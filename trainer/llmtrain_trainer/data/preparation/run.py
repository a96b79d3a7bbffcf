"""Run a plan: any number of processes share the tasks and wait for each other between stages.

Process `index` of `count` does every `count`-th task of a stage and waits until the files of all
tasks exist. A stage that combines the results of others has one task. Nothing else is shared, so
the processes may be children of one process, or the pods of an Indexed Job with a shared volume.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmtrain_trainer.data.preparation import dedup_split, encode, extract, pack
from llmtrain_trainer.data.preparation.workspace import Workspace, read_json
from llmtrain_trainer.errors import InputError

POLL = 0.2
"""Seconds between two checks for the files of other processes."""


@dataclass(frozen=True, slots=True)
class Task:
    """A result file, complete if it exists, and the function that creates it."""

    result: Path
    make: Callable[[], None]


@dataclass(frozen=True, slots=True)
class PreparationProgress:
    """Progress of a stage over all processes, which go through its tasks in parallel."""

    stage: str
    done: int
    total: int


Report = Callable[[PreparationProgress], None]


def stages(work: Workspace) -> Iterator[tuple[str, list[Task]]]:
    """Yield every stage with its tasks. The tasks may depend on the stage before."""
    units = work.plan.units
    yield (
        "read",
        [
            Task(
                work.file(extract.STAGE, unit.number, ".json"),
                partial(extract.extract_unit, work, unit),
            )
            for unit in units
        ],
    )
    yield "select", [Task(work.tokenizer, partial(dedup_split.select_documents, work))]
    encoder = encode.load_encoder(work)
    yield (
        "encode",
        [
            Task(
                work.file(encode.STAGE, unit.number, ".json"),
                partial(encode.encode_unit, work, unit, encoder),
            )
            for unit in units
        ],
    )
    yield (
        "pack",
        [
            Task(pack.shard_info_path(work, shard), partial(pack.pack_shard, work, shard))
            for shard in pack.shard_specs(work)
        ],
    )
    yield "manifest", [Task(work.manifest, partial(pack.write_manifest, work))]


def run_share(
    work: Workspace, index: int = 0, count: int = 1, report: Report = lambda _: None
) -> None:
    """Run one process's share of a plan and return when all shares are done.

    Complete files are kept, so an interrupted share continues where it stopped.
    """
    if not 0 <= index < count:
        raise ValueError(f"process {index} of {count}")
    require_same_plan(work)
    if work.manifest.exists():
        return
    try:
        for name, tasks in stages(work):
            for number in range(index, len(tasks), count):
                report(PreparationProgress(name, number, len(tasks)))
                if not tasks[number].result.exists():
                    tasks[number].make()
            missing = tasks
            while missing := [task for task in missing if not task.result.exists()]:
                if work.manifest.exists():
                    return
                report(PreparationProgress(name, len(tasks) - len(missing), len(tasks)))
                time.sleep(POLL)
            report(PreparationProgress(name, len(tasks), len(tasks)))
    except FileNotFoundError:
        # All other processes are done and have deleted the scratch files.
        if not work.manifest.exists():
            raise


def require_same_plan(work: Workspace) -> None:
    """Raise InputError for a folder that holds other data, complete or not."""
    begun = [path for path in work.folder.glob(".work-*") if path != work.scratch]
    if begun or (work.manifest.exists() and read_json(work.manifest).get("key") != work.plan.key):
        raise InputError(
            "CorpusMismatch",
            f"{work.folder} holds data of other sources or settings, or a source has changed",
            field="spec.data",
            remedy="choose another folder, or remove this one",
        )
