"""Which jobs wait for a place, and how the queue sees those that have one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.placement import Request
from llmtrain_core.queueing import Running
from llmtrain_core.queueing.quarantine import Blame
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.job import JobView, parse_time
from llmtrain_operator.cache.records import JobRecord, PriorityRecord
from llmtrain_operator.planning import durations
from llmtrain_operator.scheduler.decisions import Refusal, standing_back
from llmtrain_operator.scheduler.usage import resources_of

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
    view = record.view
    if isinstance(checked, list) or checked.spec.suspend:
        return None
    if view.is_finished or view.is_deleting or view.placement or standing_back(view):
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
    view = record.view
    name, topology = checked.spec.priority_class_name, checked.spec.topology
    found = priority_of(name, priorities)
    expected = durations.duration(checked, view, now)
    return Candidate(
        uid=record.uid,
        namespace=record.namespace,
        name=record.name,
        priority=found.value if found else 0,
        since=parse_time(view.creation_time).timestamp(),
        job=checked,
        request=request(checked),
        attempt=view.attempt,
        fabric=topology.fabric if topology else None,
        avoided=frozenset(blame.node for blame in _blames(view)),
        refusal=None if name is None or name in priorities else _no_priority_class(name),
        duration=_bound(checked, view, now),
        expected=expected.value if expected else None,
        preempts=found is None or found.preempts,
    )


def _bound(job: Job, view: JobView, now: float) -> float | None:
    """Seconds that are left until activeDeadlineSeconds; its clock starts with the first place."""
    limit = durations.deadline(job, view)
    if limit is not None:
        return max(0.0, limit - now)
    policy = job.spec.run_policy
    seconds = policy.active_deadline_seconds if policy else None
    return None if seconds is None else float(seconds)


def tenant_of(
    record: JobRecord, checked: Job | list[Problem], priorities: Priorities, now: float
) -> Running | None:
    """Return a job that holds nodes as the queue sees it; None for one that holds none."""
    view = record.view
    placement = view.stored_placement
    if not placement or view.is_finished:
        return None
    found = priority_of(view.priority_class, priorities)
    end = None if isinstance(checked, list) else durations.ends_at(checked, view, now)
    return Running(
        uid=record.uid,
        namespace=record.namespace,
        priority=found.value if found else 0,
        nodes=tuple(view.held_nodes),
        takes=resources_of(view.spec, int(placement["gpusPerNode"])),
        ends_at=end.value if end else None,
        lost_seconds=lost_seconds(view, now),
        preemptible=not (view.is_deleting or view.is_suspended),
    )


def lost_seconds(view: JobView, now: float) -> float:
    """Seconds of training since the last checkpoint; all of the attempt where none is known."""
    step, saved = durations.step_seconds(view), view.last_checkpoint
    if step is not None and saved is not None:
        steps = int(view.progress.get("step", 0)) - saved
        return max(0.0, steps * step.value)
    return max(0.0, now - parse_time(view.attempt_start_time).timestamp())


def blames(records: Iterable[JobRecord]) -> Iterator[Blame]:
    """Yield the failures of all jobs that name a node."""
    for record in records:
        yield from _blames(record.view)


def _blames(view: JobView) -> Iterator[Blame]:
    for failure in view.failures:
        if failure["reason"] in _BLAMES_NODE and failure.get("node"):
            yield Blame(failure["node"], parse_time(failure["time"]).timestamp())


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
