"""A plan in the making: the policies write on it, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api.conditions import ConditionType, get_condition, is_true, set_condition
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.job import JobView, format_time
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.scheduler.decisions import Offer


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do about one job now: write the status first, touch children only when it is right.

    A turn that changes the status does nothing else: whatever it does to pods has then been
    written down before, and survives a crash.
    """

    status: Mapping[str, Any]
    changed: bool
    delete_pods: tuple[PodRecord, ...] = ()
    create_pods: tuple[int, ...] = ()
    """Rank blocks whose pod is to be created."""
    poll_pod: PodRecord | None = None
    """The pod to ask for progress."""
    assignment: Offer | None = None
    """The offer that the new status takes up."""
    delete_job: bool = False
    remove_finalizer: bool = False
    """Nothing is left of the job: its finalizer may go."""
    reconcile_after: float | None = None
    """Look again after so many seconds, even if nothing happens."""


class StatusDraft:
    """The observation, the new status, and what the policies want done."""

    def __init__(self, observed: Observed):
        self.observed = observed
        self.stored_status: Mapping[str, Any] = observed.raw.get("status") or {}
        self.status: dict[str, Any] = copy.deepcopy(dict(self.stored_status))
        self.poll_pod: PodRecord | None = None
        self.assignment: Offer | None = None
        self.delete_job = False
        self.remove_finalizer = False
        self.create_pods: tuple[int, ...] = ()
        self._deletions: dict[str, PodRecord] = {}
        self._reconcile_after: float | None = None

    @property
    def job(self) -> Job:
        """The checked job; only policies after validation may ask."""
        checked = self.observed.checked
        assert isinstance(checked, Job)
        return checked

    @property
    def view(self) -> JobView:
        """The job with the new status."""
        stored = self.observed.view
        return JobView(stored.metadata, stored.spec, self.status)

    @property
    def attempt(self) -> int:
        """Number of the current gang."""
        return self.view.attempt

    @property
    def now(self) -> str:
        """The time, as the API writes it."""
        return format_time(self.observed.now)

    @property
    def placement(self) -> Mapping[str, Any] | None:
        """The placement of the current attempt, once it is decided."""
        return self.view.placement

    def placed_nodes(self) -> list[str]:
        """Nodes in order of rank block."""
        return self.view.placed_nodes if self.placement else []

    def is_schedulable(self, node: str) -> bool:
        """Whether a pod may start on a node."""
        found = self.observed.nodes.get(node)
        return found is not None and found.node.ready and not found.node.cordoned

    def set_field(self, key: str, value: Any) -> None:
        """Set a field of the status; None takes it away."""
        if value is None:
            self.status.pop(key, None)
        else:
            self.status[key] = value

    def set_condition(self, kind: ConditionType, status: bool, reason: str, message: str) -> None:
        """Set a condition."""
        self.status["conditions"] = set_condition(
            self.status.get("conditions", ()),
            kind,
            status,
            str(reason),
            message,
            generation=self.observed.generation,
            now=self.now,
        )

    def clear_condition_if_present(self, kind: ConditionType, reason: str, message: str) -> None:
        """Set a condition to False if it was ever set; one that never held need not be denied."""
        if get_condition(self.status.get("conditions", ()), kind) is not None:
            self.set_condition(kind, False, reason, message)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether a condition is true."""
        return is_true(self.status.get("conditions", ()), kind)

    def delete_pods(self, pods: Iterable[PodRecord]) -> None:
        """Have pods deleted, but for those that are being deleted already."""
        self._deletions |= {pod.uid: pod for pod in pods if not pod.deleting}

    def reconcile_after(self, seconds: float) -> None:
        """Ask for another look after so many seconds."""
        seconds = max(0.05, seconds)
        self._reconcile_after = (
            seconds if self._reconcile_after is None else min(self._reconcile_after, seconds)
        )

    def actions(self) -> Actions:
        """Return the finished plan."""
        return Actions(
            status=self.status,
            changed=self.status != self.stored_status,
            delete_pods=tuple(self._deletions.values()),
            create_pods=self.create_pods,
            poll_pod=self.poll_pod,
            assignment=self.assignment,
            delete_job=self.delete_job,
            remove_finalizer=self.remove_finalizer,
            reconcile_after=self._reconcile_after,
        )
