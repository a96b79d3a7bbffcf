"""Pages with too many bytes are read again with fewer objects, without loss or repetition."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_operator.errors import TooLargeError
from llmtrain_operator.kube.api import Item, ListPage
from llmtrain_operator.kube.paging import list_pages
from llmtrain_operator.kube.resources import JOBS

pytestmark = pytest.mark.unit


class SizedList:
    """Serves objects of given sizes, in pages of at most a number of bytes."""

    def __init__(self, sizes: list[int], most: int):
        self.sizes = sizes
        self.most = most
        self.limits: list[int] = []

    async def list_page(self, *_: Any, limit: int, continue_: str, **__: Any) -> ListPage:
        self.limits.append(limit)
        start = int(continue_ or 0)
        end = min(start + limit, len(self.sizes))
        if limit > 1 and sum(self.sizes[start:end]) > self.most:
            raise TooLargeError(0, "TooLarge", "")
        items = [Item({"index": index}) for index in range(start, end)]
        return ListPage(items, 1, str(end) if end < len(self.sizes) else "")


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [1] * 1200,
        [1000] * 30,
        [1] * 400 + [1000] * 40 + [1] * 400,
        [5000],
        [1, 5000, 1],
    ],
)
async def test_every_object_is_listed_once(sizes: list[int]) -> None:
    server = SizedList(sizes, 2000)
    pages = [page async for page in list_pages(server, JOBS)]  # type: ignore[arg-type]
    found = [item.object["index"] for page in pages for item in page.items]
    assert found == list(range(len(sizes)))
    assert max(server.limits) == server.limits[0] == 500


async def test_small_objects_are_listed_in_few_requests() -> None:
    server = SizedList([1] * 400 + [1000] * 10 + [1] * 2000, 2500)
    assert [page async for page in list_pages(server, JOBS)]  # type: ignore[arg-type]
    assert len(server.limits) < 40, server.limits
