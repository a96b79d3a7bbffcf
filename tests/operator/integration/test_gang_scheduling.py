"""Gangs as other schedulers see them: PodGroups with the real kube-scheduler, gates of a queue.

No Kueue runs here: the tests do with its gates and conditions what it does, so they do not prove
that its own controller takes these pod groups.
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
def served() -> Iterator[ControlPlane]:
    """A control plane that serves PodGroups, with the operator's extra role."""
    with ControlPlane(OPTIONS, users=USERS) as cluster:
        asyncio.run(install(cluster, "podgroups.yaml"))
        yield cluster


@pytest.fixture(scope="module")
def native_operator(
    served: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """It does not count pods of others, so that kube-scheduler has something to refuse."""
    process = OperatorProcess(
        served,
        tmp_path_factory.mktemp("operator"),
        "--pod-groups=yes",
        "--kueue=yes",
        "--count-foreign-pods=no",
    )
    process.start()
    yield process
    process.stop()


@pytest.fixture
async def native(served: ControlPlane, native_operator: OperatorProcess) -> AsyncIterator[Bench]:
    async with served.client("admin") as api, ScriptedNodes(api) as nodes:
        namespace = f"test-{secrets.token_hex(4)}"
        await api.create("namespaces", {"metadata": {"name": namespace}})
        bench = Bench(api, namespace, nodes, secrets.token_hex(3))
        await bench.add_nodes({}, {})
        yield bench
        await bench.clear()


def intruder(node: str) -> Object:
    """A pod of somebody else that holds all GPUs of a node."""
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


def refused(pods: list[Object]) -> bool:
    """Whether kube-scheduler has looked at all of them and bound none."""
    reasons = {
        c.get("reason")
        for p in pods
        for c in p.get("status", {}).get("conditions") or ()
        if c["type"] == "PodScheduled" and c["status"] == "False"
    }
    return len(pods) == 2 and reasons == {"Unschedulable"} and not bound(pods)


@pytest.mark.cluster
async def test_kube_scheduler_binds_the_whole_group_or_nothing(native: Bench) -> None:
    names = [n["metadata"]["name"] for n in await native.api.list("nodes")]
    mine = sorted(name for name in names if native.tag in name)
    await native.api.create("pods", intruder(mine[1]), native.namespace)
    await native.submit("gang")
    for _ in range(200):
        if refused(await native.pods("llmtrain.dev/job-uid")):
            break
        await asyncio.sleep(0.1)
    pods = await native.pods("llmtrain.dev/job-uid")
    assert refused(pods), pods
    group = await native.api.get(GROUPS, "gang", native.namespace)
    assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    assert {p["spec"]["schedulingGroup"]["podGroupName"] for p in pods} == {"gang"}

    await native.api.delete("pods", "intruder", native.namespace, grace_seconds=0)
    await until_bound(native, 2)
    await native.runs("gang", 0)


@pytest.mark.cluster
async def test_a_queue_lets_a_gang_start_and_takes_its_quota_back(native: Bench) -> None:
    body = job_object("queued", native.namespace, workers={"nodeSelector": {"bench": native.tag}})
    body["metadata"]["labels"] = QUEUED
    await native.api.create("llmtrain.dev/v1alpha1/llmtrainingjobs", body, native.namespace)
    pods = await native.pod_count(2)
    held = await native.wait(
        "queued", lambda job: condition(job, "PodsReady").get("reason") == "WaitingForQuota"
    )
    assert status_of(held)["phase"] == "Starting"
    assert bound(await native.pods()) == []
    assert {p["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] for p in pods} == {"queued-0"}

    await admit(native, pods)
    await native.runs("queued", 0)

    await evict(native, pods)
    again = await native.wait("queued", lambda job: status_of(job).get("attempt") == 1)
    assert status_of(again)["restarts"] == 0
    pods = await fresh(native)
    assert bound(pods) == []
    await admit(native, pods)
    await native.runs("queued", 1)


async def evict(bench: Bench, pods: list[Object]) -> None:
    """Take the quota back, as the queue does: its finalizer keeps what it says in sight."""
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


async def fresh(bench: Bench) -> list[Object]:
    for _ in range(200):
        pods = await bench.pods("llmtrain.dev/attempt=1")
        if len(pods) == 2:
            return pods
        await asyncio.sleep(0.1)
    raise AssertionError(await bench.job("queued"))


async def admit(bench: Bench, pods: list[Object]) -> None:
    """Let the pods go, as the queue does."""
    for each in pods:
        name = each["metadata"]["name"]
        await bench.patch_pod(name, {"spec": {"schedulingGates": None}})


def joined(native: GangScheduling, labels: dict[str, str] | None = None) -> list[dict[str, Any]]:
    raw = job_object("job", "team")
    raw["metadata"] |= {"uid": "u", "labels": labels or {}}
    job = check("job", raw["spec"])
    assert isinstance(job, Job)
    identity = JobIdentity.of(raw)
    nodes = ("a", "b")
    return [
        native.add_to_pod(make_pod(job, identity, 3, index, nodes), raw, 3, len(nodes))
        for index in range(2)
    ]


@pytest.mark.unit
def test_nothing_is_added_unless_it_is_switched_on() -> None:
    for body in joined(GangScheduling(), QUEUED):
        assert "schedulingGates" not in body["spec"]
        assert "schedulingGroup" not in body["spec"]
        assert not any("kueue" in key for key in body["metadata"]["labels"])
    assert joined(GangScheduling(kueue=True)) == joined(GangScheduling())


@pytest.mark.unit
def test_a_gang_is_one_group_with_one_role() -> None:
    bodies = joined(GangScheduling(kueue=True), QUEUED)
    for body in bodies:
        assert body["spec"]["schedulingGates"] == [{"name": KUEUE_GATE}]
        assert body["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] == "job-3"
        assert body["metadata"]["labels"]["llmtrain.dev/attempt"] == "3"
        assert body["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    roles = {body["metadata"]["annotations"]["kueue.x-k8s.io/role-hash"] for body in bodies}
    assert len(roles) == 1
