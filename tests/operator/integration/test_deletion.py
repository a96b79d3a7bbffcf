"""Deletion of a job in each way: nothing blocks it, and no node is used twice meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from llmtrain_core.api.labels import FINALIZER
from llmtrain_devcluster.api import ApiStatusError, Object
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import (
    DISRUPTION_BUDGETS,
    JOBS,
    OperatorHarness,
    OperatorProcess,
    condition,
    status_of,
)

pytestmark = pytest.mark.cluster

GC_SECONDS = 120
"""The garbage collector looks for new kinds every 30 s: ours may be new to it."""


async def waits(harness: OperatorHarness, name: str, reason: str) -> str:
    """Wait until a job waits for nodes for a reason; return the message."""
    job = await harness.reason(name, "Placed", reason)
    return str(condition(job, "Placed")["message"])


async def test_deletion_removes_all_child_objects(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.run_on_two_nodes("doomed", PodScript(exit_after=None, delete_after=1.0))
    budget = f"{DISRUPTION_BUDGETS}/doomed"
    while budget not in (children := await harness.children()):
        await asyncio.sleep(0.05)
    assert len(children) == 6
    assert "finalizers" not in (await harness.job("doomed"))["metadata"]
    await harness.api.delete(JOBS, "doomed", harness.namespace)
    with pytest.raises(ApiStatusError, match="404"):
        await harness.job("doomed")
    deadline = time.monotonic() + GC_SECONDS
    while left := await harness.children():
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.2)


async def test_time_to_live(operator: OperatorProcess, harness: OperatorHarness) -> None:
    await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=0.3)
    await harness.submit("brief", runPolicy={"ttlSecondsAfterFinished": 0})
    await harness.gone("brief")


async def test_pods_of_a_deleted_job_hold_their_nodes_and_its_name(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({}, {}, {}, {})
    harness.nodes.default = PodScript(exit_after=None, hang_on_delete=True)
    await harness.submit("again")
    await harness.phase("again", "Running")
    old = await harness.pods()
    await harness.api.delete(JOBS, "again", harness.namespace)
    await harness.submit("wide", workers={"nodes": 4})
    await waits(harness, "wide", "InsufficientGpus")
    await harness.submit("again")
    text = await waits(harness, "again", "NameConflict")  # although two nodes are free
    assert "2 pods of an earlier job of this name are left, such as again-0-0" in text
    await harness.api.delete(JOBS, "wide", harness.namespace)
    harness.nodes.default = PodScript(exit_after=None)
    for pod in old:
        name = pod["metadata"]["name"]
        await harness.api.delete("pods", name, harness.namespace, grace_seconds=0)
    status = status_of(await harness.phase("again", "Running"))
    assert status.get("restarts", 0) == status.get("attempt", 0) == 0


async def test_an_object_of_a_deleted_job_keeps_the_next_one_of_its_name_waiting_without_nodes(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.run_on_two_nodes("again", PodScript(exit_after=None))
    kept: Object = {"metadata": {"finalizers": ["example.com/keep"]}}
    await harness.api.patch("services", "again", kept, harness.namespace)
    await harness.api.delete(JOBS, "again", harness.namespace)
    await harness.submit("again")
    text = "1 objects of an earlier job of this name are left, such as services again"
    await harness.wait(
        "again", lambda j: text in condition(j, "Placed").get("message", ""), seconds=GC_SECONDS
    )
    await harness.submit("other")
    await harness.phase("other", "Running")  # the nodes are free
    await harness.api.delete(JOBS, "other", harness.namespace)
    kept["metadata"]["finalizers"] = None
    await harness.api.patch("services", "again", kept, harness.namespace)
    status = status_of(await harness.phase("again", "Running"))
    assert status.get("restarts", 0) == status.get("attempt", 0) == 0


async def test_a_job_that_is_deleted_in_the_foreground_does_nothing_more(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    before = await harness.run_on_two_nodes("doomed", PodScript(exit_after=None, delete_after=1.0))
    await harness.api.delete(JOBS, "doomed", harness.namespace, propagation="Foreground")
    pods: set[str] = set()
    seen: list[Object] = []
    deadline = time.monotonic() + GC_SECONDS
    while found := await harness.api.list(JOBS, harness.namespace):
        assert time.monotonic() < deadline
        seen += found
        pods |= {pod["metadata"]["uid"] for pod in await harness.pods()}
        await asyncio.sleep(0.1)
    assert seen and all(status_of(job) == status_of(before) for job in seen)
    assert seen[0]["metadata"]["finalizers"] == ["foregroundDeletion"]
    assert len(pods) == 2, "no pod is created again"
    assert await harness.pods() == [], "the job exists until its pods are gone"


async def test_orphaned_pods_continue_and_use_their_nodes(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.run_on_two_nodes("first")
    await harness.api.delete(JOBS, "first", harness.namespace, propagation="Orphan")
    await harness.gone("first", seconds=GC_SECONDS)
    await harness.submit("second")
    await waits(harness, "second", "InsufficientGpus")
    pods = await harness.pods()
    assert len(pods) == 2
    for pod in pods:
        assert pod["status"]["phase"] == "Running"
        assert not {"deletionTimestamp", "ownerReferences"} & set(pod["metadata"])


async def test_the_finalizer_of_an_earlier_version_is_removed(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.submit("old", suspend=True)
    await harness.holds("old", "Suspended")
    finalizers = ["example.com/keep", FINALIZER]
    await harness.patch("old", {"metadata": {"finalizers": finalizers}})
    await harness.wait("old", lambda j: (j or {})["metadata"]["finalizers"] == finalizers[:1])
    await harness.patch("old", {"metadata": {"finalizers": None}})
