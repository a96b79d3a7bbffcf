"""Restore the objects of a running job besides its pods: others may delete or edit them.

Without its Service the ranks of a job do not find each other after a restart in place, without its
NetworkPolicy all pods of the cluster reach their ports, and without its ConfigMap no pod starts.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmtrain_core.api.conditions import ConditionType, Reason, clean_text
from llmtrain_core.validation.check import Job
from llmtrain_operator.cache.child_record import ChildRecord
from llmtrain_operator.cache.job import JobView, format_time
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    NotFoundError,
)
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.kube.api import KubeApi, Object
from llmtrain_operator.kube.informer import Informer
from llmtrain_operator.kube.namespace_limits import WriteLimiter
from llmtrain_operator.kube.resources import CONFIG_MAPS, EVENTS, Resource
from llmtrain_operator.manifests.job_resources import digest, kept_fields
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.reconcile.backoff import RESYNC_SECONDS, Backoff
from llmtrain_operator.reconcile.events import finding_event
from llmtrain_operator.reconcile.expectations import Expectations
from llmtrain_operator.reconcile.writer import merge_patch

log = logging.getLogger(__name__)

RECHECK_SECONDS = 1.0

Accepted = Mapping[tuple[Resource, str], str]
"""Digests of what the API server has made of our objects, which a webhook may change."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """What differs from the objects that a job should have."""

    differing: Sequence[tuple[Resource, Object]] = ()
    """Objects that are missing or edited, as they should be."""
    old: Sequence[ChildRecord] = ()
    """Objects of earlier attempts, which no pod uses any more."""


def needs_children(observed: Observed, actions: Actions) -> bool:
    """Return True if the job has pods that need its other objects, and nothing else comes first."""
    view = observed.view
    if not isinstance(observed.checked, Job) or view.placement is None:
        return False
    if view.is_finished or view.is_deleting or actions.changed or actions.create_pods:
        return False
    return any(pod.attempt == view.attempt and not pod.ended for pod in observed.pods)


def find_repairs(
    view: JobView,
    wanted: Iterable[tuple[Resource, Object]],
    children: Sequence[ChildRecord],
    pods: Iterable[PodRecord],
    accepted: Accepted,
) -> Repairs:
    """Compare the objects that a job owns with those that it should have. Pure."""
    found = {(child.resource, child.name): child for child in children}
    identity = JobIdentity(view.metadata["namespace"], view.metadata["name"], "")
    earlier = found.get((CONFIG_MAPS, identity.old_config_map))
    differing = []
    for resource, body in wanted:
        key = resource, body["metadata"]["name"]
        child = found.get(key)
        if child is None and resource == CONFIG_MAPS and earlier is not None:
            continue  # an earlier version has started the attempt, and its pods have that one
        equal = digest(resource, body), accepted.get(key)
        if child is None or not (child.deleting or child.digest in equal):
            differing.append((resource, body))
    old = outdated(view, children, pods)
    has_own = (CONFIG_MAPS, identity.config_map(view.attempt)) in found
    if earlier is not None and has_own and view.is_true(ConditionType.RUNNING):
        old.append(earlier)  # all pods have started, so none of them still needs it
    return Repairs(differing, old)


def outdated(
    view: JobView, children: Iterable[ChildRecord], pods: Iterable[PodRecord]
) -> list[ChildRecord]:
    """Return the ConfigMaps of earlier attempts that have no pods any more."""
    attempts = {pod.attempt for pod in pods}
    return [
        child
        for child in children
        if child.resource == CONFIG_MAPS
        and not child.deleting
        and 0 <= child.attempt < view.attempt
        and child.attempt not in attempts
    ]


def known_gang_key(
    view: JobView, children: Iterable[ChildRecord], pods: Iterable[PodRecord]
) -> str | None:
    """Return the key that pods of the current attempt may have, or None if there is none.

    The first pods of the attempt may be of an earlier version, with the ConfigMap of that one.
    """
    identity = JobIdentity(view.metadata["namespace"], view.metadata["name"], "")
    keys = {child.name: child.gang_key for child in children if child.resource == CONFIG_MAPS}
    own = keys.get(identity.config_map(view.attempt))
    if own is None and any(pod.attempt == view.attempt for pod in pods):
        return keys.get(identity.old_config_map)
    return own


@dataclass(slots=True)
class Restorer:
    """Restores the objects of one job. It remembers what the API server answered."""

    cluster: KubeApi
    limiter: WriteLimiter
    informers: Mapping[Resource, Informer[ChildRecord]]
    resources: Callable[[Observed, int], Sequence[tuple[Resource, Object]]]
    """Returns the objects that an attempt should have."""
    backoff: Backoff = field(default_factory=Backoff)
    complete: tuple[object, ...] | None = None
    """The last state that was compared and in which nothing differed."""
    gang_key: tuple[int, str] | None = field(default=None, repr=False)
    """Attempt, and the key of its gang: a ConfigMap that is restored has the same key."""
    accepted: dict[tuple[Resource, str], str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    """UIDs of the objects of earlier attempts that were deleted."""
    refused: dict[tuple[Resource, str], str] = field(default_factory=dict)
    """The last text about each object that cannot be restored: it gets one Event."""

    def _all_children(self, job: JobRecord) -> tuple[ChildRecord, ...]:
        owner = f"{job.namespace}/{job.uid}"
        found = (informer.by_index("owner", owner) for informer in self.informers.values())
        return tuple(child for children in found for child in children)

    def children(
        self, job: JobRecord, expectations: Expectations
    ) -> tuple[ChildRecord, ...] | None:
        """Return the objects that the job owns, or None if the caches may lack the last writes."""
        versions = expectations.child_versions
        for kind, informer in self.informers.items():
            if informer.last_version < versions.get(kind.plural, 0):
                return None
        return self._all_children(job)

    def observe_key(self, job: JobRecord, pods: Iterable[PodRecord]) -> str | None:
        """Return the key of the gang of the current attempt, or None if it may get a new one."""
        view = job.view
        known = known_gang_key(view, self._all_children(job), pods)
        if known is not None:
            self.gang_key = view.attempt, known
        if self.gang_key is None or self.gang_key[0] != view.attempt:
            return None
        return self.gang_key[1]

    async def restore(
        self, observed: Observed, actions: Actions, expectations: Expectations
    ) -> float:
        """Restore what pods of the job need. Return the seconds until another look at it."""
        if not needs_children(observed, actions):
            if observed.children and not actions.changed:
                # Before the next attempt has pods: a quota may not permit one ConfigMap more.
                await self._delete(outdated(observed.view, observed.children, observed.pods))
            return RESYNC_SECONDS
        if observed.children is None:
            return RECHECK_SECONDS
        view = observed.view
        attempts = frozenset(pod.attempt for pod in observed.pods)
        state = observed.children, view.attempt, view.is_true(ConditionType.RUNNING), attempts
        if state == self.complete:
            return RESYNC_SECONDS  # most iterations: nothing is built to be compared
        wanted = self.resources(observed, view.attempt)
        repairs = find_repairs(view, wanted, observed.children, observed.pods, self.accepted)
        await self._delete(repairs.old)
        if not repairs.differing:
            self.complete = state
            return RESYNC_SECONDS
        if self.backoff.left <= 0:
            # Another controller may edit them again and again: each repair comes later.
            if time.monotonic() > self.backoff.until + RESYNC_SECONDS:
                self.backoff.reset()
            self.backoff.extend()
            await self._restore_all(observed, repairs.differing, expectations)
        return self.backoff.left

    async def _delete(self, old: Iterable[ChildRecord]) -> None:
        for child in old:
            if child.uid in self.deleted:
                continue
            await self.limiter.acquire(child.namespace)
            # Not found, or another object has the name: this one is already deleted.
            with contextlib.suppress(NotFoundError, ConflictError):
                await self.cluster.delete(
                    child.resource, child.name, child.namespace, uid=child.uid
                )
            self.deleted.add(child.uid)

    async def _restore_all(
        self,
        observed: Observed,
        differing: Iterable[tuple[Resource, Object]],
        expectations: Expectations,
    ) -> None:
        identity = JobIdentity.of(observed.raw)
        for resource, body in differing:
            text, done = await self._restore(resource, body, identity, expectations)
            key = resource, body["metadata"]["name"]
            if text and (done or text != self.refused.get(key)):
                log.warning("job=%s %s", identity.uid, text)
                await self._create_event(identity, observed, text)
            if done:
                self.refused.pop(key, None)
            elif text:
                self.refused[key] = text

    async def _restore(
        self, resource: Resource, body: Object, identity: JobIdentity, expectations: Expectations
    ) -> tuple[str, bool]:
        """Create or patch one object. Return what there is to tell, and whether it is restored."""
        name = body["metadata"]["name"]
        what = f"{resource.plural} {name}"
        await self.limiter.acquire(identity.namespace)
        try:
            found = await self._get(resource, name, identity.namespace)
            if found is None:
                made = await self.cluster.create(resource, body, identity.namespace)
            elif "deletionTimestamp" in found["metadata"] or _is_as_wanted(resource, found, body):
                return "", False
            elif not _is_owned(found, identity):
                return f"{what} is missing; an object that the job does not own has its name", False
            else:
                patch = restoring_patch(resource, found, body)
                made = await self.cluster.patch(resource, name, patch, identity.namespace)
        except (ConflictError, AlreadyExistsError):
            return "", False  # it has changed meanwhile
        except ApiError as error:
            if error.retryable:
                raise
            text = f"{what} is missing or differs, and cannot be restored: {error.message}"
            return clean_text(text, 700), False
        self.accepted[resource, name] = digest(resource, made)
        expectations.expect_child_version(resource.plural, made["metadata"]["resourceVersion"])
        why = "was deleted" if found is None else "differs from what the operator creates"
        return f"{what} {why} and is restored", True

    async def _get(self, resource: Resource, name: str, namespace: str) -> Object | None:
        try:
            return await self.cluster.get(resource, name, namespace)
        except NotFoundError:
            return None

    async def _create_event(self, identity: JobIdentity, observed: Observed, text: str) -> None:
        now, attempt = format_time(observed.now), observed.view.attempt
        event = finding_event(identity, Reason.RESTORED, text, attempt, now)
        with contextlib.suppress(ApiError):
            await self.limiter.acquire(identity.namespace)
            await self.cluster.create(EVENTS, event, identity.namespace)


def restoring_patch(resource: Resource, found: Mapping[str, Any], body: Object) -> Object:
    """Return the merge patch that sets our labels and the compared fields of an object again."""
    metadata = {
        "resourceVersion": found["metadata"]["resourceVersion"],
        "labels": body["metadata"]["labels"],
    }
    spec = merge_patch(kept_fields(resource, found), kept_fields(resource, body))
    return {"metadata": metadata, **({"spec": spec} if spec else {})}


def _is_as_wanted(resource: Resource, found: Mapping[str, Any], body: Object) -> bool:
    """Return True if an object has our labels, and the compared fields are equal."""
    labels: Mapping[str, str] = found["metadata"].get("labels") or {}
    has_labels = body["metadata"]["labels"].items() <= labels.items()
    return has_labels and digest(resource, found) == digest(resource, body)


def _is_owned(found: Mapping[str, Any], identity: JobIdentity) -> bool:
    owners = found["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner["uid"] == identity.uid for owner in owners)
