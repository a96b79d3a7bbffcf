"""Remove the operator's finalizer from the jobs of some namespaces, by default of all.

`python -m llmtrain_operator.uninstall [NAMESPACE ...]` is for clusters without the operator: there
nothing else removes it, and the deletion of such a job and of its namespace would not end. It runs
after the operator has lost its rights, so nothing adds the finalizer again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence

from llmtrain_core.api import labels
from llmtrain_core.api.untrusted import printable
from llmtrain_operator.errors import ApiError, ConflictError, NotFoundError, OperatorError
from llmtrain_operator.kube.api import KubeApi, Object
from llmtrain_operator.kube.client import KubeClient, load_configuration
from llmtrain_operator.kube.paging import list_pages
from llmtrain_operator.kube.resources import JOBS
from llmtrain_operator.metrics.registry import Metrics

ATTEMPTS = 10
RETRY_SECONDS = 2.0


def main() -> None:
    """Entry point of the program."""
    try:
        print(f"released {asyncio.run(_run(sys.argv[1:]))} jobs")
    except OperatorError as error:
        sys.exit(printable(f"llmtrain-operator: {error}"))


async def _run(namespaces: Sequence[str]) -> int:
    cluster = KubeClient(await load_configuration(None), Metrics().requests)
    try:
        return await release_jobs(cluster, namespaces)
    finally:
        await cluster.close()


async def release_jobs(cluster: KubeApi, namespaces: Sequence[str]) -> int:
    """Remove the finalizer from the jobs of some namespaces, by default of all; return how many.

    Jobs that changed in between are read again. New roles take effect only after a moment, so a
    refused request is repeated as well.
    """
    released = 0
    for attempt in range(1, ATTEMPTS + 1):
        conflicts = 0
        try:
            for namespace in namespaces or (None,):
                async for job in _held_jobs(cluster, namespace):
                    try:
                        await _release(cluster, job)
                        released += 1
                    except NotFoundError:
                        pass
                    except ConflictError:
                        conflicts += 1
        except ApiError:
            if attempt == ATTEMPTS:
                raise
            conflicts += 1
        if not conflicts:
            return released
        await asyncio.sleep(RETRY_SECONDS)
    raise OperatorError("jobs change too often to release them: run it again")


async def _held_jobs(cluster: KubeApi, namespace: str | None) -> AsyncIterator[Object]:
    """Yield the jobs that have the finalizer; none if their resource does not exist."""
    with contextlib.suppress(NotFoundError):
        async for page in list_pages(cluster, JOBS, namespace):
            for item in page.items:
                metadata = item.object.get("metadata") or {}
                if labels.FINALIZER in (metadata.get("finalizers") or ()):
                    yield item.object


async def _release(cluster: KubeApi, job: Object) -> None:
    metadata = job["metadata"]
    kept = [name for name in metadata["finalizers"] if name != labels.FINALIZER]
    body = {"metadata": {"finalizers": kept, "resourceVersion": metadata["resourceVersion"]}}
    await cluster.patch(JOBS, metadata["name"], body, metadata["namespace"])


if __name__ == "__main__":
    main()
