"""One decision about all waiting jobs: from records to the pure queue and back to offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.api.status import LevelUse, PlacedBlock, PlacementStatus
from llmtrain_core.placement import Placement, Request, eligible
from llmtrain_core.queueing import Running, Scene, Start, Waiting
from llmtrain_core.queueing import decide as decide_queue
from llmtrain_core.queueing.quarantine import Quarantine
from llmtrain_core.queueing.relocation import relocation
from llmtrain_core.queueing.words import preempted_message
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_core.topology.levels import detect, fit
from llmtrain_operator.candidates import Candidate
from llmtrain_operator.records import FabricRecord
from llmtrain_operator.sitting import Ledger, Sitting
from llmtrain_operator.verdicts import Eviction, Hint, Offer, Refusal

SUMMARY_LIMIT = 128


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
            verdicts[job.uid] = _offer(
                candidate, job.fabric, decision.placement, decision.takes, decision.backfilled
            )
            continue
        gaps = _gaps(job.request, job.fabric)
        message = decision.message + ("" if decision.behind or decision.victims else gaps)
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

    def of(self, candidate: Candidate) -> Snapshot | Refusal:
        """Return the fabric of a job, or why it has none."""
        if candidate.fabric not in self._known:
            self._known[candidate.fabric] = self._make(candidate.fabric)
        return self._known[candidate.fabric]

    def _make(self, wanted: str | None) -> Snapshot | Refusal:
        name = wanted or "default"
        found = self._world.fabrics.get(name)
        labels = [node.labels for node in self._nodes]
        if found is None and wanted is None:
            return self._busy(wanted, Snapshot(detect(labels), self._nodes))
        if found is None:
            message = (
                f"spec.topology.fabric: no Fabric is named {name!r}; create it, or create the job"
                " anew without the field"
            )
            return Refusal(Reason.FABRIC_NOT_FOUND, message)
        if found.problem:
            return Refusal(Reason.INVALID_FABRIC, clean_text(f"Fabric {name}: {found.problem}"))
        levels = fit(found.levels, labels)
        return self._busy(wanted, Snapshot(levels, self._nodes, links=found.links))

    def _busy(self, name: str | None, fabric: Snapshot) -> Snapshot:
        return self._world.ledger.of(self._world.sitting, name, fabric)


def _waiting(candidate: Candidate, fabric: Snapshot) -> Waiting:
    return Waiting(
        uid=candidate.uid, namespace=candidate.namespace, name=candidate.name,
        priority=candidate.priority, since=candidate.since, request=candidate.request,
        fabric=fabric, duration=candidate.duration, expected=candidate.expected,
        preempts=candidate.preempts, avoided=candidate.avoided,
    )  # fmt: skip


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


def better(job: Sitting, world: World) -> tuple[Hint, Offer | None]:
    """Look for a better place for a job that runs; free is also what it holds itself."""
    candidate = job.candidate
    fabric = _Fabrics(replace(world, ledger=Ledger())).of(candidate)
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
    offer = _offer(candidate, fabric, found.placement, takes)
    return Hint(candidate.attempt - 1, found.gain, offer.summary), offer


def _offer(
    candidate: Candidate, fabric: Snapshot, answer: Placement, takes: Mapping[str, int],
    backfilled: bool = False,
) -> Offer:  # fmt: skip
    request = candidate.request
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
        spares=[node.name for node in answer.spares] or None,
        explanation=clean_text(answer.explanation + _gaps(request, fabric)),
    )
    return Offer(
        attempt=candidate.attempt,
        placement=stored.to_wire(),
        summary=_summary(stored),
        nodes=tuple(node.name for node in (*answer.nodes, *answer.spares)),
        resources=takes,
        backfilled=backfilled,
    )


def _summary(stored: PlacementStatus) -> str:
    count = sum(len(block.nodes) for block in stored.blocks)
    parts = [f"{count} node" + ("" if count == 1 else "s")]
    parts += [f"{use.domains} {use.level}" for use in reversed(stored.levels[:-1])]
    if stored.spares:
        parts.append(f"{len(stored.spares)} spare")
    return clean_text(" · ".join(parts), SUMMARY_LIMIT)
