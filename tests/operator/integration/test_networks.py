"""Pods get the network that the labels and resources of their nodes show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_devcluster.kubelet.statuses import NodeSpec
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import (
    Object,
    OperatorHarness,
    condition,
    status_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.usefixtures("operator")]

GPU, EFA, PAGES = "nvidia.com/gpu", "vpc.amazonaws.com/efa", "hugepages-2Mi"
P5 = NodeSpec("", {"node.kubernetes.io/instance-type": "p5.48xlarge"}, gpus=2)
P5 = replace(P5, resources={EFA: "8", PAGES: "8Gi"})
CORE_WEAVE = NodeSpec(
    "", {"backend.coreweave.cloud/fabric": "f1"}, gpus=2, resources={"rdma/ib": "100"}
)


async def add(harness: OperatorHarness, name: str, like: NodeSpec, count: int) -> list[str]:
    names = [f"{name}-{harness.tag}-{index}" for index in range(count)]
    labels = {**like.labels, "harness": harness.tag}
    await harness.nodes.add(*(replace(like, name=each, labels=labels) for each in names))
    return names


def container(pod: Object) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"]["containers"][0]
    return found


def variables(pod: Object) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in container(pod)["env"]}


def devices(pod: Object) -> dict[str, str]:
    limits: dict[str, str] = container(pod)["resources"]["limits"]
    return limits


async def test_a_gang_on_efa_has_its_devices_pages_and_variables_also_after_a_restart(
    harness: OperatorHarness,
) -> None:
    await add(harness, "efa", P5, 2)
    await add(harness, "plain", NodeSpec("", gpus=2), 1)
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("job")
    job = await harness.runs("job", 0)
    found = status_of(job)["network"]
    assert (found["row"], found["fact"]) == ("aws-efa", f"allocatable {EFA}: 8")
    setters = {item["name"]: item["setBy"] for item in found["settings"]}
    assert setters == {EFA: "aws-efa", PAGES: "aws-efa", "FI_PROVIDER": "aws-efa"}
    for pod in await harness.pods():
        assert pod["spec"]["nodeName"].startswith("efa-")
        assert devices(pod) == {GPU: "2", EFA: "8", PAGES: "5Gi"}
        assert variables(pod)["FI_PROVIDER"] == "efa" and "NCCL_NET" not in variables(pod)
        assert EFA in {item.get("key") for item in pod["spec"]["tolerations"]}
    victim = (await harness.pods())[0]["metadata"]["name"]
    await harness.api.delete("pods", victim, harness.namespace, grace_seconds=0)
    job = await harness.runs("job", 1)
    assert status_of(job)["network"] == found
    for pod in await harness.pods("llmtrain.dev/attempt=1"):
        assert devices(pod) == {GPU: "2", EFA: "8", PAGES: "5Gi"}


async def test_nodes_of_two_networks_hold_no_gang_until_the_job_asks_for_tcp(
    harness: OperatorHarness,
) -> None:
    await add(harness, "cw", CORE_WEAVE, 1)
    await add(harness, "plain", NodeSpec("", gpus=2), 1)
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("job")

    def refused(job: Object | None) -> bool:
        return "has another network: " in condition(job, "Placed").get("message", "")

    job = await harness.wait("job", refused)
    assert condition(job, "Placed")["reason"] == "InsufficientNodes"
    assert "network" not in status_of(job) and not await harness.pods()
    await harness.submit("tcp", network={"profile": "tcp"})
    job = await harness.runs("tcp", 0)
    assert status_of(job)["network"]["row"] == "tcp"
    for pod in await harness.pods():
        assert devices(pod) == {GPU: "2"} and variables(pod)["NCCL_IB_DISABLE"] == "1"


async def test_a_profile_that_the_nodes_contradict_holds_no_node(harness: OperatorHarness) -> None:
    await add(harness, "cw", CORE_WEAVE, 2)
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("job", network={"profile": "efa"})
    job = await harness.reason("job", "Placed", "NetworkMismatch")
    message = condition(job, "Placed")["message"]
    assert "not efa (use network.profile infiniband or auto)" in message
    assert not status_of(job).get("failures") and "network" not in status_of(job)
    await harness.submit("next", network={"nccl": {"NCCL_IB_HCA": "mlx5"}})
    job = await harness.runs("next", 0)
    assert status_of(job)["network"]["row"] == "coreweave-infiniband"
    for pod in await harness.pods():
        assert devices(pod) == {GPU: "2", "rdma/ib": "1"}
        found = variables(pod)
        assert (found["NCCL_SOCKET_IFNAME"], found["NCCL_IB_HCA"]) == ("eth0", "mlx5")
