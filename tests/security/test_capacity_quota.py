"""A gang that its quota or a policy forbids gets no node, no reservation and no victim."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmtrain_devcluster.api import Object
from tests.support.operator_harness.harness import JOBS, condition, status_of
from tests.support.security.measure import Bystanders
from tests.support.security.tenants import NODES, Tenant, Tenants

pytestmark = pytest.mark.cluster

GANGS = NODES // 2
ENDLESS = {"failurePolicy": {"startupTimeout": "999999h"}}
CYCLES_SECONDS = 3.0
"""Time in which the scheduler decides several times."""
VICTIM = {
    "workers": {"nodes": NODES - 2},
    "training": {"steps": 100, "globalBatchSize": 3 * NODES, "microBatchSize": 1},
}
"""A job that leaves two nodes, on which jobs of others start."""


async def limit(tenants: Tenants, tenant: Tenant, hard: dict[str, str], **spec: Any) -> None:
    """Give a tenant a quota, and wait until it is in force."""
    body = {"metadata": {"name": "quota"}, "spec": {"hard": hard, **spec}}
    await tenants.admin.create("resourcequotas", body, tenant.namespace)
    await tenants.admin.wait_for(
        "resourcequotas",
        "quota",
        lambda q: "used" in (q or {}).get("status", {}),
        tenant.namespace,
        seconds=60,
    )


async def is_refused(tenant: Tenant, name: str, *reasons: str) -> Object:
    return await tenant.wait(
        name, lambda job: condition(job, "Placed").get("reason") in reasons, 60
    )


async def test_a_quota_of_zero_with_an_endless_startup_timeout_keeps_no_nodes(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await limit(tenants, mallory, {"pods": "0"})
    for number in range(GANGS):
        await mallory.submit(f"job-{number}", **ENDLESS)
    for number in range(GANGS):
        job = await is_refused(mallory, f"job-{number}", "QuotaExceeded")
        assert "startTime" not in status_of(job), "it never had nodes"
    await bystanders.are_unharmed("quota 0 and an endless startupTimeout")


async def test_a_quota_for_seven_of_eight_pods_preempts_nobody(
    tenants: Tenants, bystanders: Bystanders, priority: str
) -> None:
    mallory, carol = tenants.mallory, tenants.carol
    await carol.submit("victim", **VICTIM)
    await carol.phase("victim", "Running")
    await limit(tenants, mallory, {"pods": str(NODES - 1)})
    await mallory.submit("vip", priorityClassName=priority, workers={"nodes": NODES})
    job = await is_refused(mallory, "vip", "QuotaExceeded")
    assert (
        f"pods requested {NODES}, used 0, limit {NODES - 1}" in condition(job, "Placed")["message"]
    )
    await asyncio.sleep(CYCLES_SECONDS)
    victim = status_of(await carol.job("victim"))
    assert victim["phase"] == "Running" and not victim.get("preemptions")
    # The job that cannot start is the head of the queue. It reserves no node, either.
    await bystanders.are_unharmed("a quota for seven of eight pods")
    assert not await mallory.pods()


async def test_a_quota_of_a_priority_class_counts(
    tenants: Tenants, bystanders: Bystanders, priority: str
) -> None:
    mallory, carol = tenants.mallory, tenants.carol
    scope = {"scopeName": "PriorityClass", "operator": "In", "values": [priority]}
    selector = {"matchExpressions": [scope]}
    await limit(tenants, mallory, {"requests.nvidia.com/gpu": "2"}, scopeSelector=selector)
    await carol.submit("victim", **VICTIM)
    await carol.phase("victim", "Running")
    await mallory.submit("vip", priorityClassName=priority, workers={"nodes": NODES})
    await is_refused(mallory, "vip", "QuotaExceeded")
    await asyncio.sleep(CYCLES_SECONDS)
    victim = status_of(await carol.job("victim"))
    assert victim["phase"] == "Running" and not victim.get("preemptions")
    await bystanders.are_unharmed("a quota of a priority class")


async def test_spare_nodes_beyond_the_quota_are_refused(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await limit(tenants, mallory, {"pods": "2"})
    one = {"workers": {"nodes": 1}, "topology": {"spares": NODES - 1}}
    await mallory.submit("job", **one)
    job = await is_refused(mallory, "job", "QuotaExceeded")
    assert f"pods requested {NODES}" in condition(job, "Placed")["message"]
    await bystanders.are_unharmed("spares beyond the quota")


async def test_shared_memory_counts_against_a_quota_of_memory(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await limit(tenants, mallory, {"requests.memory": "1Ti"})
    await mallory.submit("job", workers={"shmSize": "600Gi"})
    job = await is_refused(mallory, "job", "QuotaExceeded")
    assert f"requests.memory requested {1200 << 10}Mi" in condition(job, "Placed")["message"]
    await bystanders.are_unharmed("more shared memory than the quota of memory")


async def test_jobs_that_fit_into_a_quota_only_one_by_one_start_one_by_one(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await limit(tenants, mallory, {"pods": "3"})
    for name in ("first", "second"):
        await mallory.submit(name)
    jobs: list[Object] = []
    for _ in range(600):
        jobs = await mallory.api.list(JOBS, mallory.namespace)
        reasons = sorted(condition(job, "Placed").get("reason", "") for job in jobs)
        if reasons == ["Placed", "QuotaExceeded"]:
            break
        await asyncio.sleep(0.1)
    assert reasons == ["Placed", "QuotaExceeded"]
    [placed] = [job for job in jobs if condition(job, "Placed")["reason"] == "Placed"]
    await mallory.phase(placed["metadata"]["name"], "Running")
    await bystanders.are_unharmed("jobs that fit into a quota only one by one")


async def test_a_name_that_is_taken_preempts_nobody(
    tenants: Tenants, bystanders: Bystanders, priority: str
) -> None:
    mallory, carol = tenants.mallory, tenants.carol
    await carol.submit("victim", **VICTIM)
    await carol.phase("victim", "Running")
    container = {"name": "main", "image": "example.com/x:1"}
    taken = {"metadata": {"name": "vip-0-0"}, "spec": {"containers": [container]}}
    await mallory.api.create("pods", taken, mallory.namespace)
    await mallory.submit("vip", priorityClassName=priority, workers={"nodes": NODES})
    await is_refused(mallory, "vip", "NameConflict")
    await asyncio.sleep(CYCLES_SECONDS)
    victim = status_of(await carol.job("victim"))
    assert victim["phase"] == "Running" and not victim.get("preemptions")
    await bystanders.are_unharmed("a name that is taken")
