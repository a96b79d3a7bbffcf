"""A plan in the making: the policies write on it, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api.conditions import ConditionType, get_condition, is_true, set_condition
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.observation import Observed, from_time
from llmtrain_operator.scheduler.decisions import Offer
from llmtrain_operator.scheduler.usage import placed_nodes

C = ConditionType


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about one job now: write the status first, touch children only when it is right.

    A turn that changes the status does nothing else: whatever it does to pods has then been
    written down before, and survives a crash.
    """

    status: Mapping[str, Any]
    changed: bool
    delete: tuple[PodRecord, ...] = ()
    create: tuple[int, ...] = ()
    """Rank blocks whose pod is to be created."""
    poll: PodRecord | None = None
    """The pod to ask for progress."""
    offer: Offer | None = None
    """The offer that the new status takes up."""
    delete_job: bool = False
    done: bool = False
    """Nothing is left of the job: its finalizer may go."""
    wake_after: float | None = None
    """Look again after so many seconds, even if nothing happens."""


class Draft:
    """The observation, the new status, and what the policies want done."""

    def __init__(self, observed: Observed):
        self.seen = observed
        self.before: Mapping[str, Any] = observed.raw.get("status") or {}
        self.status: dict[str, Any] = copy.deepcopy(dict(self.before))
        self.poll: PodRecord | None = None
        self.offer: Offer | None = None
        self.delete_job = False
        self.done = False
        self.creations: tuple[int, ...] = ()
        self._deletions: dict[str, PodRecord] = {}
        self._wake: float | None = None

    @property
    def job(self) -> Job:
        """The checked job; only policies after validation may ask."""
        checked = self.seen.checked
        assert isinstance(checked, Job)
        return checked

    @property
    def attempt(self) -> int:
        """Number of the current gang."""
        return int(self.status.get("attempt") or 0)

    @property
    def now(self) -> str:
        """The time, as the API writes it."""
        return from_time(self.seen.now)

    @property
    def placement(self) -> Mapping[str, Any] | None:
        """The placement of the current attempt, once it is decided."""
        found: Mapping[str, Any] | None = self.status.get("placement")
        return found if found and found.get("attempt", 0) == self.attempt else None

    def placed_nodes(self) -> list[str]:
        """Nodes in order of rank block."""
        return placed_nodes(self.placement or {})

    def well(self, node: str) -> bool:
        """Whether a pod may start on a node."""
        found = self.seen.nodes.get(node)
        return found is not None and found.node.ready and not found.node.cordoned

    def put(self, key: str, value: Any) -> None:
        """Set a field of the status; None takes it away."""
        if value is None:
            self.status.pop(key, None)
        else:
            self.status[key] = value

    def condition(self, kind: ConditionType, status: bool, reason: str, message: str) -> None:
        """Set a condition."""
        self.status["conditions"] = set_condition(
            self.status.get("conditions", ()),
            kind,
            status,
            str(reason),
            message,
            generation=self.seen.generation,
            now=self.now,
        )

    def unless_absent(self, kind: ConditionType, reason: str, message: str) -> None:
        """Set a condition to False if it was ever set; one that never held need not be denied."""
        if get_condition(self.status.get("conditions", ()), kind) is not None:
            self.condition(kind, False, reason, message)

    def holds(self, kind: ConditionType) -> bool:
        """Whether a condition is true."""
        return is_true(self.status.get("conditions", ()), kind)

    def delete(self, pods: Iterable[PodRecord]) -> None:
        """Have pods deleted, but for those that are being deleted already."""
        self._deletions |= {pod.uid: pod for pod in pods if not pod.deleting}

    def wake_in(self, seconds: float) -> None:
        """Ask for another look after so many seconds."""
        seconds = max(0.05, seconds)
        self._wake = seconds if self._wake is None else min(self._wake, seconds)

    def plan(self) -> Plan:
        """Return the finished plan."""
        return Plan(
            status=self.status,
            changed=self.status != self.before,
            delete=tuple(self._deletions.values()),
            create=self.creations,
            poll=self.poll,
            offer=self.offer,
            delete_job=self.delete_job,
            done=self.done,
            wake_after=self._wake,
        )
