"""One decision about all waiting jobs: from records to the pure queue and back to offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.api.defaults import FABRIC_NAME
from llmtrain_core.placement import Placement, eligible
from llmtrain_core.queueing import Running, Scene, Start, Waiting
from llmtrain_core.queueing import decide as decide_queue
from llmtrain_core.queueing.messages import preempted_message
from llmtrain_core.queueing.quarantine import Quarantine
from llmtrain_core.queueing.relocation import relocation
from llmtrain_core.topology.findings import Finding, bearing_on, findings, sentences
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_operator.cache.placement_status import stored, summary
from llmtrain_operator.cache.records import FabricRecord
from llmtrain_operator.scheduler.decisions import Eviction, Hint, Offer, Refusal
from llmtrain_operator.scheduler.fabric_levels import levels_on
from llmtrain_operator.scheduler.jobs import Candidate
from llmtrain_operator.scheduler.running_jobs import Ledger, Sitting

MOST_FINDINGS = 4
"""Findings about labels in a message."""


@dataclass(frozen=True, slots=True)
class World:
    """The cluster at one instant."""

    nodes: tuple[Node, ...]
    usage: tuple[Usage, ...]
    fabrics: Mapping[str, FabricRecord] = field(default_factory=dict)
    tenants: tuple[Running, ...] = ()
    """Who will give back, or may be made to give back, what is in use."""
    attempts: Mapping[str, int] = field(default_factory=dict)
    """Attempt of each job that holds nodes."""
    quarantine: Quarantine = field(default_factory=Quarantine)
    now: float = 0.0
    """Seconds since the epoch."""
    sitting: tuple[Sitting, ...] = ()
    """Jobs that keep the place they have."""
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(frozen=True, slots=True)
class Decided:
    """What came of it."""

    verdicts: Mapping[str, Offer | Refusal]
    """About each waiting job."""
    evictions: Mapping[str, Eviction]
    """By UID: jobs that have to stop."""


def decide(
    queue: Iterable[Candidate], world: World, promised: frozenset[str] = frozenset()
) -> Decided:
    """Return a verdict for every waiting job. Pure and deterministic.

    `promised` are the jobs for which others have been stopped.
    """
    by_uid = {candidate.uid: candidate for candidate in queue}
    fabrics = _Fabrics(world)
    verdicts: dict[str, Offer | Refusal] = {}
    waiting: list[Waiting] = []
    for uid, candidate in by_uid.items():
        fabric = candidate.refusal or fabrics.of(candidate)
        if isinstance(fabric, Refusal):
            verdicts[uid] = fabric
        else:
            waiting.append(_waiting(candidate, fabric))
    scene = Scene(
        now=world.now,
        used=snapshot((), (), world.usage).used,
        running=world.tenants,
        quarantined=world.quarantine.until,
        suspects=world.quarantine.suspects,
        promised=promised,
    )
    evictions: dict[str, Eviction] = {}
    namespaces = {tenant.uid: tenant.namespace for tenant in world.tenants}
    decisions = decide_queue(waiting, scene)
    for job in waiting:
        decision, candidate = decisions[job.uid], by_uid[job.uid]
        if isinstance(decision, Start):
            odd = fabrics.odd_labels(candidate, decision.placement)
            verdicts[job.uid] = _offer(
                candidate, decision.placement, decision.takes, odd, decision.backfilled
            )
            continue
        message = decision.message
        if not decision.behind and not decision.victims:
            message += fabrics.odd_labels(candidate)
        verdicts[job.uid] = Refusal(decision.reason, clean_text(message), decision.starts_at)
        for victim in decision.victims:
            text = clean_text(preempted_message(namespaces[victim], job.key))
            evictions[victim] = Eviction(world.attempts.get(victim, 0), job.uid, text)
    return Decided(verdicts, evictions)


class _Fabrics:
    """The nodes as each Fabric shows them, made once for all jobs that name it."""

    def __init__(self, world: World):
        self._world = world
        self._nodes = tuple(sorted(world.nodes, key=lambda node: node.name))
        self._known: dict[str | None, Snapshot | Refusal] = {}
        self._findings: dict[str | None, Sequence[Finding]] = {}

    def of(self, candidate: Candidate) -> Snapshot | Refusal:
        """Return the fabric of a job, or why it has none."""
        if candidate.fabric not in self._known:
            self._known[candidate.fabric] = self._make(candidate.fabric)
        return self._known[candidate.fabric]

    def odd_labels(self, candidate: Candidate, answer: Placement | None = None) -> str:
        """Say what is odd about the labels of the nodes that a job could use, or got."""
        fabric, name = self.of(candidate), candidate.fabric
        assert isinstance(fabric, Snapshot)
        if name not in self._findings:
            self._findings[name] = findings(fabric)
        if not self._findings[name]:
            return ""
        could = eligible(candidate.request, fabric)
        got = could if answer is None else {n.name for n in (*answer.nodes, *answer.spares)}
        bearing = bearing_on(self._findings[name], could, got)
        return "".join(f"; {text}" for text in sentences(bearing, MOST_FINDINGS))

    def _make(self, wanted: str | None) -> Snapshot | Refusal:
        name = wanted or FABRIC_NAME
        found = self._world.fabrics.get(name)
        if found is None and wanted is None:
            return self._busy(wanted, Snapshot(levels_on(None, self._nodes), self._nodes))
        if found is None:
            message = (
                f"spec.topology.fabric: no Fabric is named {name!r}; create it, or create the job"
                " anew without the field"
            )
            return Refusal(Reason.FABRIC_NOT_FOUND, message)
        if found.problem:
            return Refusal(Reason.INVALID_FABRIC, clean_text(f"Fabric {name}: {found.problem}"))
        levels = levels_on(found, self._nodes)
        return self._busy(wanted, Snapshot(levels, self._nodes, links=found.links))

    def _busy(self, name: str | None, fabric: Snapshot) -> Snapshot:
        return self._world.ledger.of(self._world.sitting, name, fabric)


def _waiting(candidate: Candidate, fabric: Snapshot) -> Waiting:
    return Waiting(
        uid=candidate.uid,
        namespace=candidate.namespace,
        name=candidate.name,
        priority=candidate.priority,
        since=candidate.since,
        request=candidate.request,
        fabric=fabric,
        duration=candidate.duration,
        expected=candidate.expected,
        preempts=candidate.preempts,
        avoided=candidate.avoided,
    )


def better(job: Sitting, world: World) -> tuple[Hint, Offer | None]:
    """Look for a better place for a job that runs; free is also what it holds itself."""
    candidate = job.candidate
    fabrics = _Fabrics(replace(world, ledger=Ledger()))
    fabric = fabrics.of(candidate)
    found = None
    if isinstance(fabric, Snapshot):
        others = [item for item in world.usage if item.owner != candidate.uid]
        used, withheld = snapshot((), (), others).used, frozenset(world.quarantine.until)
        rest = [other for other in world.sitting if other is not job]
        view = replace(Ledger().of(rest, None, fabric), used=used, withheld=withheld)
        found = relocation(candidate.request, job.nodes, view)
    if found is None or isinstance(fabric, Refusal):
        return Hint(candidate.attempt - 1, 1.0, ""), None
    request = candidate.request
    takes = {request.gpu_resource: request.gpus_per_node, **request.extra}
    odd = fabrics.odd_labels(candidate, found.placement)
    offer = _offer(candidate, found.placement, takes, odd)
    return Hint(candidate.attempt - 1, found.gain, offer.summary), offer


def _offer(
    candidate: Candidate,
    answer: Placement,
    takes: Mapping[str, int],
    note: str,
    backfilled: bool = False,
) -> Offer:
    request = candidate.request
    found = stored(
        answer,
        [tuple(node.path.values()) for node in answer.spares],
        candidate.attempt,
        request.gpus_per_node,
        note,
    )
    return Offer(
        attempt=candidate.attempt,
        placement=found.to_wire(),
        summary=summary(found),
        nodes=tuple(node.name for node in (*answer.nodes, *answer.spares)),
        resources=takes,
        backfilled=backfilled,
    )
