"""Which jobs wait for a place, and how the queue sees those that have one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.placement import Request
from llmtrain_core.queueing import Running
from llmtrain_core.queueing.quarantine import Blame
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.records import JobRecord, PriorityRecord
from llmtrain_operator.job_state.observation import to_time
from llmtrain_operator.planning import durations
from llmtrain_operator.scheduler.decisions import Refusal, standing_back
from llmtrain_operator.scheduler.usage import finished, held_nodes, resources_of

_BLAMES_NODE = frozenset({Reason.STARTUP_TIMEOUT, Reason.NODE_LOST})

Priorities = Mapping[str, PriorityRecord]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that waits for its place."""

    uid: str
    namespace: str
    name: str
    priority: int
    since: float
    """Creation time, in seconds since the epoch."""
    job: Job
    request: Request
    attempt: int = 0
    fabric: str | None = None
    avoided: frozenset[str] = frozenset()
    """Nodes on which it failed to start, or that were lost under it: others are tried first."""
    refusal: Refusal | None = None
    """Why it cannot be placed, whatever is free."""
    duration: float | None = None
    """Seconds that it holds its nodes at most, by its deadline."""
    expected: float | None = None
    """Seconds that it holds its nodes by plan or measurement."""
    preempts: bool = True

    @property
    def key(self) -> str:
        """`namespace/name`, as shown to users."""
        return f"{self.namespace}/{self.name}"


def candidate_of(
    record: JobRecord,
    checked: Job | list[Problem],
    priorities: Priorities,
    now: float = 0.0,
    request: Callable[[Job], Request] = Request.of,
) -> Candidate | None:
    """Return the job as a candidate, or None if it does not wait for a place."""
    raw, status = record.raw, record.raw.get("status") or {}
    if isinstance(checked, list) or checked.spec.suspend or finished(raw):
        return None
    if "deletionTimestamp" in raw["metadata"]:
        return None
    attempt = int(status.get("attempt") or 0)
    placement = status.get("placement")
    if (placement and placement.get("attempt", 0) == attempt) or standing_back(status):
        return None
    return candidate(record, checked, priorities, now, request)


def candidate(
    record: JobRecord,
    checked: Job,
    priorities: Priorities,
    now: float,
    request: Callable[[Job], Request],
) -> Candidate:
    """Return a job as it waits, or would wait, for a place."""
    raw, status = record.raw, record.raw.get("status") or {}
    name, topology = checked.spec.priority_class_name, checked.spec.topology
    found = priority_of(name, priorities)
    expected = durations.duration(checked, status, now)
    return Candidate(
        uid=record.uid,
        namespace=record.namespace,
        name=record.name,
        priority=found.value if found else 0,
        since=to_time(raw["metadata"]["creationTimestamp"]).timestamp(),
        job=checked,
        request=request(checked),
        attempt=int(status.get("attempt") or 0),
        fabric=topology.fabric if topology else None,
        avoided=frozenset(blame.node for blame in _blames(status)),
        refusal=None if name is None or name in priorities else _no_priority_class(name),
        duration=_bound(checked, status, now),
        expected=expected.value if expected else None,
        preempts=found is None or found.preempts,
    )


def _bound(job: Job, status: Mapping[str, Any], now: float) -> float | None:
    """Seconds that are left until activeDeadlineSeconds; its clock starts with the first place."""
    limit = durations.deadline(job, status)
    if limit is not None:
        return max(0.0, limit - now)
    policy = job.spec.run_policy
    seconds = policy.active_deadline_seconds if policy else None
    return None if seconds is None else float(seconds)


def tenant_of(
    record: JobRecord, checked: Job | list[Problem], priorities: Priorities, now: float
) -> Running | None:
    """Return a job that holds nodes as the queue sees it; None for one that holds none."""
    raw, status = record.raw, record.raw.get("status") or {}
    placement = status.get("placement")
    if not placement or finished(raw):
        return None
    leaving = "deletionTimestamp" in raw["metadata"] or bool(raw["spec"].get("suspend"))
    found = priority_of(raw["spec"].get("priorityClassName"), priorities)
    end = None if isinstance(checked, list) else durations.ends_at(checked, status, now)
    return Running(
        uid=record.uid,
        namespace=record.namespace,
        priority=found.value if found else 0,
        nodes=tuple(held_nodes(placement)),
        takes=resources_of(raw["spec"], int(placement["gpusPerNode"])),
        ends_at=end.value if end else None,
        lost_seconds=lost_seconds(status, now),
        preemptible=not leaving,
    )


def lost_seconds(status: Mapping[str, Any], now: float) -> float:
    """Seconds of training since the last checkpoint; all of the attempt where none is known."""
    progress = status.get("progress") or {}
    step = durations.step_seconds(status)
    if step is not None and progress.get("lastCheckpointStep") is not None:
        steps = int(progress.get("step", 0)) - int(progress["lastCheckpointStep"])
        return max(0.0, steps * step.value)
    return max(0.0, now - to_time(status.get("attemptStartTime") or "").timestamp())


def blames(records: Iterable[JobRecord]) -> Iterator[Blame]:
    """Yield the failures of all jobs that name a node."""
    for record in records:
        yield from _blames(record.raw.get("status") or {})


def _blames(status: Mapping[str, Any]) -> Iterator[Blame]:
    for failure in status.get("failures") or ():
        if failure["reason"] in _BLAMES_NODE and failure.get("node"):
            yield Blame(failure["node"], to_time(failure["time"]).timestamp())


def priority_of(name: str | None, priorities: Priorities) -> PriorityRecord | None:
    """Return a job's PriorityClass: the one it names, else the cluster's default."""
    if name is not None:
        return priorities.get(name)
    return next((item for item in priorities.values() if item.is_default), None)


def _no_priority_class(name: str) -> Refusal:
    message = (
        f"spec.priorityClassName: no PriorityClass is named {name!r}; create it, or create the job"
        " anew with one that exists"
    )
    return Refusal(Reason.PRIORITY_CLASS_NOT_FOUND, clean_text(message))
