"""Adapt a job to this computer: one node, local folders, the requested number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import log2
from pathlib import Path
from typing import Any

from llmtrain_cli.errors import CliError
from llmtrain_core.layout import Layout
from llmtrain_core.validation.check import Job, check
from llmtrain_core.validation.problem import Problem

MAX_SEARCHED = 64
"""Largest number of ranks for which a layout is proposed: the search takes about a second."""

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints and of the metrics, below that of a run."""
CLUSTER_ONLY = ("topology", "network", "failurePolicy", "runPolicy", "priorityClassName", "suspend")
"""Sections that only a cluster uses."""


def local_job(
    job: Job, ranks: int | None, tensor: int | None, pipeline: int | None, folder: Path
) -> Job:
    """Return the job for `ranks` processes, checkpoints below `folder`.

    The number of data ranks changes; the global batch, and so the loss, does not. Raises CliError,
    with the nearest layout that works, if the job cannot run with this number of ranks.
    """
    if job.architecture is None or job.spec.training is None or job.spec.data is None:
        raise CliError(
            "spec.workers.command: llmtrain run does not start third-party trainers; "
            "run that command directly"
        )
    wanted = _layout(job.layout, ranks, tensor, pipeline)
    whole = wanted.world_size
    if ranks is not None and whole != ranks:
        raise CliError(
            f"--nproc {ranks}: {wanted} needs a multiple of {_model_ranks(wanted)} ranks; "
            + _nearest_layout(job, ranks, folder)
        )
    answer = _checked(job, wanted, folder)
    if isinstance(answer, Job):
        return answer
    found = "\n".join(f"  {problem}" for problem in answer)
    raise CliError(
        f"the job cannot run as {wanted} here; {_nearest_layout(job, whole, folder)}\n{found}"
    )


def _layout(given: Layout, ranks: int | None, tensor: int | None, pipeline: int | None) -> Layout:
    """Return the manifest's layout with the given degrees and the remaining data ranks."""
    changed = replace(given, tensor=tensor or given.tensor, pipeline=pipeline or given.pipeline)
    if ranks in (None, changed.world_size):
        return changed
    assert ranks is not None
    return replace(changed, replicate=1, data=max(1, ranks // _model_ranks(changed)))


def _model_ranks(layout: Layout) -> int:
    return layout.tensor * layout.pipeline * layout.context


def _checked(job: Job, layout: Layout, folder: Path) -> Job | list[Problem]:
    """Check the job in another layout, on one node with one GPU per rank."""
    wire: dict[str, Any] = job.spec.to_wire()
    for section in CLUSTER_ONLY:
        wire.pop(section, None)
    wire["parallelism"] |= {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "data": layout.data,
        "replicate": layout.replicate,
    }
    wire["workers"] = {"gpusPerNode": layout.world_size, "image": "none"}
    wire["checkpoint"] = {
        **wire.get("checkpoint", {}),
        "uri": (folder / CHECKPOINTS).absolute().as_uri(),
    }
    return check(job.name, wire)


def _nearest_layout(job: Job, ranks: int, folder: Path) -> str:
    """Return the flags of the most similar layout that works, with fewer ranks if needed."""
    if ranks > MAX_SEARCHED:
        return f"no layout is proposed for more than {MAX_SEARCHED} ranks; use --nproc"
    for fewer in range(ranks, 0, -1):
        fits = [
            layout
            for layout in _layouts(job.layout, fewer)
            if isinstance(_checked(job, layout, folder), Job)
        ]
        if fits:
            best = min(fits, key=lambda layout: _distance(layout, job.layout))
            options = f"--nproc {fewer} --tensor {best.tensor} --pipeline {best.pipeline}"
            return f"the nearest that works is {best}: {options}"
    return "no layout of fewer ranks works either"


def _layouts(given: Layout, ranks: int) -> Iterator[Layout]:
    for tensor in range(1, ranks + 1):
        for pipeline in range(1, ranks // tensor + 1):
            rest, left = divmod(ranks, tensor * pipeline * given.context)
            if rest and not left:
                yield replace(given, tensor=tensor, pipeline=pipeline, data=rest, replicate=1)


def _distance(one: Layout, other: Layout) -> tuple[float, int]:
    steps = abs(log2(one.tensor / other.tensor)) + abs(log2(one.pipeline / other.pipeline))
    return steps, one.tensor
