"""Replace the part of kopf that one object of a tenant could stop for all tenants.

kopf decodes its watch of all jobs with a decoder that recurses: one object that is nested deeply
ends the operator (`RecursionError`). It keeps whole objects in memory, and fails if it cannot
decode its own annotations, which users can change.

It also looks only once, at its start, which resources the API server serves. An API server lists a
new resource in its discovery some time after it has answered the first request for it. If kopf
looks in between, it never handles a job.

Here kopf gets the jobs from the operator's own informer, reduced to what it needs. It sees no
annotations and no finalizers, so it has nothing to decode and nothing to write. The tests of this
file fail when kopf does not need that any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

from kopf._cogs.clients import scanning, watching
from kopf._cogs.structs import references

from llmtrain_core.api.base import API_VERSION, GROUP
from llmtrain_operator.cache.job_feed import JobChange, JobFeed

log = logging.getLogger(__name__)

PLURAL = "llmtrainingjobs"
SCAN_SECONDS = 1.0
_HIDDEN = ("labels", "annotations", "finalizers")
"""Metadata that kopf does not get."""


@contextlib.contextmanager
def fed_by(feed: JobFeed) -> Iterator[None]:
    """Let kopf get jobs from a feed instead of a watch of its own, while the context is open.

    kopf looks for its resources until it finds the jobs.
    """

    async def infinite_watch(**_: Any) -> AsyncIterator[Any]:
        # kopf waits for the end of the list only for its indexes, which are not used.
        async for change in feed.changes():
            yield _event(change)

    async def scan_resources(**options: Any) -> Collection[references.Resource]:
        while True:
            found = await scan(**options)
            if any((item.group, item.plural) == (GROUP, PLURAL) for item in found):
                return found
            log.warning("the API server does not list %s.%s yet", PLURAL, GROUP)
            await asyncio.sleep(SCAN_SECONDS)

    watch, scan = watching.infinite_watch, scanning.scan_resources
    watching.infinite_watch, scanning.scan_resources = infinite_watch, scan_resources
    try:
        yield
    finally:
        watching.infinite_watch, scanning.scan_resources = watch, scan


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
