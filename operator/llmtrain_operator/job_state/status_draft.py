"""The new status of a job and the actions to take, edited by one policy after another."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain_core.api.conditions import ConditionType, set_condition
from llmtrain_core.queueing import Assignment
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.disruption_budgets import BudgetRecord
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.observation import Observed

PodsKey = tuple[int, list[str], frozenset[int]]
"""What the pods of an attempt depend on: its number, its nodes, and those that have succeeded."""


@dataclass(frozen=True, slots=True)
class Actions:
    """What to do about one job. The other actions wait until the status needs no change.

    An iteration that changes the status does nothing else. So the reason for every change of pods
    is stored before the change, and survives a crash.
    """

    status: Mapping[str, Any]
    changed: bool
    delete_pods: tuple[PodRecord, ...] = ()
    create_pods: tuple[int, ...] = ()
    """Rank blocks whose pods to create."""
    poll_pod: PodRecord | None = None
    """The pod to request the progress from."""
    explain_pods: tuple[PodRecord, ...] = ()
    """Pods whose Events may say why they do not start."""
    assignment: Assignment | None = None
    """The assignment of the scheduler that the new status contains."""
    delete_job: bool = False
    remove_finalizer: bool = False
    """The job has the finalizer of an earlier version of the operator."""
    create_budget: bool = False
    """The running gang has no PodDisruptionBudget."""
    delete_budget: BudgetRecord | None = None
    """A PodDisruptionBudget of the job that is not wanted any more."""
    reconcile_after: float | None = None
    """Seconds until the next reconcile, even if nothing changes."""


class StatusDraft:
    """The observation, the new status and the other actions of one reconcile."""

    def __init__(self, observed: Observed):
        self.observed = observed
        self.stored_status: Mapping[str, Any] = observed.view.status
        self.status: dict[str, Any] = copy.deepcopy(dict(self.stored_status))
        self.view = observed.view.with_status(self.status)
        """The job with the new status, as it is edited."""
        self.poll_pod: PodRecord | None = None
        self.explain_pods: tuple[PodRecord, ...] = ()
        self.assignment: Assignment | None = None
        self.delete_job = False
        self.remove_finalizer = False
        self.create_budget = False
        self.delete_budget: BudgetRecord | None = None
        self.create_pods: tuple[int, ...] = ()
        self.known_pods: tuple[PodsKey, list[PodRecord]] | None = None
        """The pods of an attempt, which `current_pods` gets for one policy after another."""
        self._deletions: dict[str, PodRecord] = {}
        self._reconcile_after: float | None = None

    @property
    def job(self) -> Job:
        """The validated job. Only policies after validation may use it."""
        checked = self.observed.checked
        assert isinstance(checked, Job)
        return checked

    @property
    def attempt(self) -> int:
        """Number of the current attempt."""
        return self.view.attempt

    @property
    def now(self) -> str:
        """The time of the observation as an API timestamp."""
        return format_time(self.observed.now)

    @property
    def placement(self) -> Mapping[str, Any] | None:
        """The placement of the current attempt, or None."""
        return self.view.placement

    @property
    def placed_nodes(self) -> list[str]:
        """Nodes of the current attempt, in order of rank block."""
        return self.view.placed_nodes if self.placement else []

    def set_field(self, key: str, value: Any) -> None:
        """Set a field of the status; None removes it."""
        if value is None:
            self.status.pop(key, None)
        else:
            self.status[key] = value

    def set_condition(self, kind: ConditionType, status: bool, reason: str, message: str) -> None:
        """Set a condition."""
        self.status["conditions"] = set_condition(
            self.view.conditions,
            kind,
            status,
            str(reason),
            message,
            generation=self.view.generation,
            now=self.now,
        )

    def clear_condition_if_present(self, kind: ConditionType, reason: str, message: str) -> None:
        """Set a condition to False if it exists."""
        if self.view.condition(kind) is not None:
            self.set_condition(kind, False, reason, message)

    def is_true(self, kind: ConditionType) -> bool:
        """Return True if a condition exists and is true."""
        return self.view.is_true(kind)

    def delete_pods(self, pods: Iterable[PodRecord]) -> None:
        """Delete pods that have no deletion timestamp yet."""
        self._deletions |= {pod.uid: pod for pod in pods if not pod.deleting}

    def reconcile_after(self, seconds: float) -> None:
        """Request the next reconcile after at most these seconds."""
        seconds = max(0.05, seconds)
        self._reconcile_after = (
            seconds if self._reconcile_after is None else min(self._reconcile_after, seconds)
        )

    def write_after(self, seconds: float) -> None:
        """Leave the status as it is stored, and decide again after some seconds."""
        self.status.clear()
        self.status.update(self.stored_status)
        self.reconcile_after(seconds)

    def actions(self) -> Actions:
        """Return the new status and all actions."""
        return Actions(
            status=self.status,
            changed=self.status != self.stored_status,
            delete_pods=tuple(self._deletions.values()),
            create_pods=self.create_pods,
            poll_pod=self.poll_pod,
            explain_pods=self.explain_pods,
            assignment=self.assignment,
            delete_job=self.delete_job,
            remove_finalizer=self.remove_finalizer,
            create_budget=self.create_budget,
            delete_budget=self.delete_budget,
            reconcile_after=self._reconcile_after,
        )
