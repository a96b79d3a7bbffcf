"""An informer that records the changes that it reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llmtrain_devcluster.api import WAIT_SECONDS
from llmtrain_operator.kube import informer as module
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.informer import Informer, Selection
from llmtrain_operator.metrics.registry import Metrics

Record = tuple[str, str]


def decode(raw: Mapping[str, Any]) -> Record | None:
    labels = raw["metadata"].get("labels") or {}
    if labels.get("ignored"):
        return None
    return raw["metadata"]["name"], labels.get("job", "")


class RecordedInformer:
    """An informer and the changes that it reported."""

    def __init__(self, cluster: KubeClient, selection: Selection, page: int = 2):
        self.changes: list[tuple[Record | None, Record | None]] = []
        self.metrics = Metrics()
        self.informer = Informer[Record](
            "test",
            cluster,
            selection,
            decode,
            indexes={"job": lambda record: record[1] or None},
            on_change=lambda old, new: self.changes.append((old, new)),
            observer=self.metrics,
            page=page,
        )

    def replay(self) -> set[Record]:
        """Return the objects according to the reported changes alone."""
        known: set[Record] = set()
        for old, new in self.changes:
            if old is not None:
                known.remove(old)
            if new is not None:
                assert new not in known
                known.add(new)
        return known

    def names(self) -> set[str]:
        assert self.replay() == set(self.informer.values())
        return {record[0] for record in self.informer.values()}

    async def until(self, holds: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.01)


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_DELAY", 0.01)
