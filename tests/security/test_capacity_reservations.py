"""No tenant keeps nodes from others without running pods there.

Each attack claims all nodes. The reservation of this operator is short, so that a test can see it
end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from llmtrain_core.api.labels import FINALIZER
from llmtrain_devcluster.api import Api, ApiStatusError, Object
from tests.support.operator_harness.harness import (
    JOBS,
    condition,
    status_of,
)
from tests.support.security.measure import Bystanders
from tests.support.security.tenants import GPUS, NODES, Tenant, Tenants

pytestmark = pytest.mark.cluster

RESERVATION = 5
ENDLESS = {"failurePolicy": {"startupTimeout": "999999h"}}
GANGS = NODES // 2
KEEP = "example.com/keep"


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    """Placements without bound pods end soon."""
    return (f"--start-reservation={RESERVATION}",)


async def test_gated_pods_with_forged_owners_do_not_use_nodes(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    owner = await mallory.submit("owner", suspend=True)
    for index in range(NODES):
        node = f"node-{mallory.tag}-{index}"
        await mallory.api.create("pods", forged_pod(owner, index, node), mallory.namespace)
    assert len(await mallory.pods()) == NODES
    await bystanders.are_unharmed("gated pods with forged owners")


def forged_pod(owner: Object, index: int, node: str) -> Object:
    """A pod that looks like one of the job, is pinned to a node and never starts."""
    metadata = owner["metadata"]
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    required = {"nodeSelectorTerms": [term]}
    labels = {
        "llmtrain.dev/job-uid": metadata["uid"],
        "llmtrain.dev/attempt": "0",
        "llmtrain.dev/node-index": str(index),
    }
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
    resources = {"limits": {"nvidia.com/gpu": str(GPUS)}}
    container = {"name": "main", "image": "example.com/x:1", "resources": resources}
    return {
        "metadata": {"name": f"forged-{index}", "labels": labels, "ownerReferences": [reference]},
        "spec": {
            "schedulingGates": [{"name": "example.com/never"}],
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}
            },
            "containers": [container],
        },
    }


async def test_pods_that_cannot_be_scheduled_release_their_nodes_within_seconds(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    for number in range(GANGS):
        await mallory.submit(f"job-{number}", **ENDLESS, workers={"volumes": [missing_claim()]})
    for number in range(GANGS):
        job = await mallory.wait(f"job-{number}", has_released_nodes)
        assert status_of(job).get("restarts", 0) == 0
    await bystanders.are_unharmed("pods without their volume")


def missing_claim() -> dict[str, Any]:
    claim = {"claimName": "missing"}
    return {"name": "data", "mountPath": "/data", "persistentVolumeClaim": claim}


def has_released_nodes(job: Object) -> bool:
    return bool(status_of(job).get("unstartedAttempts"))


async def gangs_run(tenant: Tenant) -> None:
    """Start gangs on all nodes, and wait until they run."""
    for number in range(GANGS):
        await tenant.submit(f"job-{number}")
    for number in range(GANGS):
        await tenant.phase(f"job-{number}", "Running")


async def test_finalizers_of_a_tenant_do_not_keep_nodes(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await gangs_run(mallory)
    try:
        for pod in await mallory.pods():
            await mallory.patch_pod(pod["metadata"]["name"], {"metadata": {"finalizers": [KEEP]}})
        for number in range(GANGS):
            finalizers = [FINALIZER, KEEP]
            await mallory.patch(f"job-{number}", {"metadata": {"finalizers": finalizers}})
            await mallory.api.delete(JOBS, f"job-{number}", mallory.namespace)
        await have_ended(mallory, tenants.admin)
        await bystanders.are_unharmed("finalizers on jobs and pods")
        for number in range(GANGS):
            job = await mallory.job(f"job-{number}")
            assert job["metadata"]["finalizers"] == [KEEP], "only those of the tenant stay"
    finally:
        for number in range(GANGS):
            with contextlib.suppress(ApiStatusError):
                await mallory.patch(f"job-{number}", {"metadata": {"finalizers": None}})
        for pod in await tenants.admin.list("pods", mallory.namespace):
            name = pod["metadata"]["name"]
            await tenants.admin.patch(
                "pods", name, {"metadata": {"finalizers": None}}, mallory.namespace
            )


async def have_ended(tenant: Tenant, admin: Api) -> None:
    """Wait until the containers of all deleted pods have ended, as a kubelet reports it."""
    async with asyncio.timeout(60):
        while not all("deletionTimestamp" in pod["metadata"] for pod in await tenant.pods()):
            await asyncio.sleep(0.1)
    pods = await tenant.pods()
    for pod in pods:
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            continue
        # A scripted node removes pods at once. The kubelet first reports that they have ended.
        await admin.patch(
            "pods",
            pod["metadata"]["name"],
            {"status": {"phase": "Failed"}},
            tenant.namespace,
            subresource="status",
        )


async def test_a_job_whose_pods_have_ended_keeps_no_nodes(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    await gangs_run(mallory)
    for number in range(GANGS):
        # One pod of each gang ends and the other one goes on: half of the nodes are idle.
        mallory.nodes.end(mallory.namespace, f"job-{number}-0-1", 0)
    await asyncio.sleep(RESERVATION + 2)
    await bystanders.are_unharmed("gangs that leave nodes idle")
    for number in range(GANGS):
        assert condition(await mallory.job(f"job-{number}"), "Running")["status"] == "True"
