"""Create and delete the PodDisruptionBudget of a job. Without it the job trains, too."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field

from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_operator.cache.disruption_budgets import BudgetRecord, covering_budget
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.kube.informer import Informer
from llmtrain_operator.kube.namespace_limits import WriteLimiter
from llmtrain_operator.kube.resources import DISRUPTION_BUDGETS, EVENTS
from llmtrain_operator.manifests.disruption_budget import make_disruption_budget
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.reconcile.backoff import RESYNC_SECONDS, Backoff
from llmtrain_operator.reconcile.events import finding_event

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""First delay of another try to create a budget that the API server refuses."""
CACHE_SECONDS = 1.0
"""Delay of another look at a cache that does not show the last write yet."""


@dataclass(slots=True)
class JobBudget:
    """The budget of one job, and what its last write was."""

    cluster: KubeApi
    limiter: WriteLimiter
    informer: Informer[BudgetRecord]
    backoff: Backoff = field(default_factory=Backoff)
    delete_backoff: Backoff = field(default_factory=Backoff)
    created_version: int = 0
    """resourceVersion of the budget that was created last."""
    refusal: str = ""
    """Why the budget is not created, as the last Event says."""

    def own(self, job: JobRecord) -> BudgetRecord | None:
        """Return the budget that the job owns."""
        owned = self.informer.by_index("owner", job.uid)
        return next((found for found in owned if found.namespace == job.namespace), None)

    def covering(self, job: JobRecord) -> str:
        """Return the name of a budget of others that selects pods of the job, or ""."""
        return covering_budget(job, self.informer.by_index("namespace of others", job.namespace))

    @property
    def seconds_to_retry(self) -> float:
        """Seconds until a missing budget may be created, or one that is not wanted deleted."""
        if self.informer.last_version < self.created_version:
            return CACHE_SECONDS
        return self.backoff.left or self.delete_backoff.left or RESYNC_SECONDS

    async def apply(self, observed: Observed, actions: Actions) -> None:
        """Delete a budget that is not wanted, or create a missing one."""
        if actions.delete_budget is not None and self.delete_backoff.left <= 0:
            await self._delete(actions.delete_budget)
        is_known = self.informer.last_version >= self.created_version
        if actions.create_budget and is_known and self.backoff.left <= 0:
            await self._create(observed)

    async def _create(self, observed: Observed) -> None:
        identity = JobIdentity.of(observed.raw)
        body = make_disruption_budget(identity, len(observed.view.placed_nodes))
        await self.limiter.acquire(identity.namespace)
        try:
            made = await self.cluster.create(DISRUPTION_BUDGETS, body, identity.namespace)
        except ApiError as error:
            self.backoff.extend(RETRY_SECONDS)
            text = "job=%s its pods may be evicted, the PodDisruptionBudget is not created: %s"
            log.warning(text, identity.uid, error)
            await self._report(observed, identity, error)
        else:
            self.backoff.reset()
            self.refusal = ""
            self.created_version = int(made["metadata"]["resourceVersion"])

    async def _report(self, observed: Observed, identity: JobIdentity, error: ApiError) -> None:
        """Create an Event about a budget that is refused, once for each cause."""
        name = f"{identity.namespace}/{identity.name}"
        if isinstance(error, AlreadyExistsError):
            others = [b for b in self.informer.by_index("name", name) if b.owner != identity.uid]
            if not others:
                return  # it is the job's own, and the cache does not show it yet
            why = (
                f"poddisruptionbudgets {identity.name} exists and is not owned by this job; delete"
                " it, or create it with another name"
            )
        elif error.denied:
            why = f"poddisruptionbudgets {identity.name} cannot be created: {error.message}"
        else:
            return
        text = clean_text(f"a drain may evict pods before the job has moved: {why}", 700)
        if text == self.refusal:
            return
        self.refusal, now = text, format_time(observed.now)
        event = finding_event(identity, Reason.NOT_PROTECTED, text, observed.view.attempt, now)
        with contextlib.suppress(ApiError):
            await self.limiter.acquire(identity.namespace)
            await self.cluster.create(EVENTS, event, identity.namespace)

    async def _delete(self, budget: BudgetRecord) -> None:
        await self.limiter.acquire(budget.namespace)
        try:
            # Not found, or another object has the name: it is already deleted.
            with contextlib.suppress(NotFoundError, ConflictError):
                await self.cluster.delete(
                    DISRUPTION_BUDGETS, budget.name, budget.namespace, uid=budget.uid
                )
        except ApiError as error:
            # The job does not rest on it: its pods are deleted and created nevertheless.
            self.delete_backoff.extend(RETRY_SECONDS)
            text = "job=%s its PodDisruptionBudget is not deleted and blocks drains: %s"
            log.warning(text, budget.owner, error)
        else:
            self.delete_backoff.reset()
