"""The kinds of devices that jobs claim: what is counted on every node.

A kind with selectors, or of aligned devices, is counted for the jobs that claim it only. It costs a
look at all devices of the cluster, so each namespace has a limited number of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llmtrain_core.devices.demand import DeviceKey, demand_of, is_whole_class, shared_claims_of
from llmtrain_core.validation.check import Job, Problem
from llmtrain_core.validation.device_claims import MAX_KINDS
from llmtrain_operator.cache.records import JobRecord

KINDS_OF_NAMESPACE = MAX_KINDS
"""Kinds with selectors or constraints that the jobs of a namespace may claim at once."""
KINDS = 256
"""Kinds with selectors or constraints that are counted at once."""


@dataclass(frozen=True, slots=True)
class _Claimed:
    state: tuple[object, ...]
    """What the rest follows from."""
    namespace: str
    order: tuple[bool, str, str]
    """Jobs with nodes come first, then the oldest."""
    keys: frozenset[DeviceKey]


class DeviceDemand:
    """The kinds of devices that are counted.

    Namespaces take turns: jobs of one do not keep those of others from their first kinds.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, _Claimed] = {}
        self._records: dict[str, JobRecord] = {}
        """Each job at the last update."""
        self._changed = False
        self._keys: frozenset[DeviceKey] = frozenset()

    def update(self, record: JobRecord, checked: Job | list[Problem]) -> None:
        """Set what a job claims: nothing once it has ended."""
        if self._records.get(record.uid) is record:
            return
        self._records[record.uid] = record
        view = record.view
        state = (view.generation, view.is_finished, bool(view.stored_placement))
        known = self._jobs.get(record.uid)
        if known is not None and known.state == state:
            return
        found = frozenset[DeviceKey]()
        if isinstance(checked, Job) and not view.is_finished:
            spec = checked.spec
            found = frozenset(demand_of(spec).keys() | shared_claims_of(spec).keys)
        if not found:
            self._drop(record.uid)
            return
        order = not view.stored_placement, view.creation_time, record.uid
        self._jobs[record.uid] = _Claimed(state, record.namespace, order, found)
        self._changed = True

    def forget(self, uid: str) -> None:
        """Drop what a job claims that does not exist any more."""
        self._records.pop(uid, None)
        self._drop(uid)

    def _drop(self, uid: str) -> None:
        if self._jobs.pop(uid, None) is not None:
            self._changed = True

    @property
    def keys(self) -> frozenset[DeviceKey]:
        """What is counted; the same object unless it changes."""
        if self._changed:
            self._changed = False
            found = self._counted()
            if found != self._keys:
                self._keys = found
        return self._keys

    def _counted(self) -> frozenset[DeviceKey]:
        classes: set[DeviceKey] = set()
        others: set[DeviceKey] = set()
        by_namespace: dict[str, set[DeviceKey]] = {}
        for job in self._in_turns():
            more = {key for key in job.keys if not is_whole_class(key)}
            classes |= job.keys - more
            own = by_namespace.setdefault(job.namespace, set())
            if len(own | more) <= KINDS_OF_NAMESPACE and len(others | more) <= KINDS:
                own |= more
                others |= more
        return frozenset(classes | others)

    def _in_turns(self) -> list[_Claimed]:
        """Return jobs with nodes, then the oldest job of each namespace, its second one, ..."""
        earlier: Counter[str] = Counter()
        turns: list[tuple[bool, int]] = []
        jobs = sorted(self._jobs.values(), key=lambda job: job.order)
        for job in jobs:
            turns.append((job.order[0], earlier[job.namespace]))
            earlier[job.namespace] += 1
        return [job for _, job in sorted(zip(turns, jobs, strict=True), key=lambda each: each[0])]
