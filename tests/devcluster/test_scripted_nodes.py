"""Scripted nodes report what a kubelet would, for every kind of end."""

import asyncio
import time

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.scripted_node.node import (
    NodeSpec,
    PodScript,
    ScriptedNodes,
    labelled,
    named,
)

pytestmark = pytest.mark.cluster


def pod(name: str, gpus: int = 0, policy: str = "Never", **labels: str) -> dict:
    limits = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    container = {"name": "main", "image": "any/image:1", "resources": limits}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"restartPolicy": policy, "containers": [container]},
    }


def phase_is(phase: str):
    return lambda found: (found or {}).get("status", {}).get("phase") == phase


def state(found: dict) -> dict:
    return found["status"]["containerStatuses"][0]["state"]


async def test_a_pod_runs_and_succeeds(
    api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> None:
    scripted_nodes.script(named("slow"), PodScript(runs_after=0.5, exit_after=2.0))
    labels = {"network.topology.nvidia.com/leaf": "leaf-1"}
    await scripted_nodes.add(NodeSpec("n1", labels, gpus=8, rdma=4))
    node = await api.get("nodes", "n1")
    assert node["metadata"]["labels"]["network.topology.nvidia.com/leaf"] == "leaf-1"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert node["status"]["allocatable"]["rdma/hca"] == "4"
    await api.create("pods", pod("slow", gpus=8), namespace)
    found = await api.wait_for("pods", "slow", phase_is("Running"), namespace)
    assert found["spec"]["nodeName"] == "n1"
    assert found["status"]["podIP"].startswith("127.")
    assert found["status"]["hostIP"] == node["status"]["addresses"][0]["address"]
    conditions = {one["type"]: one for one in found["status"]["conditions"]}
    assert conditions["Ready"]["status"] == conditions["PodScheduled"]["status"] == "True"
    assert "reason" not in conditions["Ready"]
    done = await api.wait_for("pods", "slow", phase_is("Succeeded"), namespace)
    assert state(done)["terminated"]["reason"] == "Completed"
    conditions = {one["type"]: one for one in done["status"]["conditions"]}
    assert conditions["Ready"]["reason"] == "PodCompleted"


async def test_failures_of_every_kind(
    api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> None:
    await scripted_nodes.add(NodeSpec("n1"))
    quick = {"exit_after": 0.2}
    scripted_nodes.script(
        named("code"), PodScript(exit_code=3, termination_message='{"error": {}}', **quick)
    )
    scripted_nodes.script(
        labelled({"llmtrain.dev/kind": "oom"}),
        PodScript(exit_code=137, reason="OOMKilled", **quick),
    )
    scripted_nodes.script(named("typo"), PodScript(reason="ImagePullBackOff"))
    evicted = PodScript(exit_code=137, reason="Evicted", evicted=True, **quick)
    scripted_nodes.script(named("evicted"), lambda found: evicted)
    await api.create("pods", pod("code"), namespace)
    await api.create("pods", pod("oom", **{"llmtrain.dev/kind": "oom"}), namespace)
    await api.create("pods", pod("typo"), namespace)
    await api.create("pods", pod("evicted"), namespace)
    code = await api.wait_for("pods", "code", phase_is("Failed"), namespace)
    assert state(code)["terminated"]["exitCode"] == 3
    assert state(code)["terminated"]["message"] == '{"error": {}}'
    oom = await api.wait_for("pods", "oom", phase_is("Failed"), namespace)
    assert state(oom)["terminated"]["reason"] == "OOMKilled"
    gone = await api.wait_for("pods", "evicted", phase_is("Failed"), namespace)
    assert gone["status"]["reason"] == "Evicted"

    def has_state(found: dict | None) -> bool:
        return bool((found or {}).get("status", {}).get("containerStatuses"))

    typo = await api.wait_for("pods", "typo", has_state, namespace)
    assert typo["status"]["phase"] == "Pending"
    assert state(typo)["waiting"]["reason"] == "ImagePullBackOff"


async def test_restart_policy(api: Api, namespace: str, scripted_nodes: ScriptedNodes) -> None:
    await scripted_nodes.add(NodeSpec("n1"))
    scripted_nodes.script(named("again"), PodScript(exit_after=None))
    await api.create("pods", pod("again", policy="OnFailure"), namespace)
    await api.wait_for("pods", "again", phase_is("Running"), namespace)
    scripted_nodes.end(namespace, "again", 5)

    def restarted(found: dict | None) -> bool:
        return (found or {})["status"]["containerStatuses"][0]["restartCount"] == 1

    found = await api.wait_for("pods", "again", restarted, namespace)
    last = found["status"]["containerStatuses"][0]["lastState"]
    assert last["terminated"]["exitCode"] == 5
    scripted_nodes.end(namespace, "again", 0)
    await api.wait_for("pods", "again", phase_is("Succeeded"), namespace)


async def test_a_running_pod_is_resized(
    api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> None:
    await scripted_nodes.add(NodeSpec("n1"))
    scripted_nodes.default = PodScript(exit_after=None)
    scripted_nodes.script(named("stays"), PodScript(exit_after=None, resizes=False))
    for name in ("grows", "stays"):
        body = pod(name)
        body["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1", "memory": "1Gi"}}
        await api.create("pods", body, namespace)
        await api.wait_for("pods", name, phase_is("Running"), namespace)
        await api.resize(name, "main", {"cpu": "3"}, namespace)

    def has_cpu(amount: str):
        return lambda found: one(found)["allocatedResources"] == {"cpu": amount, "memory": "1Gi"}

    def one(found: dict) -> dict:
        return found["status"]["containerStatuses"][0]

    grown = await api.wait_for("pods", "grows", has_cpu("3"), namespace)
    assert one(grown)["resources"]["requests"] == {"cpu": "3", "memory": "1Gi"}
    assert grown["status"]["phase"] == "Running" and "running" in state(grown)
    scripted_nodes.end(namespace, "grows", 0)
    await api.wait_for("pods", "grows", phase_is("Succeeded"), namespace)
    stays = await api.get("pods", "stays", namespace)
    assert stays["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "3"
    assert has_cpu("1")(stays)


async def test_deletion_and_hanging(
    api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> None:
    await scripted_nodes.add(NodeSpec("n1"))
    scripted_nodes.script(named("hangs"), PodScript(exit_after=None, hang_on_delete=True))
    for name in ("goes", "hangs"):
        await api.create("pods", pod(name), namespace)
        await api.wait_for("pods", name, phase_is("Running"), namespace)
        await api.delete("pods", name, namespace)
    await api.wait_for("pods", "goes", lambda found: found is None, namespace)
    await asyncio.sleep(0.5)
    hanging = await api.get("pods", "hangs", namespace)
    assert hanging["metadata"]["deletionTimestamp"]
    assert hanging["status"]["phase"] == "Running"


async def test_node_that_falls_silent(
    api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> None:
    await scripted_nodes.add(NodeSpec("n1"))
    scripted_nodes.default = PodScript(exit_after=None)
    await api.create("pods", pod("stuck"), namespace)
    await api.wait_for("pods", "stuck", phase_is("Running"), namespace)
    await scripted_nodes.node_not_ready("n1")

    def is_tainted(found: dict | None) -> bool:
        return "unreachable" in str((found or {})["spec"].get("taints"))

    await api.wait_for("nodes", "n1", is_tainted)
    scripted_nodes.end(namespace, "stuck", 0)
    await asyncio.sleep(0.5)
    assert (await api.get("pods", "stuck", namespace))["status"]["phase"] == "Running"
    await scripted_nodes.node_ready("n1")
    await api.wait_for("pods", "stuck", phase_is("Succeeded"), namespace)


async def test_hundreds_of_nodes_are_cheap(
    api: Api, namespace: str, scripted_nodes: ScriptedNodes
) -> None:
    """200 nodes and 40 pods: the CPU time of this process is what it costs the tests."""
    started = time.process_time()
    await scripted_nodes.add(*(NodeSpec(f"many-{i}", gpus=8) for i in range(200)))
    scripted_nodes.default = PodScript(exit_after=0.1)
    manifests = [pod(f"p-{i}", gpus=8) for i in range(40)]
    for start in range(0, 40, 20):
        batch = manifests[start : start + 20]
        await asyncio.gather(*(api.create("pods", one, namespace) for one in batch))
    for i in range(40):
        await api.wait_for("pods", f"p-{i}", phase_is("Succeeded"), namespace)
    assert time.process_time() - started < 15
    used = {one["status"]["podIP"] for one in await api.list("pods", namespace)}
    assert len(used) == 40
