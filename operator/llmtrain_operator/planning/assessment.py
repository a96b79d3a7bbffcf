"""The plan of a job on the GPUs that it could use, or that it is placed on. Pure.

The GPU model is read from the labels of nodes only. If no label names it, the plan notes that, and
the job is not rejected for its memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.labels import ALLOW_OVER_MEMORY
from llmtrain_core.api.status.plan import PlanStatus
from llmtrain_core.devices.demand import counted_gpus
from llmtrain_core.errors import PlanError
from llmtrain_core.forecast.plan_json import outline_to_wire, prediction_to_wire
from llmtrain_core.placement import Request, eligible
from llmtrain_core.plan.hardware import PRODUCT_LABELS, Accelerator, accelerator_of
from llmtrain_core.plan.memory.node_filter import (
    WHOLE_GPUS,
    gpu_product_labels,
    min_gpu_memory,
    nodes_by_gpu_memory,
)
from llmtrain_core.plan.memory.training_memory import memory
from llmtrain_core.plan.network.communication import Group
from llmtrain_core.plan.network.link_speed import uplink_slowdowns
from llmtrain_core.plan.search.fix_hint import too_large_message
from llmtrain_core.plan.time.predict import outline, predict, tokens_of
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.topology.inventory import Node, Snapshot
from llmtrain_core.topology.levels import NODE, Levels
from llmtrain_core.topology.links import Links
from llmtrain_core.validation.check import Job

NO_LINKS = Links()
NODE_STATE_TAINTS = "node.kubernetes.io/"
"""Prefix of the taints that the cluster sets and removes with a node's state."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """The plan of one job, and whether it fits on any GPU."""

    plan: Mapping[str, Any] | None = None
    """`status.plan` without measurements; None for a job that cannot be planned."""
    too_large: str | None = None
    """Why no GPU that the job could use is large enough: field, figures and remedy."""
    settled: bool = True
    """False if a new node, or another label, may improve the result."""


@dataclass(frozen=True, slots=True)
class AssignedNodes:
    """The nodes of a placed job, and the domains that its groups cross."""

    nodes: Sequence[Node]
    crossings: Mapping[str, Mapping[str, int]]
    levels: Levels

    @classmethod
    def of(
        cls, placement: Mapping[str, Any], nodes: Sequence[Node], levels: Levels
    ) -> AssignedNodes:
        """Return the nodes of a stored placement."""
        used = placement.get("levels") or ()
        return cls(nodes, {use["level"]: use.get("crossings") or {} for use in used}, levels)


@dataclass(frozen=True, slots=True)
class _GpuModels:
    """The GPUs of some nodes."""

    known: tuple[Accelerator, ...]
    """From least to most memory."""
    unknown_nodes: int
    """Number of nodes whose GPU is not known."""


def assess(
    job: Job, nodes: Iterable[Node], assigned: AssignedNodes | None, links: Links = NO_LINKS
) -> Assessment:
    """Return the assessment of a job. `nodes` are all nodes: they count until it is placed.

    `links` are those that the job's Fabric names.
    """
    try:
        setup = TrainingSetup.of(job)
        if assigned is not None:
            return _placed(job, setup, assigned, links)
        return _waiting(job, setup, usable(job, nodes), links)
    except PlanError:
        return Assessment()


def usable(job: Job, nodes: Iterable[Node]) -> list[Node]:
    """Return the nodes that the job could ever use, whatever their current state."""
    healthy = {
        node.name: replace(
            node,
            ready=True,
            cordoned=False,
            taints=tuple(t for t in node.taints if not t.key.startswith(NODE_STATE_TAINTS)),
        )
        for node in nodes
    }
    names = eligible(Request.of(job), Snapshot((NODE,), tuple(healthy.values())))
    return [healthy[name] for name in sorted(names)]


def _waiting(job: Job, setup: TrainingSetup, nodes: Sequence[Node], links: Links) -> Assessment:
    gpus = _gpus(job, nodes)
    if not gpus.known:
        return Assessment(_outlined(job, setup, _unknown(job)), settled=False)
    largest = gpus.known[-1]
    capacity = int(largest.memory.value)
    needed = memory(setup, capacity)
    notes = [_several("the job could use", gpus.known, f"{largest.name}, the largest")]
    if gpus.unknown_nodes:
        notes.append(f"{gpus.unknown_nodes} of the nodes that the job could use name no known GPU")
    sizes, least = nodes_by_gpu_memory(nodes), min_gpu_memory(job)
    if gpus.unknown_nodes or capacity >= least:
        small = sum(len(names) for size, names in sizes.items() if size < least)
        notes.append(f"{small} of them have too little memory and are excluded" if small else "")
        return Assessment(_predicted(job, setup, largest, links, None, notes))
    plan = _predicted(job, setup, largest, links, None, notes)
    several = len(gpus.known) > 1
    gpu = f"the largest that it could use, {largest.name}," if several else largest.name
    text = too_large_message(job, needed, gpu, capacity)
    advice = f'; annotate the job with {ALLOW_OVER_MEMORY}="true" to run it anyway'
    return Assessment(plan, clean_text(text + advice), settled=False)


def _placed(job: Job, setup: TrainingSetup, assigned: AssignedNodes, links: Links) -> Assessment:
    gpus = _gpus(job, assigned.nodes)
    if not gpus.known:
        return Assessment(_outlined(job, setup, _unknown(job)))
    slowest = min(gpus.known, key=lambda row: (row.peak("bfloat16"), row.memory.value))
    notes = [_several("the job runs on", gpus.known, f"{slowest.name}, the slowest")]
    if gpus.unknown_nodes:
        notes.append(f"{gpus.unknown_nodes} of its nodes name no known GPU")
    slowed = uplink_slowdowns(assigned.crossings, assigned.levels)
    smallest = gpus.known[0]
    if smallest.memory.value < min_gpu_memory(job):
        notes.append(f"it needs more memory than its {smallest.name} have")
    return Assessment(_predicted(job, setup, slowest, links, slowed, notes))


def _gpus(job: Job, nodes: Iterable[Node]) -> _GpuModels:
    if counted_gpus(job.spec.workers) not in WHOLE_GPUS:
        return _GpuModels((), len(list(nodes)))
    products = Counter(gpu_product_labels(node) for node in nodes)
    known, unknown = {}, 0
    for product, count in products.items():
        row = accelerator_of(dict(product))
        if row is None:
            unknown += count
        else:
            known[row.name] = row
    ordered = sorted(known.values(), key=lambda row: (row.memory.value, row.name))
    return _GpuModels(tuple(ordered), unknown)


def _several(prefix: str, rows: Sequence[Accelerator], chosen: str) -> str:
    if len(rows) == 1:
        return ""
    return f"{prefix} {', '.join(row.name for row in rows)}: planned for {chosen}"


def _unknown(job: Job) -> str:
    resource = counted_gpus(job.spec.workers)
    if resource not in WHOLE_GPUS:
        return f"{resource} is not a whole GPU: no times, and no check of the memory"
    labels = " or ".join(PRODUCT_LABELS)
    return (
        f"no node for the job names a known GPU in its label {labels}: no times, and no check of"
        " the memory"
    )


def _outlined(job: Job, setup: TrainingSetup, note: str) -> dict[str, Any]:
    known = outline(setup, tokens_of(job, setup))
    wire = outline_to_wire(known)
    wire["memory"] |= {"totalBytes": known.memory.total}
    del wire["memory"]["fits"]
    return _status(job, known.tokens, wire, [note])


def _predicted(
    job: Job,
    setup: TrainingSetup,
    hardware: Accelerator,
    links: Links,
    slowed: Mapping[Group, float] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    hardware = hardware.in_nodes_of(job.gpus_per_node, links)
    found = predict(setup, hardware, tokens_of(job, setup), slowed)
    wire = prediction_to_wire(found)
    wire["memory"] |= {"totalBytes": found.memory.total, "capacityBytes": found.memory.capacity}
    wire |= {"hardware": hardware.name, "totalSeconds": found.seconds}
    return _status(job, found.tokens, wire, notes)


def _status(job: Job, tokens: int, wire: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Return `status.plan`: bounded, with six significant digits."""
    if job.spec.workers.command is not None:
        notes = [*notes, "workers.command is set: planned as if llmtrain's own trainer ran"]
    text = clean_text("; ".join(note for note in notes if note))
    wire |= {"tokens": tokens, "totalFlops": float(wire["totalFlops"])}
    wire |= {"note": text} if text else {}
    return PlanStatus.from_wire(_rounded(wire)).to_wire()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return value
