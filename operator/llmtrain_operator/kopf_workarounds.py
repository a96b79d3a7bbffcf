"""Replace the parts of kopf that one object of a tenant could stop for all tenants.

kopf decodes jobs with a decoder that recurses, in its watch of all jobs and in the responses to its
patches: one object that is nested deeply ends the operator (`RecursionError`). kopf stores its own
state in annotations, which users can change, and fails if it cannot decode them. It also keeps
whole objects in memory.

Here kopf gets the jobs from the operator's own informer, reduced to what it needs, and stores
nothing. It patches only a few jobs of a namespace at the same time. The tests of this file fail
when kopf does not need that any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import kopf
from kopf._cogs.clients import api, watching

from llmtrain_core.api.base import API_VERSION
from llmtrain_operator.cache.job_feed import JobChange, JobFeed
from llmtrain_operator.kube.decoding import read_object
from llmtrain_operator.kube.namespace_limits import JOB_WRITES, NamespaceGate

_PATCH_RESULT = ("uid", "resourceVersion", "deletionTimestamp", "finalizers")
"""What kopf reads of the response to a patch."""


@contextlib.contextmanager
def fed_by(feed: JobFeed) -> Iterator[None]:
    """Let kopf get jobs from a feed instead of a watch of its own, while the context is open."""

    async def infinite_watch(**_: Any) -> AsyncIterator[Any]:
        # kopf waits for the end of the list only for its indexes, which are not used.
        async for change in feed.changes():
            yield _event(change)

    gate = NamespaceGate(JOB_WRITES)

    async def patch(url: str, **arguments: Any) -> dict[str, Any]:
        *_, namespace, _plural, _name = url.split("?")[0].split("/")
        async with gate.enter(namespace):
            return await _patch(url, **arguments)

    before = watching.infinite_watch, api.patch
    watching.infinite_watch, api.patch = infinite_watch, patch
    try:
        yield
    finally:
        watching.infinite_watch, api.patch = before


def _event(change: JobChange) -> dict[str, Any]:
    """Return the event of a watch for a change, without what users can make large or invalid."""
    raw = change.job.raw
    metadata = {k: v for k, v in raw["metadata"].items() if k not in ("labels", "annotations")}
    spec = {"managedBy": raw["spec"]["managedBy"]} if "managedBy" in raw["spec"] else {}
    return {
        "type": None if change.kind == "LISTED" else change.kind,
        "object": {
            "apiVersion": API_VERSION,
            "kind": "LLMTrainingJob",
            "metadata": metadata,
            "spec": spec,
        },
    }


async def _patch(url: str, **arguments: Any) -> dict[str, Any]:
    """Send a patch. Return only what kopf reads of the response."""
    response = await api.request(method="patch", url=url, **arguments)
    async with response:
        metadata = read_object(await response.read()).get("metadata") or {}
    return {"metadata": {key: metadata[key] for key in _PATCH_RESULT if key in metadata}}


class NoProgress(kopf.ProgressStorage):
    """Stores no progress of handlers: a daemon has none that must survive the process."""

    def __init__(self, repeat: Callable[[str], None]):
        """`repeat` reports a job again, by UID. By default kopf writes an annotation for that."""
        super().__init__()
        self._repeat = repeat

    def fetch(self, **_: Any) -> None:
        """Return no progress."""

    def store(self, **_: Any) -> None:
        """Store nothing."""

    def purge(self, **_: Any) -> None:
        """Do nothing: nothing is stored."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Report the job again, because kopf wants to look at it once more."""
        if value is not None:
            self._repeat(body["metadata"]["uid"])

    def clear(self, *, essence: Any) -> Any:
        """Return the essence: there is nothing to remove from it."""
        return essence


class NoDiffBase(kopf.DiffBaseStorage):
    """Stores no earlier state of jobs: no handler asks for differences."""

    def build(self, **_: Any) -> Any:
        """Return no state."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Return no earlier state."""

    def store(self, **_: Any) -> None:
        """Store nothing."""
