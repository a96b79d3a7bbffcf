"""A running job does not rest on objects that others delete or edit: on a real API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from llmtrain_devcluster.api import Object
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import (
    OperatorHarness,
    OperatorProcess,
    status_of,
)

pytestmark = pytest.mark.cluster

POLICIES = "networking.k8s.io/v1/networkpolicies"
CLASSES = "scheduling.k8s.io/v1/priorityclasses"
NAMES = {"services": "job", POLICIES: "job", "configmaps": "job-job-0"}


async def becomes(
    harness: OperatorHarness, resource: str, until: Callable[[Object], bool], name: str = ""
) -> Object:
    """Wait for an object of the job."""
    return await harness.api.wait_for(
        resource,
        name or NAMES[resource],
        lambda found: found is not None and until(found),
        harness.namespace,
        seconds=60,
    )


async def starts(harness: OperatorHarness, **spec: object) -> Object:
    await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("job", **spec)
    return await harness.phase("job", "Running")


async def test_objects_that_are_deleted_or_edited_are_restored(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await starts(harness)
    before = {kind: await becomes(harness, kind, bool) for kind in NAMES}
    for kind, name in NAMES.items():
        await harness.api.delete(kind, name, harness.namespace)
    for kind, old in before.items():
        new = await becomes(
            harness, kind, lambda o, old=old: o["metadata"]["uid"] != old["metadata"]["uid"]
        )
        assert (new.get("spec"), new.get("data")) == (old.get("spec"), old.get("data"))

    opened = {"ingress": [{}], "podSelector": {"matchLabels": {"app": "other"}}}
    await harness.api.patch(POLICIES, "job", {"spec": opened}, harness.namespace)
    await becomes(harness, POLICIES, lambda o: o["spec"] == before[POLICIES]["spec"])
    selector = {"spec": {"selector": {"app": "other"}, "publishNotReadyAddresses": False}}
    await harness.api.patch("services", "job", selector, harness.namespace)
    await becomes(harness, "services", lambda o: o["spec"] == before["services"]["spec"])

    status = status_of(await harness.job("job"))
    assert (status["phase"], status.get("attempt", 0), status["restarts"]) == ("Running", 0, 0)
    expected = {
        "services job was deleted and is restored",
        "networkpolicies job was deleted and is restored",
        "configmaps job-job-0 was deleted and is restored",
        "services job differs from what the operator creates and is restored",
        "networkpolicies job differs from what the operator creates and is restored",
    }
    restored: set[str] = set()
    async with asyncio.timeout(60):
        while restored != expected:
            events = await harness.api.list("events", harness.namespace)
            restored = {e["message"] for e in events if e["reason"] == "Restored"}


async def test_the_job_file_of_an_attempt_has_the_edits_made_while_suspended(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await starts(harness)
    first = await becomes(harness, "configmaps", bool)
    assert first["immutable"]
    await harness.patch("job", {"spec": {"suspend": True}})
    await harness.holds("job", "Suspended")
    name = f"edited-{harness.tag}"
    edits = {
        "failurePolicy": {"maxRestartsInPlace": 7},
        "runPolicy": {"activeDeadlineSeconds": 86400},
        "priorityClassName": name,
    }
    await harness.api.create(CLASSES, {"metadata": {"name": name}, "value": 3})
    try:
        await harness.patch("job", {"spec": {**edits, "suspend": False}})
        await harness.runs("job", attempt=1)
        second = await becomes(harness, "configmaps", bool, "job-job-1")
        spec = json.loads(second["data"]["job.json"])["spec"]
        assert spec["failurePolicy"]["maxRestartsInPlace"] == 7
        assert spec["runPolicy"]["activeDeadlineSeconds"] == 86400
        assert spec["priorityClassName"] == name
        assert second["data"]["gang-key"] != first["data"]["gang-key"]
        for pod in await harness.pods():
            (volume,) = (v for v in pod["spec"]["volumes"] if "configMap" in v)
            assert volume["configMap"]["name"] == "job-job-1"
        await harness.api.wait_for(
            "configmaps", "job-job-0", lambda found: found is None, harness.namespace
        )
        await becomes(harness, "configmaps", bool, "job-job-1")
    finally:
        await harness.api.delete(CLASSES, name)


async def test_a_gang_restarts_without_its_priority_class(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    name = f"deleted-{harness.tag}"
    await harness.api.create(CLASSES, {"metadata": {"name": name}, "value": 3})
    await starts(harness, priorityClassName=name)
    assert {pod["spec"]["priorityClassName"] for pod in await harness.pods()} == {name}
    await harness.api.delete(CLASSES, name)
    harness.nodes.end(harness.namespace, "job-0-1", 137)
    again = await harness.runs("job", attempt=1)
    placement = status_of(again)["placement"]
    assert (placement["priority"], placement["priorityClassName"]) == (3, name)
    assert {pod["spec"].get("priorityClassName") for pod in await harness.pods()} == {None}


async def test_the_pod_of_a_rank_that_has_finished_may_go(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await starts(harness)
    harness.nodes.end(harness.namespace, "job-0-1", 0)
    await harness.wait("job", lambda j: status_of(j).get("completedPods", {}).get("indexes") == "1")
    await harness.api.delete("pods", "job-0-1", harness.namespace, grace_seconds=0)
    harness.nodes.end(harness.namespace, "job-0-0", 0, message='{"result": {"loss": 2.5}}')
    done = status_of(await harness.phase("job", "Succeeded", "Restarting", "Failed"))
    assert (done["phase"], done["restarts"], done["progress"]["loss"]) == ("Succeeded", 0, 2.5)
    assert "completedPods" not in done
