"""Lists in pages of bounded size."""

from __future__ import annotations

from collections.abc import AsyncIterator

from llmtrain_operator.errors import TooLargeError
from llmtrain_operator.kube.api import KubeApi, ListPage
from llmtrain_operator.kube.resources import Resource


async def list_pages(
    cluster: KubeApi,
    resource: Resource,
    namespace: str | None = None,
    *,
    labels: str = "",
    fields: str = "",
    most: int = 500,
) -> AsyncIterator[ListPage]:
    """Yield the pages of a list, each with at most `most` objects, and fewer if they are large."""
    limit, continue_ = most, ""
    while True:
        try:
            page = await cluster.list_page(
                resource, namespace, labels=labels, fields=fields, limit=limit, continue_=continue_
            )
        except TooLargeError:
            limit = max(1, limit // 4)
            continue
        yield page
        continue_ = page.continue_
        if not continue_:
            return
        limit = min(most, limit * 2)
