"""The consumer of a feed sees every job, and the newest state of each."""

from __future__ import annotations

import asyncio

import pytest

from llmtrain_operator.cache.job_feed import JobFeed
from llmtrain_operator.cache.job_record import job_record
from llmtrain_operator.cache.records import JobRecord
from tests.support.operator_harness.harness import job_object

pytestmark = pytest.mark.unit


def record(name: str, version: int) -> JobRecord:
    raw = job_object(name, "ns")
    raw["metadata"] |= {
        "uid": name,
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return job_record(raw)


async def test_existing_jobs_then_each_changed_job_once() -> None:
    jobs = [record("a", 1), record("b", 1)]
    feed = JobFeed(lambda: jobs)
    feed.changed(None, jobs[0])  # before the start
    changes = feed.changes()

    async def take(count: int) -> list[tuple[str, str, int]]:
        found = []
        async with asyncio.timeout(10):
            for _ in range(count):
                change = await anext(changes)
                found.append((change.kind, change.job.name, change.job.version))
        return found

    assert await take(2) == [("LISTED", "a", 1), ("LISTED", "b", 1)]
    feed.changed(None, record("c", 1))
    feed.changed(record("a", 1), record("a", 2))
    feed.changed(record("a", 2), record("a", 3))
    feed.changed(record("b", 1), None)
    assert await take(3) == [("ADDED", "c", 1), ("MODIFIED", "a", 3), ("DELETED", "b", 1)]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(changes)
