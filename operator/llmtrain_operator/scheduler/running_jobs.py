"""Jobs that hold a place: where they sit, what they send, and whether they may move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.placement import Request
from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing.uplink_usage import add, oversubscribed, uplink_shares
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.validation.check import Job, Problem
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.planning import durations
from llmtrain_operator.scheduler.jobs import Candidate, Priorities, candidate


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


Shares = Mapping[Path, float]
Ground = tuple[object, ...]
"""A fabric as far as a job's share of its uplinks depends on it."""
_Entry = tuple[Request, tuple[str, ...], float | None]


class Ledger:
    """What jobs send over uplinks; worked out once for each attempt and fabric."""

    def __init__(self) -> None:
        self._known: dict[str | None, tuple[Ground, dict[str, tuple[_Entry, Shares]]]] = {}

    def of(self, sitting: Iterable[Sitting], name: str | None, fabric: Snapshot) -> Snapshot:
        """Return the fabric with the shares of its uplinks that are busy."""
        if not oversubscribed(fabric):
            return fabric
        # Every label counts: a node that joins a domain widens the uplink of those who sit there.
        nodes = tuple((node.name, node.labels) for node in fabric.nodes)
        ground: Ground = (fabric.levels, fabric.links, nodes)
        before, entries = self._known.get(name, ((), {}))
        old = entries if before == ground else {}
        known: dict[str, tuple[_Entry, Shares]] = {}
        total: dict[Path, float] = {}
        for job in sitting:
            uid, request = job.candidate.uid, job.candidate.request
            entry = (request, job.nodes, job.step_seconds)
            found = old.get(uid)
            if found is None or found[0] != entry:
                shares = uplink_shares(request, job.nodes, fabric, job.step_seconds)
                found = entry, shares
            known[uid] = found
            add(total, found[1])
        self._known[name] = ground, known
        return replace(fabric, uplinks=total)


def sitting_of(
    record: JobRecord,
    checked: Job | list[Problem],
    priorities: Priorities,
    now: float,
    request: Callable[[Job], Request],
) -> Sitting | None:
    """Return a job that runs where its status says; None for any other."""
    view = record.view
    if isinstance(checked, list) or view.is_finished or view.is_deleting or not view.placement:
        return None
    step = durations.step_seconds(view)
    running = view.is_true(ConditionType.RUNNING)
    return Sitting(
        replace(candidate(record, checked, priorities, now, request), attempt=view.attempt + 1),
        tuple(view.placed_nodes),
        step.value if step else None,
        settled=running and not checked.spec.suspend,
        moves=running and view.relocation_requested and view.relocation_ready,
    )
