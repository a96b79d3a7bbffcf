"""Replace the part of kopf that one object of a tenant could stop for all tenants.

kopf decodes its watch of all jobs with a decoder that recurses: one object that is nested deeply
ends the operator (`RecursionError`). It keeps whole objects in memory, and fails if it cannot
decode its own annotations, which users can change.

Here kopf gets the jobs from the operator's own informer, reduced to what it needs. It sees no
annotations and no finalizers, so it has nothing to decode and nothing to write. The tests of this
file fail when kopf does not need that any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from kopf._cogs.clients import watching

from llmtrain_core.api.base import API_VERSION
from llmtrain_operator.cache.job_feed import JobChange, JobFeed

_HIDDEN = ("labels", "annotations", "finalizers")
"""Metadata that kopf does not get."""


@contextlib.contextmanager
def fed_by(feed: JobFeed) -> Iterator[None]:
    """Let kopf get jobs from a feed instead of a watch of its own, while the context is open."""

    async def infinite_watch(**_: Any) -> AsyncIterator[Any]:
        # kopf waits for the end of the list only for its indexes, which are not used.
        async for change in feed.changes():
            yield _event(change)

    before = watching.infinite_watch
    watching.infinite_watch = infinite_watch
    try:
        yield
    finally:
        watching.infinite_watch = before


def _event(change: JobChange) -> dict[str, Any]:
    """Return the event of a watch for a change, without what users can make large or invalid."""
    raw = change.job.raw
    metadata = {key: value for key, value in raw["metadata"].items() if key not in _HIDDEN}
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
