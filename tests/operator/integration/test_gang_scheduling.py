"""Gang scheduling by PodGroups (real kube-scheduler) and by Kueue (simulated).

No Kueue runs here. The tests set its gates and conditions, so they do not prove that its controller
accepts these pod groups.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from llmtrain_core.validation.check import Job, check
from llmtrain_devcluster.api import Object
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import USERS
from llmtrain_devcluster.scripted_node.node import ScriptedNodes
from llmtrain_operator.manifests.gang_scheduling import KUEUE_GATE, KUEUE_QUEUE_NAME, GangScheduling
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.manifests.pod import make_pod
from tests.support.operator_harness.harness import (
    Bench,
    OperatorProcess,
    condition,
    job_object,
    status_of,
)
from tests.support.operator_harness.install import install

GROUPS = "scheduling.k8s.io/v1beta1/podgroups"
GATES = "--feature-gates=GenericWorkload=true"
OPTIONS = Options(
    apiserver_args=(GATES, "--runtime-config=scheduling.k8s.io/v1beta1=true"),
    controller_manager_args=(GATES,),
    scheduler_args=(GATES,),
)
QUEUED = {KUEUE_QUEUE_NAME: "team-queue"}


@pytest.fixture(scope="module")
def control_plane_with_pod_groups() -> Iterator[ControlPlane]:
    """A control plane that serves PodGroups, with the operator's extra role."""
    with ControlPlane(OPTIONS, users=USERS) as cluster:
        asyncio.run(install(cluster, "podgroups.yaml"))
        yield cluster


@pytest.fixture(scope="module")
def pod_groups_operator(
    control_plane_with_pod_groups: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """An operator that does not count foreign pods, so that kube-scheduler must reject pods."""
    process = OperatorProcess(
        control_plane_with_pod_groups,
        tmp_path_factory.mktemp("operator"),
        "--pod-groups=yes",
        "--kueue=yes",
        "--count-foreign-pods=no",
    )
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def pod_groups_bench(
    control_plane_with_pod_groups: ControlPlane, pod_groups_operator: OperatorProcess
) -> AsyncIterator[Bench]:
    async with control_plane_with_pod_groups.client("admin") as api, ScriptedNodes(api) as nodes:
        namespace = f"test-{secrets.token_hex(4)}"
        await api.create("namespaces", {"metadata": {"name": namespace}})
        bench = Bench(api, namespace, nodes, secrets.token_hex(3))
        await bench.add_nodes({}, {})
        yield bench
        await bench.clear()


def foreign_pod(node: str) -> Object:
    """Return a foreign pod that requests all GPUs of a node."""
    amount = {"nvidia.com/gpu": "2"}
    container = {
        "name": "main",
        "image": "example.com/x:1",
        "resources": {"requests": amount, "limits": amount},
    }
    spec = {"nodeName": node, "containers": [container]}
    return {"metadata": {"name": "intruder"}, "spec": spec}


def bound(pods: list[Object]) -> list[str]:
    return [p["metadata"]["name"] for p in pods if p["spec"].get("nodeName")]


async def until_bound(bench: Bench, count: int) -> None:
    for _ in range(200):
        if len(bound(await bench.pods("llmtrain.dev/job-uid"))) == count:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(await bench.pods("llmtrain.dev/job-uid"))


def is_rejected_by_kube_scheduler(pods: list[Object]) -> bool:
    """Return True if kube-scheduler has tried all pods and bound none."""
    reasons = {
        c.get("reason")
        for p in pods
        for c in p.get("status", {}).get("conditions") or ()
        if c["type"] == "PodScheduled" and c["status"] == "False"
    }
    return len(pods) == 2 and reasons == {"Unschedulable"} and not bound(pods)


@pytest.mark.cluster
async def test_kube_scheduler_binds_the_whole_group_or_nothing(pod_groups_bench: Bench) -> None:
    names = [n["metadata"]["name"] for n in await pod_groups_bench.api.list("nodes")]
    mine = sorted(name for name in names if pod_groups_bench.tag in name)
    await pod_groups_bench.api.create("pods", foreign_pod(mine[1]), pod_groups_bench.namespace)
    await pod_groups_bench.submit("gang")
    for _ in range(200):
        if is_rejected_by_kube_scheduler(await pod_groups_bench.pods("llmtrain.dev/job-uid")):
            break
        await asyncio.sleep(0.1)
    pods = await pod_groups_bench.pods("llmtrain.dev/job-uid")
    assert is_rejected_by_kube_scheduler(pods), pods
    group = await pod_groups_bench.api.get(GROUPS, "gang", pod_groups_bench.namespace)
    assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    assert {p["spec"]["schedulingGroup"]["podGroupName"] for p in pods} == {"gang"}

    await pod_groups_bench.api.delete(
        "pods", "intruder", pod_groups_bench.namespace, grace_seconds=0
    )
    await until_bound(pod_groups_bench, 2)
    await pod_groups_bench.runs("gang", 0)


@pytest.mark.cluster
async def test_kueue_admits_and_evicts_a_gang(pod_groups_bench: Bench) -> None:
    body = job_object(
        "queued",
        pod_groups_bench.namespace,
        workers={"nodeSelector": {"bench": pod_groups_bench.tag}},
    )
    body["metadata"]["labels"] = QUEUED
    await pod_groups_bench.api.create(
        "llmtrain.dev/v1alpha1/llmtrainingjobs", body, pod_groups_bench.namespace
    )
    pods = await pod_groups_bench.pod_count(2)
    held = await pod_groups_bench.wait(
        "queued", lambda job: condition(job, "PodsReady").get("reason") == "WaitingForQuota"
    )
    assert status_of(held)["phase"] == "Starting"
    assert bound(await pod_groups_bench.pods()) == []
    assert {p["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] for p in pods} == {"queued-0"}

    await remove_gates(pod_groups_bench, pods)
    await pod_groups_bench.runs("queued", 0)

    await evict(pod_groups_bench, pods)
    again = await pod_groups_bench.wait("queued", lambda job: status_of(job).get("attempt") == 1)
    assert status_of(again)["restarts"] == 0
    pods = await unscheduled_pods(pod_groups_bench)
    assert bound(pods) == []
    await remove_gates(pod_groups_bench, pods)
    await pod_groups_bench.runs("queued", 1)


async def evict(bench: Bench, pods: list[Object]) -> None:
    """Evict the pods as Kueue does, with a finalizer that keeps their conditions visible."""
    evicted = {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvicted"}
    kept = {"metadata": {"finalizers": ["kueue.x-k8s.io/managed"]}}
    for each in pods:
        await bench.patch_pod(each["metadata"]["name"], kept)
    for each in pods:
        name = each["metadata"]["name"]
        found = await bench.api.get("pods", name, bench.namespace)
        conditions = [*found["status"]["conditions"], evicted]
        await bench.patch_pod(f"{name}/status", {"status": {"conditions": conditions}})
        await bench.api.delete("pods", name, bench.namespace)
    await bench.wait("queued", lambda job: status_of(job).get("attempt") == 1)
    for each in pods:
        await bench.patch_pod(each["metadata"]["name"], {"metadata": {"finalizers": None}})


async def unscheduled_pods(bench: Bench) -> list[Object]:
    for _ in range(200):
        pods = await bench.pods("llmtrain.dev/attempt=1")
        if len(pods) == 2:
            return pods
        await asyncio.sleep(0.1)
    raise AssertionError(await bench.job("queued"))


async def remove_gates(bench: Bench, pods: list[Object]) -> None:
    """Remove the scheduling gates as Kueue does."""
    for each in pods:
        name = each["metadata"]["name"]
        await bench.patch_pod(name, {"spec": {"schedulingGates": None}})


def gang_pods(
    scheduling: GangScheduling, labels: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    raw = job_object("job", "team")
    raw["metadata"] |= {"uid": "u", "labels": labels or {}}
    job = check("job", raw["spec"])
    assert isinstance(job, Job)
    identity = JobIdentity.of(raw)
    nodes = ("a", "b")
    return [
        scheduling.add_to_pod(make_pod(job, identity, 3, index, nodes), raw, 3, len(nodes))
        for index in range(2)
    ]


@pytest.mark.unit
def test_nothing_is_added_by_default() -> None:
    for body in gang_pods(GangScheduling(), QUEUED):
        assert "schedulingGates" not in body["spec"]
        assert "schedulingGroup" not in body["spec"]
        assert not any("kueue" in key for key in body["metadata"]["labels"])
    assert gang_pods(GangScheduling(kueue=True)) == gang_pods(GangScheduling())


@pytest.mark.unit
def test_a_gang_is_one_pod_group_with_one_role() -> None:
    bodies = gang_pods(GangScheduling(kueue=True), QUEUED)
    for body in bodies:
        assert body["spec"]["schedulingGates"] == [{"name": KUEUE_GATE}]
        assert body["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "job-3"
        assert body["metadata"]["labels"]["llmtrain.dev/attempt"] == "3"
        assert body["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    roles = {body["metadata"]["annotations"]["kueue.x-k8s.io/role-hash"] for body in bodies}
    assert len(roles) == 1
