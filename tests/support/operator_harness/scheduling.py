"""Nodes, jobs and queues for tests of the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain_core.placement import Request
from llmtrain_core.topology.inventory import Node, Usage
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.records import (
    FabricRecord,
    JobRecord,
    PriorityRecord,
    fabric_record,
)
from llmtrain_operator.scheduler.cycle import World
from llmtrain_operator.scheduler.cycle import decide as decided
from llmtrain_operator.scheduler.decisions import Refusal, Verdict
from llmtrain_operator.scheduler.jobs import Candidate, candidate_of
from tests.support.operator_harness.harness import job_object

GPU = "nvidia.com/gpu"
SPINE, LEAF = "network.topology.nvidia.com/spine", "network.topology.nvidia.com/leaf"


def nodes(count: int, gpus: int = 8, per_leaf: int = 4) -> tuple[Node, ...]:
    return tuple(
        Node(
            f"n{index}",
            {SPINE: f"s{index // (2 * per_leaf)}", LEAF: f"l{index // per_leaf}", "pool": "all"},
            {GPU: gpus},
        )
        for index in range(count)
    )


def job(name: str, count: int, gpus: int = 8, **spec: Any) -> Job:
    workers = {"nodes": count, "gpusPerNode": gpus, "command": ["x"], **spec.pop("workers", {})}
    degrees = {"tensor": gpus, "data": count}
    raw = job_object(name, "ns", workers=workers, parallelism=degrees, **spec)
    found = check(name, raw["spec"])
    assert isinstance(found, Job), found
    return found


def waits(
    name: str,
    count: int,
    gpus: int = 8,
    *,
    priority: int = 0,
    fabric: str | None = None,
    **spec: Any,
) -> Candidate:
    """A job that came in the second that its name ends with."""
    found = job(name, count, gpus, **spec)
    request = Request.of(found)
    return Candidate(name, "ns", name, priority, float(name[-1]), found, request, fabric=fabric)


def decide(queue: list[Candidate], world: World) -> Mapping[str, Verdict]:
    return decided(queue, world).verdicts


def refusal(verdict: object) -> Refusal:
    assert isinstance(verdict, Refusal), verdict
    return verdict


def fabric(spec: Mapping[str, Any], name: str = "default") -> dict[str, FabricRecord]:
    return {name: fabric_record({"metadata": {"name": name}, "spec": spec})}


def record(name: str, status: dict[str, Any] | None = None, **spec: Any) -> JobRecord:
    raw = job_object(name, "ns", **spec)
    raw["metadata"] |= {"uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    if status is not None:
        raw["status"] = status
    return JobRecord(name, "ns", name, 1, raw)


def as_candidate(found: JobRecord, **priorities: PriorityRecord) -> Candidate | None:
    return candidate_of(found, check(found.name, found.raw["spec"]), priorities)


def total(items: list[Usage]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for item in items:
        found[item.node, item.owner] = found.get((item.node, item.owner), 0) + item.amount
    return found
