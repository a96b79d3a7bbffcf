"""Delete the objects of attempts that are over. The writer creates them before the pods."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmtrain_operator.cache.attempt_record import AttemptRecord
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.errors import ApiError, ConflictError, NotFoundError
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.kube.informer import Informer
from llmtrain_operator.kube.namespace_limits import WriteLimiter
from llmtrain_operator.kube.resources import Resource
from llmtrain_operator.reconcile.backoff import RESYNC_SECONDS, Backoff

log = logging.getLogger(__name__)


def unwanted_objects(
    view: JobView, pods: Iterable[PodRecord], objects: Iterable[AttemptRecord]
) -> list[AttemptRecord]:
    """Return the objects of attempts that are over and have no running pods any more.

    One of a later attempt is kept: the job is older than it is.
    """
    running = {pod.attempt for pod in pods if not pod.ended}
    over = view.is_finished or view.placement is None
    return [
        found
        for found in objects
        if not found.deleting
        and found.attempt not in running
        and (found.attempt < view.attempt or (over and found.attempt == view.attempt))
    ]


@dataclass(slots=True)
class JobAttemptObjects:
    """The ComputeDomains of one job, and its PodGroups with claims."""

    cluster: KubeApi
    limiter: WriteLimiter
    informers: Mapping[Resource, Informer[AttemptRecord]]
    backoff: Backoff = field(default_factory=Backoff)

    def own(self, job: JobRecord) -> tuple[AttemptRecord, ...]:
        """Return those that the job owns."""
        owner = f"{job.namespace}/{job.uid}"
        found = (informer.by_index("owner", owner) for informer in self.informers.values())
        return tuple(each for objects in found for each in objects)

    async def clean_up(self, observed: Observed) -> float:
        """Delete those that are not wanted any more. Return the seconds until another try.

        The job does not rest on it: its next attempt has others, and the garbage collector
        deletes them with the job.
        """
        old = unwanted_objects(observed.view, observed.pods, observed.attempt_objects)
        if not old or self.backoff.left > 0:
            return self.backoff.left or RESYNC_SECONDS
        try:
            for found in old:
                await self.limiter.acquire(found.namespace)
                # Not found, or another object has the name: this one is already deleted.
                with contextlib.suppress(NotFoundError, ConflictError):
                    await self.cluster.delete(
                        found.resource, found.name, found.namespace, uid=found.uid
                    )
        except ApiError as error:
            self.backoff.extend()
            text = "job=%s an object of an attempt that is over is not deleted: %s"
            log.warning(text, old[0].owner, error)
            return self.backoff.left
        self.backoff.reset()
        return RESYNC_SECONDS
