"""Applies actions: the only code that writes a job and its child objects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import Reason, clean_text
from llmtrain_core.queueing import Unschedulable
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.job import format_time
from llmtrain_operator.cache.placement_status import level_labels
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from llmtrain_operator.job_state.observation import CreateError, Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.kube.namespace_limits import WriteLimiter
from llmtrain_operator.kube.resources import EVENTS, JOBS, PODS, Resource
from llmtrain_operator.manifests.device_claims import claim_resources, shared_claims
from llmtrain_operator.manifests.gang_scheduling import GangScheduling
from llmtrain_operator.manifests.job_resources import job_resources
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.manifests.pod import make_pod_template, pod_of_node, sample_pod
from llmtrain_operator.reconcile.events import make_event, pod_event, status_events
from llmtrain_operator.reconcile.expectations import Expectations
from llmtrain_operator.reconcile.refusals import (
    dropped_claims,
    forbidden,
    invalid,
    name_conflict,
    naming_privileges,
    not_served,
)

log = logging.getLogger(__name__)

MAX_CONCURRENT_REQUESTS = 16
GANG_KEY_BYTES = 32
REVISIONS = 2**31
"""`status.revision` starts again after this many writes. It only has to differ from the last."""
STATUS_WRITE_DENIED = "StatusWriteDenied"
"""Reason of the Event on a job whose status cannot be stored."""

Object = dict[str, Any]


class _CreateRefusedError(Exception):
    """The API server rejected a child object for a reason that the user can fix."""

    def __init__(self, create_error: CreateError):
        super().__init__(create_error.message)
        self.create_error = create_error


def status_patch(observed: Observed, status: Mapping[str, Any]) -> Object:
    """Return the merge patch to the new status, with the resourceVersion it is based on.

    The new revision saves the API server the evaluation of the rules of the spec.
    """
    before, version = observed.view.status, observed.view.metadata["resourceVersion"]
    revision = (int(before.get("revision", 0)) + 1) % REVISIONS
    changes = merge_patch(before, {**status, "revision": revision})
    return {"metadata": {"resourceVersion": version}, "status": changes}


def finalizer_patch(job: Mapping[str, Any]) -> Object | None:
    """Return the merge patch that removes the operator's finalizer, or None if there is none."""
    metadata = job["metadata"]
    finalizers = metadata.get("finalizers") or ()
    if labels.FINALIZER not in finalizers:
        return None
    kept = [name for name in finalizers if name != labels.FINALIZER]
    return {"metadata": {"finalizers": kept, "resourceVersion": metadata["resourceVersion"]}}


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Object:
    """Return the JSON merge patch (RFC 7386) between two objects; removed keys become None."""
    changes: Object = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if old == value:
            continue
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            changes[key] = merge_patch(old, value)
        else:
            changes[key] = value
    return changes


class JobWriter:
    """Writes the objects of all jobs. It keeps no state about a job."""

    def __init__(
        self,
        cluster: KubeApi,
        limiter: WriteLimiter,
        gang_scheduling: GangScheduling,
        metrics_peers: Sequence[Mapping[str, Any]] = (),
        *,
        fixed_user: bool = True,
        has_priority_class: Callable[[str], bool] = lambda _name: True,
    ):
        """`has_priority_class` tells whether a PriorityClass exists."""
        self._cluster = cluster
        self._limiter = limiter
        self._gang_scheduling = gang_scheduling
        self._metrics_peers = metrics_peers
        self._fixed_user = fixed_user
        self._has_priority_class = has_priority_class

    async def write_status(
        self, observed: Observed, actions: Actions, expectations: Expectations
    ) -> None:
        """Write the status, then create the Events of what has changed."""
        identity = JobIdentity.of(observed.raw)
        patch = status_patch(observed, actions.status)
        async with self._limiter.job_write(identity.namespace):
            written = await self._cluster.patch_status(
                JOBS, identity.name, patch, identity.namespace
            )
        expectations.expect_job_version(written["metadata"]["resourceVersion"])
        before, after = observed.view, observed.view.with_status(actions.status)
        found = status_events(identity, before, after, format_time(observed.now))
        await _run_bounded(self._create_event(identity.uid, body) for body in found)

    async def report_denied_write(self, observed: Observed, error: ApiError) -> None:
        """Create an Event on a job whose status the API server refuses to store."""
        identity, now = JobIdentity.of(observed.raw), format_time(observed.now)
        finding = {
            "type": "Status",
            "status": "False",
            "reason": STATUS_WRITE_DENIED,
            "message": f"the API server refuses to store the status of the job: {error.message}",
            "lastTransitionTime": now,
        }
        event = make_event(identity, finding, observed.view.attempt, now)
        await self._create_event(identity.uid, event)

    async def report_left_pods(self, uid: str, pods: Sequence[PodRecord]) -> None:
        """Create an Event on each pod that has not ended long after its job was deleted."""
        now = format_time(datetime.now(UTC))
        for pod in pods:
            text = f"its job is deleted, but the pod has not ended and holds node {pod.node}"
            await self._create_event(uid, pod_event(pod, Reason.PODS_TERMINATING, text, now))

    async def _create_event(self, uid: str, body: Object) -> None:
        namespace = body["metadata"]["namespace"]
        try:
            await self._limiter.acquire(namespace)
            await self._cluster.create(EVENTS, body, namespace)
        except ApiError as error:
            if not isinstance(error, AlreadyExistsError):
                log.warning("job=%s event not created: %s", uid, error)

    async def delete_pods(self, pods: Sequence[PodRecord], expectations: Expectations) -> None:
        """Delete pods, with their UIDs as precondition."""

        async def one(victim: PodRecord) -> None:
            await self._limiter.acquire(victim.namespace)
            # Not found, or another pod has the name: this pod is already deleted.
            with contextlib.suppress(NotFoundError, ConflictError):
                await self._cluster.delete(PODS, victim.name, victim.namespace, uid=victim.uid)
            expectations.expect_deleted(victim.uid)

        await _run_bounded(one(victim) for victim in pods)

    async def delete_job(self, observed: Observed) -> None:
        """Delete the job after its TTL."""
        identity = JobIdentity.of(observed.raw)
        await self._limiter.acquire(identity.namespace)
        try:
            await self._cluster.delete(JOBS, identity.name, identity.namespace, uid=identity.uid)
        except (NotFoundError, ConflictError):
            return

    async def remove_finalizer(self, observed: Observed) -> bool:
        """Remove the finalizer of earlier versions of the operator. Those of others stay.

        Return False if there is nothing to remove, or it fails. Only a conflict is raised.
        """
        identity = JobIdentity.of(observed.raw)
        async with self._limiter.job_write(identity.namespace):
            try:
                found = await self._cluster.get(JOBS, identity.name, identity.namespace)
                patch = finalizer_patch(found)
                if patch is not None:
                    await self._cluster.patch(JOBS, identity.name, patch, identity.namespace)
            except NotFoundError:
                return False
            except ConflictError:
                raise
            except ApiError as error:
                # An admission plugin may refuse it or not answer, and permit everything else.
                log.warning("job=%s its finalizer cannot be removed: %s", identity.uid, error)
                return False
        return patch is not None

    async def create_pods(
        self,
        observed: Observed,
        actions: Actions,
        expectations: Expectations,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> CreateError | None:
        """Create the resources of the job, then its pods. Return the error that prevents it.

        A large gang takes seconds. `is_wanted` tells before each pod whether the job still exists.
        """
        job, identity = observed.checked, JobIdentity.of(observed.raw)
        assert isinstance(job, Job)
        view = observed.view.with_status(actions.status)
        attempt, nodes = view.attempt, view.placed_nodes
        placement, added = view.stored_placement, view.stored_network
        assert placement is not None, "pods are created for a placement in the status only"
        levels = level_labels(placement)
        job = _with_priority_class(job, placement, self._has_priority_class)
        template = self._gang_scheduling.add_to_pod(
            make_pod_template(job, identity, attempt, fixed_user=self._fixed_user, network=added),
            job,
            observed.raw,
            attempt,
            len(nodes),
        )

        async def create(index: int) -> None:
            if is_wanted():
                body = pod_of_node(
                    template, job, identity, attempt, index, nodes[index], levels[index]
                )
                await self._create_pod(body, identity, expectations)

        try:
            resources = [
                *self.resources(observed, attempt),
                *claim_resources(job, identity, attempt),
                *self._gang_scheduling.resources(job, identity, attempt),
            ]
            await _run_bounded(
                self._create_resource(r, body, identity, expectations) for r, body in resources
            )
            # Create the first pod alone: if it is rejected, all others would be, too.
            first, *rest = actions.create_pods
            await create(first)
            await _run_bounded(create(index) for index in rest)
        except _CreateRefusedError as refused:
            return naming_privileges(refused.create_error, job, added)
        return None

    def resources(self, observed: Observed, attempt: int) -> list[tuple[Resource, Object]]:
        """Return the objects of an attempt besides its pods."""
        key = observed.gang_key
        # A random key at each call: only that of the call that creates the ConfigMap is used.
        key = secrets.token_hex(GANG_KEY_BYTES) if key is None else key
        identity = JobIdentity.of(observed.raw)
        return job_resources(observed.raw, identity, attempt, key, self._metrics_peers)

    async def try_pod(self, record: JobRecord, job: Job) -> Object | Unschedulable:
        """Return the first pod as the API server would store it, or why it rejects the pod."""
        identity, view = JobIdentity.of(record.raw), record.view
        body = sample_pod(job, record.raw, view.attempt, fixed_user=self._fixed_user)
        gating = GangScheduling(pod_groups=False, kueue=self._gang_scheduling.kueue)
        body = gating.add_to_pod(body, job, record.raw, view.attempt, job.nodes)
        others = claim_resources(job, identity, view.attempt)
        if shared_claims(job, identity):
            others += self._gang_scheduling.resources(job, identity, view.attempt)
        try:
            for resource, other in others:
                await self._create_or_adopt(resource, other, identity, dry_run=True)
            return await self._create_or_adopt(PODS, body, identity, dry_run=True)
        except _CreateRefusedError as refused:
            error = naming_privileges(refused.create_error, job)
            return Unschedulable(Reason(error.reason), error.message)

    async def _create_pod(
        self, body: Object, identity: JobIdentity, expectations: Expectations
    ) -> None:
        made = await self._create_or_adopt(PODS, body, identity)
        expectations.expect_pod_version(made["metadata"]["resourceVersion"])

    async def _create_resource(
        self, resource: Resource, body: Object, identity: JobIdentity, expectations: Expectations
    ) -> None:
        made = await self._create_or_adopt(resource, body, identity)
        expectations.expect_child_version(resource.plural, made["metadata"]["resourceVersion"])

    async def _create_or_adopt(
        self, resource: Resource, body: Object, identity: JobIdentity, *, dry_run: bool = False
    ) -> Object:
        """Create a child object, or return the existing one if the job owns it."""
        name = body["metadata"]["name"]
        try:
            await self._limiter.acquire(identity.namespace)
            made = await self._cluster.create(resource, body, identity.namespace, dry_run=dry_run)
            if (refusal := dropped_claims(resource, body, made)) is not None:
                raise _CreateRefusedError(refusal)
            return made
        except AlreadyExistsError:
            found = await self._cluster.get(resource, name, identity.namespace)
        except NotFoundError as error:
            refusal = not_served(resource, body)
            if refusal is None:
                raise
            raise _CreateRefusedError(refusal) from error
        except ForbiddenError as error:
            raise _CreateRefusedError(forbidden(resource, name, error)) from error
        except UnavailableError as error:
            if not error.webhook_failed:
                raise
            text = clean_text(f"{resource.plural} {name} cannot be created: {error.message}", 700)
            raise _CreateRefusedError(CreateError(Reason.FORBIDDEN, text)) from error
        except InvalidError as error:
            raise _CreateRefusedError(invalid(resource, name, error)) from error
        except ApiError as error:
            if not error.denied:
                raise
            raise _CreateRefusedError(forbidden(resource, name, error)) from error
        owners = found["metadata"].get("ownerReferences") or ()
        owner: Mapping[str, Any] = next((o for o in owners if o.get("controller")), {})
        if owner.get("uid") == identity.uid:
            if (refusal := dropped_claims(resource, body, found)) is not None:
                raise _CreateRefusedError(refusal)
            return found
        raise _CreateRefusedError(name_conflict(f"{resource.plural} {name}", owner, identity))


def _with_priority_class(
    job: Job, placement: Mapping[str, Any], exists: Callable[[str], bool] = lambda _name: True
) -> Job:
    """Return the job with the PriorityClass for which it got its nodes.

    No pod of a class that was deleted can be created. The job keeps the priority of its placement
    for the queue, and its next pods have no class.
    """
    if "priority" not in placement:  # of an older release
        return job
    named = placement.get("priorityClassName")
    named = named if named is not None and exists(named) else None
    return replace(job, spec=job.spec.model_copy(update={"priority_class_name": named}))


async def _run_bounded(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines with bounded concurrency. Raise the first error after all have ended.

    A coroutine is taken from `work` when it can run, so that a large gang is never in memory whole.
    """
    waiting, errors = iter(work), list[Exception]()

    async def run() -> None:
        for each in waiting:
            try:
                await each
            except Exception as error:
                errors.append(error)

    await asyncio.gather(*(run() for _ in range(MAX_CONCURRENT_REQUESTS)))
    if errors:
        raise errors[0]
