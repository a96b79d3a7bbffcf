"""A typed, read-only view of a stored job. Code outside `cache/` reads jobs through it.

The operator reads the metadata and spec of jobs that may be invalid, so every property tolerates a
missing field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import ConditionType, get_condition, is_true
from llmtrain_core.api.defaults import MAX_NODES

Raw = Mapping[str, Any]

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
ORPHAN = "orphan"
"""Finalizer by which the API server marks a deletion that keeps the children of an object."""


def parse_time(text: str) -> datetime:
    """Parse an API timestamp (RFC 3339). Return the epoch if it is empty. Raises ValueError."""
    if not text:
        return datetime.fromtimestamp(0, UTC)
    found = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    if found.tzinfo is None:
        raise ValueError(f"{text} has no offset from UTC")
    return found


def format_time(moment: datetime) -> str:
    """Format a time as an API timestamp."""
    return moment.astimezone(UTC).strftime(TIME_FORMAT)


def parse_ranges(text: str) -> frozenset[int]:
    """Parse numbers below MAX_NODES that are written as `0,2-5`. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        end = int(last) if dash else int(first)
        if end >= MAX_NODES:
            raise ValueError(f"{end} is not below {MAX_NODES}")
        found.update(range(int(first), end + 1))
    return frozenset(found)


def format_ranges(numbers: Iterable[int]) -> str:
    """Return numbers as `0,2-5`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


def is_ours(spec: Raw) -> bool:
    """Return True if this operator manages a job with this spec; it writes to no other."""
    return spec.get("managedBy") in (None, labels.CONTROLLER_NAME)


@dataclass(frozen=True, slots=True)
class JobView:
    """Named access to the metadata, spec and status of a job.

    The view copies nothing: it also reads a status that is being edited.
    """

    metadata: Raw
    spec: Raw
    status: Raw

    @classmethod
    def of(cls, raw: Raw) -> JobView:
        """Return the view of a job object."""
        return cls(raw["metadata"], raw.get("spec") or {}, raw.get("status") or {})

    def with_status(self, status: Raw) -> JobView:
        """Return a view of the job with another status."""
        return JobView(self.metadata, self.spec, status)

    # Metadata.

    @property
    def generation(self) -> int:
        """Generation of the spec."""
        return int(self.metadata.get("generation") or 0)

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels."""
        return self.metadata.get("labels") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        """Annotations."""
        return self.metadata.get("annotations") or {}

    @property
    def creation_time(self) -> str:
        """API timestamp of the creation."""
        return str(self.metadata["creationTimestamp"])

    @property
    def is_deleting(self) -> bool:
        """Whether the job has a deletion timestamp."""
        return "deletionTimestamp" in self.metadata

    @property
    def deletion_time(self) -> str:
        """API timestamp of the deletion; empty if the job is not being deleted."""
        return str(self.metadata.get("deletionTimestamp", ""))

    @property
    def finalizers(self) -> Sequence[str]:
        """Finalizers."""
        return self.metadata.get("finalizers") or ()

    @property
    def has_finalizer(self) -> bool:
        """Whether the finalizer of an earlier version of the operator is set."""
        return labels.FINALIZER in self.finalizers

    @property
    def orphans_pods(self) -> bool:
        """Whether the job is being deleted without its pods."""
        return ORPHAN in self.finalizers

    @property
    def over_memory_annotation(self) -> str | None:
        """Value of the annotation that allows a job whose plan exceeds the GPU memory."""
        return self.annotations.get(labels.ALLOW_OVER_MEMORY)

    @property
    def allows_over_memory(self) -> bool:
        """Whether the user allows a job whose plan exceeds the GPU memory."""
        return self.over_memory_annotation == "true"

    # Spec.

    @property
    def is_ours(self) -> bool:
        """Whether this operator manages the job."""
        return is_ours(self.spec)

    @property
    def is_suspended(self) -> bool:
        """Whether `spec.suspend` is set."""
        return bool(self.spec.get("suspend"))

    @property
    def priority_class(self) -> str | None:
        """Name of the PriorityClass."""
        return self.spec.get("priorityClassName")

    @property
    def fabric(self) -> str | None:
        """Name of the Fabric."""
        return (self.spec.get("topology") or {}).get("fabric")

    @property
    def run_policy(self) -> Raw:
        """`spec.runPolicy`."""
        return self.spec.get("runPolicy") or {}

    # Status.

    @property
    def attempt(self) -> int:
        """Number of the current attempt."""
        return int(self.status.get("attempt") or 0)

    @property
    def phase(self) -> str:
        """Phase shown in the STATE column."""
        return self.status.get("phase") or "Pending"

    @property
    def conditions(self) -> Sequence[Raw]:
        """Conditions."""
        return self.status.get("conditions") or ()

    def condition(self, kind: ConditionType) -> Raw | None:
        """Return one condition, or None."""
        return get_condition(self.conditions, kind)

    def is_true(self, kind: ConditionType) -> bool:
        """Return True if the condition exists and is true."""
        return is_true(self.conditions, kind)

    @property
    def is_finished(self) -> bool:
        """Whether the job has succeeded or failed."""
        return self.is_true(ConditionType.SUCCEEDED) or self.is_true(ConditionType.FAILED)

    @property
    def stored_placement(self) -> Raw | None:
        """`status.placement`, of whichever attempt."""
        return self.status.get("placement") or None

    @property
    def stored_network(self) -> Raw | None:
        """Network of the stored placement; None if that is of an older release."""
        return self.status.get("network") or None

    @property
    def placement(self) -> Raw | None:
        """The placement of the current attempt."""
        found = self.stored_placement
        return found if found and found.get("attempt", 0) == self.attempt else None

    @property
    def placed_deadline(self) -> str:
        """API timestamp at which the placement ends; empty if it has no end."""
        return (self.stored_placement or {}).get("deadline") or ""

    @property
    def placed_nodes(self) -> list[str]:
        """Nodes of the stored placement, in order of rank block."""
        return _nodes_of((self.stored_placement or {}).get("blocks"))

    @property
    def held_nodes(self) -> list[str]:
        """Nodes of the stored placement: those with ranks, then the spare ones."""
        return [*self.placed_nodes, *self.spare_nodes]

    @property
    def spare_nodes(self) -> list[str]:
        """Spare nodes of the stored placement, nearest first."""
        return _nodes_of((self.stored_placement or {}).get("spares"))

    @property
    def wanted_spares(self) -> int:
        """Number of spare nodes that the spec asks for."""
        return int((self.spec.get("topology") or {}).get("spares") or 0)

    @property
    def completed_pods(self) -> frozenset[int]:
        """Numbers of the pods of the stored placement that were found to have succeeded."""
        found = self.status.get("completedPods") or {}
        attempt = (self.stored_placement or {}).get("attempt", 0)
        return parse_ranges(found["indexes"]) if found.get("attempt") == attempt else frozenset()

    @property
    def start_time(self) -> str:
        """API timestamp of the first placement; empty before it."""
        return self.status.get("startTime") or ""

    @property
    def attempt_start_time(self) -> str:
        """API timestamp of the start of the current attempt; empty without a placement."""
        return self.status.get("attemptStartTime") or ""

    @property
    def completion_time(self) -> str:
        """API timestamp of the end of the job; empty before it."""
        return self.status.get("completionTime") or ""

    @property
    def restarts(self) -> int:
        """Restarts of the gang after failures and disruptions."""
        return int(self.status.get("restarts") or 0)

    @property
    def restart_checkpoint(self) -> int:
        """Step of the newest checkpoint at the last restart that counted towards maxRestarts."""
        return int(self.status.get("restartCheckpointStep") or 0)

    @property
    def restarts_towards_max(self) -> int:
        """Restarts after own failures since the newest checkpoint."""
        if (self.last_checkpoint or 0) > self.restart_checkpoint:
            return 0
        return int(self.status.get("restartsCountTowardsMax") or 0)

    @property
    def last_restart(self) -> Raw:
        """The last restart of the gang or of its ranks."""
        return self.status.get("lastRestart") or {}

    @property
    def unstarted_attempts(self) -> int:
        """Consecutive attempts that lost their nodes before all of their pods had started."""
        return int(self.status.get("unstartedAttempts") or 0)

    @property
    def backoff_until(self) -> str:
        """API timestamp of the time at which the job queues again; empty if it is queued."""
        return self.status.get("backoffUntil") or ""

    @property
    def failures(self) -> Sequence[Raw]:
        """The most recent failures, oldest first."""
        return self.status.get("failures") or ()

    @property
    def progress(self) -> Raw:
        """The last progress report."""
        return self.status.get("progress") or {}

    @property
    def last_checkpoint(self) -> int | None:
        """Step of the newest complete checkpoint."""
        step = self.progress.get("lastCheckpointStep")
        return None if step is None else int(step)

    @property
    def plan(self) -> Raw:
        """The plan and its measurements."""
        return self.status.get("plan") or {}

    @property
    def measured(self) -> Raw:
        """What the running job has measured of its plan."""
        return self.plan.get("measured") or {}

    @property
    def times(self) -> Iterator[tuple[str, str]]:
        """Field and value of all API timestamps of the status. Those that are not set are empty."""
        names = "startTime", "attemptStartTime", "completionTime", "backoffUntil", "estimatedStart"
        yield from ((name, self.status.get(name) or "") for name in names)
        yield "placement.deadline", self.placed_deadline
        yield "move.deadline", self.move.get("deadline") or ""
        yield "lastRestart.time", self.last_restart.get("time") or ""
        yield "progress.eta", self.progress.get("eta") or ""
        yield from (("failures.time", failure["time"]) for failure in self.failures)
        for condition in self.conditions:
            yield "conditions.lastTransitionTime", condition["lastTransitionTime"]

    # Relocation.

    @property
    def move(self) -> Raw:
        """The pending relocation, and the checkpoint that must be newer."""
        return self.status.get("move") or {}

    @property
    def relocation_requested(self) -> bool:
        """Whether the user requested a relocation of the current attempt."""
        return self.annotations.get(labels.REPLACE) == str(self.attempt)

    @property
    def is_drained(self) -> bool:
        """Whether nodes of the current attempt are drained."""
        return bool(self.drain_deadline)

    @property
    def drained_nodes(self) -> Sequence[str]:
        """Nodes of the current attempt that are drained: the first ones, if there are many."""
        return (self.move.get("nodes") or ()) if self.is_drained else ()

    @property
    def drain_deadline(self) -> str:
        """API timestamp from which the pods may be evicted; empty if no node is drained."""
        return (self.move.get("deadline") or "") if self.move.get("attempt") == self.attempt else ""

    def may_leave(self, now: float) -> bool:
        """Return True if a job whose nodes are drained may move. `now` is Unix time.

        It moves after a newer checkpoint, at the latest at the deadline. A job that saves none
        would lose everything, and may end before it is evicted.
        """
        if not self.is_drained:
            return False
        saves = self.last_checkpoint is not None or bool(self.spec.get("checkpoint"))
        overdue = now >= parse_time(self.drain_deadline).timestamp()
        return self.relocation_ready or (overdue and saves)

    @property
    def relocation_ready(self) -> bool:
        """Whether a checkpoint is newer than the relocation request."""
        move, newest = self.move, self.last_checkpoint
        if not move or newest is None or move["attempt"] != self.attempt:
            return False
        return newest > int(move["afterCheckpoint"])


def _nodes_of(blocks: Sequence[Raw] | None) -> list[str]:
    return [node for block in blocks or () for node in block["nodes"]]
