"""Many jobs of one tenant: those of others start as usual, and the operator keeps its lease.

`make many-jobs` submits 5,000; the tests have a fixed sample.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence

import pytest

from llmtrain_devcluster.scripted_node.node import in_batches
from tests.support.operator_harness.harness import JOBS, condition
from tests.support.security.measure import Bystanders
from tests.support.security.tenants import Tenant, Tenants

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

COUNT = int(os.environ.get("LLMTRAIN_MANY_JOBS", "48"))
ACTIVE = COUNT // 4
SECONDS = 120 + COUNT / 2
TOO_MANY = "TooManyActiveJobs"


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    """A low limit of active jobs per namespace."""
    return (f"--max-active-jobs={ACTIVE}",)


async def submit_many(tenant: Tenant) -> None:
    """Submit jobs that never fit, so that they wait and hold nothing."""

    async def submit(index: int) -> None:
        workers = {"nodes": 64, "gpusPerNode": 1}
        training = {"steps": 1, "globalBatchSize": 64, "microBatchSize": 1}
        degrees = {"tensor": 1, "data": 64}
        await tenant.submit(f"job-{index}", workers=workers, parallelism=degrees, training=training)

    await in_batches(submit(index) for index in range(COUNT))


async def wait_reasons(tenant: Tenant) -> Counter[str]:
    jobs = await tenant.api.list(JOBS, tenant.namespace)
    return Counter(condition(job, "Placed").get("reason", "") for job in jobs)


async def event_reasons(tenant: Tenant, name: str) -> set[str]:
    events = await tenant.api.list("events", tenant.namespace)
    return {event["reason"] for event in events if event["involvedObject"]["name"] == name}


async def test_many_jobs_of_one_tenant(tenants: Tenants, bystanders: Bystanders) -> None:
    mallory, operator = tenants.mallory, bystanders.operator
    arrival = asyncio.create_task(submit_many(mallory))
    await bystanders.starts.check(tenants.bob, "many jobs arrive")
    await arrival
    expected = {"InsufficientNodes": ACTIVE, TOO_MANY: COUNT - ACTIVE}
    async with asyncio.timeout(SECONDS):
        while (found := await wait_reasons(mallory)) != expected:
            await asyncio.sleep(0.5)
    await bystanders.are_unharmed("many jobs wait")
    assert operator.leads(), found
    print(
        f"{COUNT} jobs: usual start {bystanders.starts.usual:.2f} s, during the attack"
        f" {bystanders.starts.during}, memory {bystanders.peak_mib():.0f} MiB"
    )
    jobs = await mallory.api.list(JOBS, mallory.namespace)
    late = next(job for job in jobs if condition(job, "Placed")["reason"] == TOO_MANY)
    assert f"its namespace has {ACTIVE} active jobs" in condition(late, "Placed")["message"]
    name = late["metadata"]["name"]
    shown = f'namespace="{mallory.namespace}",reason="{TOO_MANY}"}} 1.0'
    async with asyncio.timeout(SECONDS):
        while operator.metrics().count(shown) != COUNT - ACTIVE:
            await asyncio.sleep(0.5)
        while TOO_MANY not in await event_reasons(mallory, name):
            await asyncio.sleep(0.5)
