"""Gang scheduling by PodGroups (real kube-scheduler) and by Kueue (simulated).

No Kueue runs here. The tests set its gates and conditions, so they do not prove that its controller
accepts these pod groups.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from llmtrain_devcluster.api import Object
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import USERS
from llmtrain_operator.manifests.gang_scheduling import KUEUE_QUEUE_NAME
from tests.support.devices.driver import fake_driver
from tests.support.devices.objects import PORTS, claim_of_gang, ports
from tests.support.operator_harness.harness import (
    OperatorHarness,
    OperatorProcess,
    condition,
    foreign_pod,
    job_object,
    status_of,
)
from tests.support.operator_harness.install import installed_in

pytestmark = pytest.mark.cluster

GROUPS = "scheduling.k8s.io/v1beta1/podgroups"
GATES = "--feature-gates=GenericWorkload=true"
OPTIONS = Options(
    audit=True,
    apiserver_args=(GATES, "--runtime-config=scheduling.k8s.io/v1beta1=true"),
    controller_manager_args=(GATES,),
    scheduler_args=(GATES,),
)
QUEUED = {KUEUE_QUEUE_NAME: "team-queue"}


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane that serves PodGroups."""
    with ControlPlane(OPTIONS, users=USERS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with llmtrain installed, and the operator's role for PodGroups."""
    with installed_in(control_plane, {"config": {"podGroups": True, "deviceClaims": True}}):
        yield control_plane


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    """The operator does not count foreign pods, so that kube-scheduler must reject pods."""
    return ("--pod-groups=yes", "--kueue=yes", "--count-foreign-pods=no", "--device-claims=yes")


def bound(pods: list[Object]) -> list[str]:
    return [p["metadata"]["name"] for p in pods if p["spec"].get("nodeName")]


async def until_bound(harness: OperatorHarness, count: int) -> None:
    for _ in range(600):
        if len(bound(await harness.pods("llmtrain.dev/job-uid"))) == count:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(await harness.pods("llmtrain.dev/job-uid"))


def is_rejected_by_kube_scheduler(pods: list[Object]) -> bool:
    """Return True if kube-scheduler has tried all pods and bound none."""
    reasons = {
        c.get("reason")
        for p in pods
        for c in p.get("status", {}).get("conditions") or ()
        if c["type"] == "PodScheduled" and c["status"] == "False"
    }
    return len(pods) == 2 and reasons == {"Unschedulable"} and not bound(pods)


async def test_kube_scheduler_binds_the_whole_group_or_nothing(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    _, second = await harness.add_nodes({}, {})
    await harness.api.create("pods", foreign_pod("intruder", second), harness.namespace)
    await harness.submit("gang")
    pods: list[Object] = []
    for _ in range(600):
        pods = await harness.pods("llmtrain.dev/job-uid")
        if is_rejected_by_kube_scheduler(pods):
            break
        await asyncio.sleep(0.1)
    assert is_rejected_by_kube_scheduler(pods), pods
    group = await harness.api.get(GROUPS, "gang", harness.namespace)
    assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    assert {p["spec"]["schedulingGroup"]["podGroupName"] for p in pods} == {"gang"}

    await harness.api.delete("pods", "intruder", harness.namespace, grace_seconds=0)
    await until_bound(harness, 2)
    running = await harness.phase("gang", "Running", seconds=120)
    assert status_of(running)["restarts"] == 0, "a refusal is no failure, whatever the attempt"


async def test_a_server_that_drops_the_claims_of_pod_groups_is_told_before_nodes_are_held(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    """Without the feature gate DRAWorkloadResourceClaims, each pod would get its own claims."""
    await harness.add_nodes({}, {})
    async with fake_driver(harness.api) as driver:
        await driver.publish(PORTS, ports(1))
        await harness.submit("shared", workers={"deviceClaims": [claim_of_gang()]})
        refused = await harness.reason("shared", "Placed", "NotServed")
    message = condition(refused, "Placed")["message"]
    assert message.startswith("spec.workers.deviceClaims: scope gang: the API server drops")
    assert "DRAWorkloadResourceClaims" in message and "scope pod" in message
    assert not await harness.pods("llmtrain.dev/job-name=shared")


async def test_kueue_admits_and_evicts_a_gang(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({}, {})
    body = job_object(
        "queued",
        harness.namespace,
        workers={"nodeSelector": {"harness": harness.tag}},
    )
    body["metadata"]["labels"] = QUEUED
    await harness.api.create("llmtrain.dev/v1alpha1/llmtrainingjobs", body, harness.namespace)
    pods = await harness.pod_count(2)
    held = await harness.reason("queued", "PodsReady", "WaitingForQuota")
    assert status_of(held)["phase"] == "Starting"
    assert bound(await harness.pods()) == []
    (group,) = {p["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] for p in pods}
    assert group in condition(held, "PodsReady")["message"]

    await remove_gates(harness, pods)
    await harness.runs("queued", 0)

    await evict(harness, pods)
    again = await harness.wait("queued", lambda job: status_of(job).get("attempt") == 1)
    assert status_of(again)["restarts"] == 0
    pods = await unscheduled_pods(harness)
    assert bound(pods) == []
    await remove_gates(harness, pods)
    await harness.runs("queued", 1)


async def evict(harness: OperatorHarness, pods: list[Object]) -> None:
    """Evict the pods as Kueue does, with a finalizer that keeps their conditions visible."""
    evicted = {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvicted"}
    kept = {"metadata": {"finalizers": ["kueue.x-k8s.io/managed"]}}
    for each in pods:
        await harness.patch_pod(each["metadata"]["name"], kept)
    for each in pods:
        name = each["metadata"]["name"]
        found = await harness.api.get("pods", name, harness.namespace)
        conditions = [*found["status"]["conditions"], evicted]
        await harness.patch_pod(f"{name}/status", {"status": {"conditions": conditions}})
        await harness.api.delete("pods", name, harness.namespace)
    await harness.wait("queued", lambda job: status_of(job).get("attempt") == 1)
    for each in pods:
        await harness.patch_pod(each["metadata"]["name"], {"metadata": {"finalizers": None}})


async def unscheduled_pods(harness: OperatorHarness) -> list[Object]:
    for _ in range(600):
        pods = await harness.pods("llmtrain.dev/attempt=1")
        if len(pods) == 2:
            return pods
        await asyncio.sleep(0.1)
    raise AssertionError(await harness.job("queued"))


async def remove_gates(harness: OperatorHarness, pods: list[Object]) -> None:
    """Remove the scheduling gates as Kueue does."""
    for each in pods:
        name = each["metadata"]["name"]
        await harness.patch_pod(name, {"spec": {"schedulingGates": None}})
