"""Whether the API server would admit a whole gang, known before the gang gets nodes.

A gang whose pods are refused must neither reserve nodes nor preempt another one. So a waiting job
takes part in the queue only after one of its pods was tried (dry run) and its sum fits into the
ResourceQuotas of its namespace. Both are checked again when it would get nodes. Requests run in the
background; namespaces take turns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, zip_longest
from typing import Any

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.queueing import Assignment, PendingJob, QueueDecision, Unschedulable
from llmtrain_core.queueing.quota import (
    Charge,
    PodCharge,
    QuotaRoom,
    ResourceQuota,
    charge_of,
    read_quota,
    shared_charge,
    with_claims,
    with_resources,
)
from llmtrain_core.topology.resources import Amounts, pod_requests
from llmtrain_operator.errors import ApiError, ForbiddenError, LeaseLostError
from llmtrain_operator.scheduler.cycle import Decisions
from llmtrain_operator.scheduler.usage import with_pod_requests

log = logging.getLogger(__name__)

Pending = Mapping[str, PendingJob | Unschedulable]

POD_SECONDS = 30.0
"""A pod that was tried longer ago is tried again before its gang gets nodes."""
QUOTA_SECONDS = 5.0
"""Quotas that were listed longer ago are listed again before a gang gets nodes."""
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 5.0, 120.0
"""Interval of the trials of a refused pod, which doubles with each trial."""
MAX_CONCURRENT = 8
_OBJECTS = {
    name: Fraction(1)
    for name in (
        "services",
        "count/services",
        "configmaps",
        "count/configmaps",
        "count/networkpolicies.networking.k8s.io",
    )
}
"""What the first attempt of a job creates besides pods."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """The result of trying a pod of a job."""

    generation: int
    at: float
    """When it ended; monotonic time."""
    charge: PodCharge | None = None
    requests: Amounts = field(default_factory=dict)
    """What the pod requests of its node, with defaults, sidecars and overhead of the cluster."""
    refusal: Unschedulable | None = None
    retry_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Quotas:
    at: float
    """When they were listed; monotonic time."""
    found: tuple[ResourceQuota, ...] | None
    """None: they could not be listed."""


_Key = tuple[str, str]
"""A request that runs: `pod` and the UID of a job, or `quotas` and a namespace."""


class Admission:
    """Admission of the gangs that wait, as far as it is known."""

    def __init__(
        self,
        try_pod: Callable[[str], Awaitable[Mapping[str, Any] | Unschedulable | None]],
        list_quotas: Callable[[str], Awaitable[Sequence[Mapping[str, Any]]]],
        promised: Callable[[str], Iterable[Charge]],
        generation: Callable[[str], int],
        trigger: Callable[[], None],
    ):
        """Connect to the cluster.

        `try_pod` takes the UID of a job; it returns None if the job is gone. `promised` returns the
        pods of a namespace that jobs with nodes have not created yet. `trigger` starts a cycle.
        """
        self._try_pod = try_pod
        self._list_quotas = list_quotas
        self._promised = promised
        self._generation = generation
        self._trigger = trigger
        self._trials: dict[str, _Trial] = {}
        self._quotas: dict[str, _Quotas] = {}
        self._networks: dict[str, tuple[int, Amounts]] = {}
        """What a pod requests of the resources of the last network that each job was to get, with
        the generation. It is decided after the quotas are compared: the next comparison counts it.
        """
        self._running: dict[_Key, asyncio.Task[None]] = {}
        self._waiting: list[tuple[str, str]] = []
        """Jobs whose pod is to be tried: UID and namespace."""
        self._retry: asyncio.TimerHandle | None = None
        self._now = 0.0

    def admit(self, queue: Pending) -> Pending:
        """Return the queue without jobs of unknown admission, and with refusals."""
        self._now = time.monotonic()
        self._forget(queue)
        by_namespace: dict[str, list[tuple[str, str]]] = {}
        admitted: dict[str, PendingJob | Unschedulable] = {}
        rooms: dict[str, QuotaRoom] = {}
        for uid, job in queue.items():
            if not isinstance(job, PendingJob):
                admitted[uid] = job
                continue
            trial = self._trial(uid)
            if trial is None or self._retry_is_due(trial):
                by_namespace.setdefault(job.namespace, []).append((uid, job.namespace))
            if trial is None:
                continue
            found = self._judge(job, trial, rooms)
            if found is not None:
                admitted[uid] = found
        turns = zip_longest(*by_namespace.values())
        self._waiting = [turn for turn in chain.from_iterable(turns) if turn is not None]
        self._start_trials()
        self._schedule_retry(queue, admitted)
        return admitted

    def _judge(
        self, job: PendingJob, trial: _Trial, rooms: dict[str, QuotaRoom]
    ) -> PendingJob | Unschedulable | None:
        """Return the job if it is admitted, its refusal, or None if that is unknown."""
        if trial.refusal is not None:
            return trial.refusal
        name, quotas = job.namespace, self._quotas.get(job.namespace)
        if quotas is None or not quotas.found:
            if quotas is None or quotas.found is None:
                self._refresh_quotas(name)
                return None
            return with_pod_requests(job, trial.requests)
        if name not in rooms:
            rooms[name] = QuotaRoom(quotas.found, self._promised(name))
        refusal = self._over_quota(job, rooms[name])
        if refusal is not None:
            self._refresh_quotas(name)
        return refusal or with_pod_requests(job, trial.requests)

    def confirm(self, decisions: Decisions, queue: Pending) -> Decisions:
        """Return the decisions without gangs whose admission is refused or was not checked lately.

        A gang that would get nodes or preempt others is checked again now, and decided next time.
        If all decisions take effect, return the same object.
        """
        pending: dict[str, QueueDecision] = {}
        rooms: dict[str, QuotaRoom] = {}
        for uid, decision in decisions.pending.items():
            job = queue[uid]
            gains = isinstance(decision, Assignment) or decision.victims
            if not gains or not isinstance(job, PendingJob):
                pending[uid] = decision
                continue
            quotas = self._checked_quotas(uid, job.namespace)
            if quotas is None:
                continue
            if isinstance(decision, Assignment):
                added = decision.network.resources if decision.network else ()
                needs = {name: decision.resources[name] for name in added}
                self._networks[uid] = self._generation(uid), needs
            if not quotas:
                pending[uid] = decision
                continue
            if job.namespace not in rooms:
                rooms[job.namespace] = QuotaRoom(quotas, self._promised(job.namespace))
            room = rooms[job.namespace]
            refusal = self._over_quota(job, room)
            pending[uid] = refusal or decision
            if refusal is None:
                room.add(self._gang(job))
                if job.shared.count:
                    room.add((PodCharge(shared_charge(job.shared)), 1))
            else:
                self._trigger()  # the other jobs are decided without this one
        preemptions = {
            uid: preemption
            for uid, preemption in decisions.preemptions.items()
            if pending.get(preemption.preemptor) is decisions.pending[preemption.preemptor]
        }
        if pending == decisions.pending:
            return decisions
        return replace(decisions, pending=pending, preemptions=preemptions)

    def _checked_quotas(self, uid: str, namespace: str) -> tuple[ResourceQuota, ...] | None:
        """Return the quotas if they and a pod were checked lately. Else check and return None."""
        trial, quotas = self._trial(uid), self._quotas.get(namespace)
        tried = trial is not None and self._now - trial.at <= POD_SECONDS
        if not tried:
            self._waiting.insert(0, (uid, namespace))
            self._start_trials()
        if quotas is None or self._now - quotas.at > QUOTA_SECONDS:
            self._refresh_quotas(namespace)
            return None
        return quotas.found if tried else None

    def _trial(self, uid: str) -> _Trial | None:
        found = self._trials.get(uid)
        return found if found and found.generation == self._generation(uid) else None

    def _retry_is_due(self, trial: _Trial) -> bool:
        return trial.refusal is not None and self._now - trial.at > trial.retry_seconds

    def _over_quota(self, job: PendingJob, room: QuotaRoom) -> Unschedulable | None:
        objects = {**({} if job.attempt else _OBJECTS), **shared_charge(job.shared)}
        text = room.exceeded(self._gang(job), objects)
        if text is None:
            return None
        text = (
            f"spec.workers: the gang of {job.node_count} nodes exceeds {text}; raise the quota of"
            " the namespace or request less"
        )
        return Unschedulable(Reason.QUOTA_EXCEEDED, clean_text(text, 700))

    def _gang(self, job: PendingJob) -> Charge:
        """Return what a gang is charged for. Its spare nodes count like nodes with pods."""
        charge = self._trials[job.uid].charge or PodCharge({})
        generation, added = self._networks.get(job.uid, (-1, {}))
        if generation == self._generation(job.uid):
            charge = with_resources(charge, added)
        return with_claims(charge, job.resources, job.shared.count), job.node_count

    def _schedule_retry(self, queue: Pending, admitted: Pending) -> None:
        """Start a cycle later if a job is refused: no event shows that a quota was raised."""
        pending = [uid for uid, job in queue.items() if isinstance(job, PendingJob)]
        refused = any(not isinstance(admitted.get(uid), PendingJob) for uid in pending)
        if refused and self._retry is None:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(MIN_RETRY_SECONDS, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        self._trigger()

    def _forget(self, queue: Pending) -> None:
        namespaces = {job.namespace for job in queue.values() if isinstance(job, PendingJob)}
        self._trials = {uid: found for uid, found in self._trials.items() if uid in queue}
        self._networks = {uid: found for uid, found in self._networks.items() if uid in queue}
        self._quotas = {name: q for name, q in self._quotas.items() if name in namespaces}

    def _start_trials(self) -> None:
        while self._waiting and len(self._running) < MAX_CONCURRENT:
            uid, _ = self._waiting.pop(0)
            self._start(("pod", uid), self._try)

    def _refresh_quotas(self, namespace: str) -> None:
        """List the quotas again, unless that was done a moment ago. More next time if many run."""
        known = self._quotas.get(namespace)
        is_old = known is None or self._now - known.at > QUOTA_SECONDS
        if is_old and len(self._running) < 2 * MAX_CONCURRENT:
            self._start(("quotas", namespace), self._list)

    def _start(self, key: _Key, request: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        if key in self._running:
            return
        task = self._running[key] = asyncio.create_task(request(key[1]), name=" ".join(key))
        task.add_done_callback(lambda ended: self._ended(key, ended.cancelled()))

    def _ended(self, key: _Key, cancelled: bool) -> None:
        del self._running[key]
        if not cancelled:
            self._start_trials()
            self._trigger()

    async def _try(self, uid: str) -> None:
        generation, charge, requests = self._generation(uid), None, {}
        try:
            found = await self._try_pod(uid)
            if found is not None and not isinstance(found, Unschedulable):
                charge, requests = charge_of(found["spec"]), pod_requests(found["spec"])
        except LeaseLostError:
            return
        except Exception as error:
            # One job that cannot be checked must not stop the others, and is not tried without end.
            if not isinstance(error, ApiError):
                log.exception("job=%s a pod could not be checked", uid)
            text = f"waiting in the queue; its pods could not be checked: {error}"
            found = Unschedulable(Reason.QUEUED, clean_text(text, 700))
        now, before = time.monotonic(), self._trials.get(uid)
        if isinstance(found, Unschedulable):
            retry = MIN_RETRY_SECONDS
            if before is not None and before.refusal is not None:
                retry = min(2 * before.retry_seconds, MAX_RETRY_SECONDS)
            self._trials[uid] = _Trial(generation, now, refusal=found, retry_seconds=retry)
        elif found is not None:
            self._trials[uid] = _Trial(generation, now, charge, requests)

    async def _list(self, namespace: str) -> None:
        quotas: tuple[ResourceQuota, ...] | None = None
        try:
            quotas = tuple(read_quota(raw) for raw in await self._list_quotas(namespace))
        except ForbiddenError as error:
            # The rights of an older release: the trial of a pod finds quotas that are used up.
            log.warning("namespace=%s quotas are not checked: %s", namespace, error)
            quotas = ()
        except Exception as error:
            log.warning("namespace=%s quotas could not be read: %r", namespace, error)
        self._quotas[namespace] = _Quotas(time.monotonic(), quotas)
