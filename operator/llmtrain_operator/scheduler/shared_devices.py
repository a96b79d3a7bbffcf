"""Devices that all nodes reach, of which a gang claims some once for all of its pods.

They are no part of a node, so the placement does not know them. A gang takes part in the queue only
while they are free, and of several gangs that get nodes at once, the first ones get the devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.devices.capacity import NodeAmounts
from llmtrain_core.devices.demand import DeviceKey, SharedClaims
from llmtrain_core.devices.records import ClaimRecord
from llmtrain_core.queueing import Assignment, PendingJob, QueueDecision, Unschedulable
from llmtrain_operator.cache.informers import Informers
from llmtrain_operator.scheduler.cycle import Decisions

Pending = Mapping[str, PendingJob | Unschedulable]
Holders = Mapping[str, SharedClaims]
"""What gangs with nodes claim, by UID of the job."""


@dataclass(slots=True)
class FreeDevices:
    """The devices that all nodes reach and no gang has."""

    total: Mapping[DeviceKey, int]
    left: Counter[DeviceKey]
    taken: Mapping[str, Counter[DeviceKey]] = field(default_factory=dict)
    """What jobs without nodes still have, by UID: it is released before their next pods."""

    def lacking(self, uid: str, shared: SharedClaims) -> Unschedulable | None:
        """Return why a gang cannot get what it claims now, or None."""
        own = self.taken.get(uid, Counter())
        for key, amount in shared.amounts:
            free = max(0, self.left[key] + own[key])
            if free < amount:
                text = (
                    f"spec.workers.deviceClaims: the gang claims {amount} {key.resource} once;"
                    f" {free} of {self.total.get(key, 0)} that all nodes reach are free"
                )
                return Unschedulable(Reason.INSUFFICIENT_DEVICES, clean_text(text, 700))
        return None

    def take(self, shared: SharedClaims) -> None:
        """Count what a gang claims as taken."""
        self.left.subtract(dict(shared.amounts))


def free_devices(
    amounts: NodeAmounts,
    claims: Iterable[ClaimRecord],
    job_of_group: Callable[[str], str],
    holders: Holders,
) -> FreeDevices:
    """Return what all nodes reach and no claim or gang has.

    A claim of the PodGroup of a gang with nodes is a part of what this gang takes. `job_of_group`
    returns the UID of the job that owns a PodGroup, or an empty text.
    """
    left = Counter(amounts.total)
    taken: dict[str, Counter[DeviceKey]] = {}
    for claim in claims:
        job = next(filter(None, map(job_of_group, claim.groups)), "")
        taken.setdefault(job, Counter()).update(amounts.taken.get(claim.uid, {}))
    for job in taken.keys() | holders.keys():
        wanted = Counter(dict(holders[job].amounts) if job in holders else {})
        left.subtract(wanted | taken.get(job, Counter()))
    without_nodes = {job: own for job, own in taken.items() if job and job not in holders}
    return FreeDevices(amounts.total, left, without_nodes)


class SharedDevices:
    """Lets gangs into the queue, and their decisions take effect, while devices are free."""

    def __init__(
        self,
        informers: Informers,
        holders: Callable[[], Holders],
        trigger: Callable[[], None],
    ):
        """`holders` returns what gangs with nodes claim. `trigger` starts a cycle."""
        self._informers = informers
        self._holders = holders
        self._trigger = trigger

    def admit(self, queue: Pending) -> Pending:
        """Return the queue with the refusals of gangs for which no devices are left."""
        asking = _asking(queue, queue)
        if not asking:
            return queue
        free = self._free()
        refused = {uid: free.lacking(uid, shared) for uid, shared in asking.items()}
        return {uid: refused.get(uid) or job for uid, job in queue.items()}

    def confirm(self, decisions: Decisions, queue: Pending) -> Decisions:
        """Return the decisions without nodes for gangs for which no devices are left.

        If all decisions take effect, return the same object.
        """
        assigned = [
            uid for uid, found in decisions.pending.items() if isinstance(found, Assignment)
        ]
        asking = _asking(queue, assigned)
        if not asking:
            return decisions
        free, pending = self._free(), dict[str, QueueDecision](decisions.pending)
        for uid, shared in asking.items():
            refusal = free.lacking(uid, shared)
            if refusal is None:
                free.take(shared)
            else:
                pending[uid] = refusal
        if pending == decisions.pending:
            return decisions
        self._trigger()  # the other jobs are decided without these
        return replace(decisions, pending=pending)

    def _free(self) -> FreeDevices:
        amounts, claims = self._informers.devices.shared
        return free_devices(amounts, claims, self._informers.job_of_group, self._holders())


def _asking(queue: Pending, uids: Iterable[str]) -> dict[str, SharedClaims]:
    """Return what those of these jobs claim that claim something for their gang."""
    jobs = {uid: queue[uid] for uid in uids}
    return {
        uid: job.shared
        for uid, job in jobs.items()
        if isinstance(job, PendingJob) and job.shared.count
    }
