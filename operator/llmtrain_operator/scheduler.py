"""The one loop that decides who sits where: snapshot, decide, assume; the job's loop commits.

A gang is a global decision, so it is made in one place. The scheduler writes nothing: it keeps an
offer free until the job's status shows it (then the stored placement counts) or the job turned it
down. `decide` is pure and holds the policy.

Queue: priority, then age. A job that does not fit keeps the nodes that it could use from the jobs
behind it, so that small jobs cannot starve a large one; one that could not run even on an empty
cluster keeps nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from llmtrain_core.api.check import Job, Problem
from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.api.status import LevelUse, PlacedBlock, PlacementStatus
from llmtrain_core.placement import Placement, Request, Unplaceable, eligible, place
from llmtrain_core.queueing.order import Waiting, in_order
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_core.topology.levels import Levels, detect
from llmtrain_operator.records import FabricRecord, JobRecord, PriorityRecord
from llmtrain_operator.usage import finished
from llmtrain_operator.verdicts import Offer, Refusal, Verdict, standing_back

log = logging.getLogger(__name__)

QUIET_SECONDS = 0.05
"""Changes come in swarms: let them settle before a cycle."""
SUMMARY_LIMIT = 128
_BLAMES_NODE = frozenset({Reason.STARTUP_TIMEOUT, Reason.NODE_LOST})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that waits for its place."""

    waiting: Waiting
    job: Job
    attempt: int
    fabric: str | None
    avoided: frozenset[str] = frozenset()
    """Nodes on which it failed to start, or that were lost under it: others are tried first."""
    refusal: Refusal | None = None
    """Why it cannot be placed, whatever is free."""

    @property
    def uid(self) -> str:
        """UID of the job."""
        return self.waiting.uid


@dataclass(frozen=True, slots=True)
class World:
    """The cluster at one instant."""

    nodes: tuple[Node, ...]
    usage: tuple[Usage, ...]
    fabrics: Mapping[str, FabricRecord] = field(default_factory=dict)


def decide(queue: Iterable[Candidate], world: World) -> dict[str, Verdict]:
    """Return a verdict for every waiting job. Pure and deterministic."""
    by_uid = {candidate.uid: candidate for candidate in queue}
    used = dict(snapshot((), (), world.usage).used)
    kept: dict[str, str] = {}
    verdicts: dict[str, Verdict] = {}
    for waiting in in_order(candidate.waiting for candidate in by_uid.values()):
        candidate = by_uid[waiting.uid]
        levels = candidate.refusal or _levels(candidate, world)
        if isinstance(levels, Refusal):
            verdicts[waiting.uid] = levels
            continue
        whole = Snapshot(levels, tuple(sorted(world.nodes, key=lambda n: n.name)), used)
        verdict = _one(candidate, whole, kept)
        verdicts[waiting.uid] = verdict
        if isinstance(verdict, Offer):
            for node in verdict.nodes:
                for resource, amount in verdict.resources.items():
                    used[node, resource] = used.get((node, resource), 0) + amount
    return verdicts


def _one(candidate: Candidate, whole: Snapshot, kept: dict[str, str]) -> Verdict:
    """Decide about one job; `kept` names, by node, the job ahead that waits for it."""
    request = Request.of(candidate.job)
    free = tuple(node for node in whole.nodes if node.name not in kept)
    careful = dataclasses.replace(request, excluded=request.excluded | candidate.avoided)
    answer = place(careful, dataclasses.replace(whole, nodes=free))
    if isinstance(answer, Unplaceable) and candidate.avoided:
        answer = place(request, dataclasses.replace(whole, nodes=free))
    if isinstance(answer, Placement):
        return _offer(candidate, request, whole, answer)
    alone = answer if len(free) == len(whole.nodes) else place(request, whole)
    _keep(candidate, request, whole, kept)
    if isinstance(alone, Unplaceable):
        return Refusal(alone.reason, clean_text(alone.message + _gaps(request, whole)))
    wanted = eligible(request, whole)
    ahead = sorted({key for node, key in kept.items() if node in wanted} - {candidate.waiting.key})
    # Whoever may read this job may not know what other teams run.
    shown = [key for key in ahead if key.startswith(f"{candidate.waiting.namespace}/")][:3]
    more = len(ahead) - len(shown)
    parts = [*shown, *([f"{more} {'more' if shown else 'of other namespaces'}"] if more else [])]
    message = f"there is room, but it is kept for jobs ahead: {', '.join(parts)}"
    return Refusal(Reason.WAITING_BEHIND, clean_text(message))


def _gaps(request: Request, whole: Snapshot) -> str:
    """Say which nodes that the job could use lack the label of a level."""
    missing = whole.missing_labels()
    wanted = eligible(request, whole) if missing else frozenset()
    counts = {label: len(wanted.intersection(names)) for label, names in missing.items()}
    said = [
        f"; {count} node{' lacks' if count == 1 else 's lack'} the label {label}"
        for label, count in counts.items()
        if count
    ]
    return "".join(said[:4])


def _keep(candidate: Candidate, request: Request, whole: Snapshot, kept: dict[str, str]) -> None:
    """Keep nodes for a job that would fit if others were done; not for one that never fits."""
    if isinstance(place(request, dataclasses.replace(whole, used={})), Placement):
        for name in eligible(request, whole):
            kept.setdefault(name, candidate.waiting.key)


def _levels(candidate: Candidate, world: World) -> Levels | Refusal:
    name = candidate.fabric or "default"
    found = world.fabrics.get(name)
    if found is None:
        if candidate.fabric is None:
            return detect(node.labels for node in world.nodes)
        message = (
            f"spec.topology.fabric: no Fabric is named {name!r}; create it, or create the job anew"
            " without the field"
        )
        return Refusal(Reason.FABRIC_NOT_FOUND, message)
    if found.problem:
        return Refusal(Reason.INVALID_FABRIC, clean_text(f"Fabric {name}: {found.problem}"))
    return found.levels


def _offer(candidate: Candidate, request: Request, whole: Snapshot, answer: Placement) -> Offer:
    stored = PlacementStatus(
        attempt=candidate.attempt,
        gpus_per_node=request.gpus_per_node,
        blocks=[
            PlacedBlock(path=path, nodes=[node.name for node in nodes])
            for path, nodes in groupby(
                answer.nodes, key=lambda node: "/".join([*node.path.values()][:-1])
            )
        ],
        levels=[
            LevelUse(
                level=level,
                domains=count,
                crossings=dict(answer.crossings.get(level, {})) or None,
            )
            for level, count in answer.domains.items()
        ],
        explanation=clean_text(answer.explanation + _gaps(request, whole)),
    )
    return Offer(
        attempt=candidate.attempt,
        placement=stored.to_wire(),
        summary=_summary(answer, whole),
        nodes=tuple(node.name for node in answer.nodes),
        resources={request.gpu_resource: request.gpus_per_node, **request.extra},
    )


def _summary(answer: Placement, whole: Snapshot) -> str:
    count = len(answer.nodes)
    parts = [f"{count} node" + ("" if count == 1 else "s")]
    for level in reversed(whole.levels[:-1]):
        parts.append(f"{answer.domains[level.name]} {level.name}")
    return clean_text(" · ".join(parts), SUMMARY_LIMIT)


def candidate_of(
    record: JobRecord, checked: Job | list[Problem], priorities: Mapping[str, PriorityRecord]
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
    name = checked.spec.priority_class_name
    waiting = Waiting(
        uid=record.uid, namespace=record.namespace, name=record.name,
        priority=_priority(name, priorities), since=raw["metadata"]["creationTimestamp"],
    )  # fmt: skip
    topology = checked.spec.topology
    return Candidate(
        waiting, checked, attempt, topology.fabric if topology else None,
        avoided=frozenset(
            failure["node"] for failure in status.get("failures") or ()
            if failure["reason"] in _BLAMES_NODE and failure.get("node")
        ),
        refusal=None if name is None or name in priorities else _no_priority_class(name),
    )  # fmt: skip


def _no_priority_class(name: str) -> Refusal:
    message = (
        f"spec.priorityClassName: no PriorityClass is named {name!r}; create it, or create the job"
        " anew with one that exists"
    )
    return Refusal(Reason.PRIORITY_CLASS_NOT_FOUND, clean_text(message))


def _priority(name: str | None, priorities: Mapping[str, PriorityRecord]) -> int:
    if name is not None:
        found = priorities.get(name)
        return found.value if found else 0
    return next((item.value for item in priorities.values() if item.is_default), 0)


class Scheduler:
    """Runs cycles, and keeps offers until they are taken up."""

    def __init__(
        self,
        candidates: Callable[[], Sequence[Candidate]],
        world: Callable[[Mapping[str, Offer]], World],
        stored: Callable[[str], Mapping[str, Any] | None],
        wake: Callable[[str], None],
        seconds: Callable[[float], None] = lambda _seconds: None,
    ):
        self._candidates = candidates
        self._world = world
        self._stored = stored
        self._wake = wake
        self._seconds = seconds
        self._poked = asyncio.Event()
        self._offers: dict[str, Offer] = {}
        self._claimed: set[str] = set()
        self._verdicts: dict[str, Verdict] = {}
        self.waiting = 0

    def poke(self) -> None:
        """Something changed that may matter to a waiting job."""
        self._poked.set()

    def verdict(self, uid: str) -> Verdict | None:
        """Return the newest verdict about a job."""
        return self._offers.get(uid) or self._verdicts.get(uid)

    def claim(self, uid: str) -> None:
        """The job is about to write the offer down: from now on it cannot be taken back."""
        self._claimed.add(uid)

    def give_up(self, uid: str) -> None:
        """The write of a claimed offer has certainly failed."""
        self._claimed.discard(uid)
        self.poke()

    async def run(self) -> None:
        """Run a cycle whenever something changed."""
        while True:
            await self._poked.wait()
            await asyncio.sleep(QUIET_SECONDS)
            self._poked.clear()
            try:
                started = time.perf_counter()
                await self.cycle()
                self._seconds(time.perf_counter() - started)
            except Exception:
                # One broken object must not stop the queue of everybody for good.
                log.exception("scheduler cycle failed")
                await asyncio.sleep(1.0)
                self.poke()

    async def cycle(self) -> None:
        """Decide about all waiting jobs as the copies show them now.

        The decision runs in a thread: with many jobs and nodes it takes longer than a lease or a
        probe may wait. What changes meanwhile is seen by the next cycle; nobody else makes offers.
        """
        queue = {candidate.uid: candidate for candidate in self._candidates()}
        self._settle(queue)
        self.waiting = len(queue)
        open_ = [c for uid, c in queue.items() if uid not in self._offers]
        world = self._world(self._offers) if open_ else None
        verdicts = await asyncio.to_thread(decide, open_, world) if world is not None else {}
        before = {uid: self._verdicts.get(uid) for uid in verdicts}
        self._verdicts = {uid: v for uid, v in verdicts.items() if isinstance(v, Refusal)}
        for uid, verdict in verdicts.items():
            if isinstance(verdict, Offer):
                self._offers[uid] = verdict
            if verdict != before[uid]:
                self._wake(uid)

    def _settle(self, queue: Mapping[str, Candidate]) -> None:
        """Drop offers that the copies show as taken up, and those nobody waits for any more."""
        for uid, offer in list(self._offers.items()):
            status = self._stored(uid)
            gone = status is None
            attempt = int((status or {}).get("attempt") or 0)
            placement = (status or {}).get("placement") or {}
            visible = bool(placement) and placement.get("attempt", 0) >= offer.attempt
            moved_on = attempt > offer.attempt
            idle = uid not in queue and uid not in self._claimed
            stale = uid in queue and queue[uid].attempt != offer.attempt
            if gone or visible or moved_on or idle or (stale and uid not in self._claimed):
                del self._offers[uid]
                self._claimed.discard(uid)
