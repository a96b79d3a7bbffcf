"""Jobs that hold a place: where they sit, what they send, and whether they may move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.api.check import Job, Problem
from llmtrain_core.api.conditions import ConditionType, is_true
from llmtrain_core.placement import Request
from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing.uplinks import add, oversubscribed, uplink_shares
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_operator.candidates import Candidate, Priorities, candidate
from llmtrain_operator.lifecycle import estimate
from llmtrain_operator.lifecycle.moving import asked, ready
from llmtrain_operator.records import JobRecord
from llmtrain_operator.usage import finished, placed_nodes


@dataclass(frozen=True, slots=True)
class Sitting:
    """A job that holds its place: where its ranks are, and what they send."""

    candidate: Candidate
    """The job as it would wait for its next attempt."""
    nodes: tuple[str, ...]
    """In order of rank block."""
    step_seconds: float | None
    settled: bool = True
    """Whether it runs, so that a better place is worth a thought."""
    moves: bool = False
    """Whether its user asked for a better place, and a checkpoint is there to go on from."""


class Ledger:
    """What jobs send over uplinks; worked out once for each attempt and fabric."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Mapping[Path, float]] = {}

    def of(self, sitting: Iterable[Sitting], name: str | None, fabric: Snapshot) -> Snapshot:
        """Return the fabric with the shares of its uplinks that are busy."""
        if not oversubscribed(fabric):
            return fabric
        total: dict[Path, float] = {}
        known: dict[tuple[object, ...], Mapping[Path, float]] = {}
        for job in sitting:
            key = (job.candidate.uid, job.nodes, job.step_seconds, name, len(fabric.nodes))
            shares = self._known.get(key)
            if shares is None:
                shares = uplink_shares(job.candidate.request, job.nodes, fabric, job.step_seconds)
            known[key] = shares
            add(total, shares)
        self._known = {k: v for k, v in self._known.items() if k[3] != name} | known
        return replace(fabric, uplinks=total)


def sitting_of(
    record: JobRecord, checked: Job | list[Problem], priorities: Priorities, now: float,
    request: Callable[[Job], Request],
) -> Sitting | None:  # fmt: skip
    """Return a job that runs where its status says; None for any other."""
    raw, status = record.raw, record.raw.get("status") or {}
    attempt, placement = int(status.get("attempt") or 0), status.get("placement")
    if isinstance(checked, list) or finished(raw) or not placement:
        return None
    if placement.get("attempt", 0) != attempt or "deletionTimestamp" in raw["metadata"]:
        return None
    step = estimate.step_seconds(status)
    running = is_true(status.get("conditions") or (), ConditionType.RUNNING)
    return Sitting(
        replace(candidate(record, checked, priorities, now, request), attempt=attempt + 1),
        tuple(placed_nodes(placement)),
        step.value if step else None,
        settled=running and not checked.spec.suspend,
        moves=running and asked(raw, attempt) and ready(status),
    )
