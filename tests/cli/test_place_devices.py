"""`llmtrain place` and `plan` count the devices of ResourceSlices listed with the nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cluster_files import Shell, job, listed, node, pod
from tests.support.devices.objects import (
    CLASSES,
    GPU_CLASS,
    GPU_DRIVER,
    PORT_CLASS,
    claim,
    claim_of_gang,
    device_class,
    gpus,
)

pytestmark = pytest.mark.unit


def bare(name: str) -> dict[str, Any]:
    """Return a node without GPUs of a device plugin."""
    found = node(name)
    found["status"]["allocatable"].pop("nvidia.com/gpu", None)
    return {**found, "kind": "Node"}


def with_claims(count: int = 8) -> dict[str, Any]:
    found = job(2)
    requests = [{"name": "gpu", "deviceClassName": GPU_CLASS, "count": count, "gpus": True}]
    found["spec"]["workers"]["deviceClaims"] = [{"name": "gpus", "requests": requests}]
    return found


def items(*objects: Any) -> dict[str, Any]:
    return {"kind": "List", "items": [bare("a"), bare("b"), *objects]}


@pytest.fixture
def place(llmtrain: Shell, file: Callable[..., str]) -> Callable[..., tuple[int, Any]]:
    def run(manifest: Any, *objects: Any, pods: tuple[Any, ...] = ()) -> tuple[int, Any]:
        nodes = file("nodes.json", items(*objects))
        arguments = ["-f", file("job.yaml", manifest, True), "--nodes", nodes, "-o", "json"]
        if pods:
            arguments += ["--pods", file("pods.json", listed("Pod", *pods))]
        code, out, _ = llmtrain("place", *arguments)
        return code, json.loads(out)

    return run


def test_a_job_is_placed_on_devices_of_slices_that_no_claim_has(
    place: Callable[..., tuple[int, Any]],
) -> None:
    slices = gpus("a", 8), gpus("b", 8)
    code, found = place(with_claims(), *CLASSES, *slices)
    assert code == 0 and {each["name"] for each in found["nodes"]} == {"a", "b"}
    code, found = place(with_claims(), *CLASSES, *slices, claim("c", "b", (GPU_DRIVER, "gpu-7")))
    assert code == 1 and found["reason"] == "InsufficientGpus"
    code, found = place(with_claims(), *CLASSES, slices[0])
    assert code == 1 and found["reason"] == "InsufficientDevices"


def test_a_class_that_is_not_listed_is_named(place: Callable[..., tuple[int, Any]]) -> None:
    code, found = place(with_claims(), gpus("a", 8), gpus("b", 8))
    assert code == 1
    assert f"spec.workers.deviceClaims: no DeviceClass is named '{GPU_CLASS}'" in found["reasons"]


def test_a_class_stands_for_the_gpus_that_pods_request(
    place: Callable[..., tuple[int, Any]],
) -> None:
    selector = f"device.driver == '{GPU_DRIVER}'"
    serving = device_class(GPU_CLASS, selector, extended="nvidia.com/gpu")
    code, found = place(job(2), serving, gpus("a", 8), gpus("b", 8))
    assert code == 0, found
    code, found = place(job(2), gpus("a", 8), gpus("b", 8))
    assert code == 1, "no class serves them"


def test_claims_of_kube_scheduler_count_beyond_the_requests_of_their_pod(
    place: Callable[..., tuple[int, Any]],
) -> None:
    """Everyone who may create claims may write the annotation, which must hide no devices."""
    selector = f"device.driver == '{GPU_DRIVER}'"
    serving = device_class(GPU_CLASS, selector, extended="nvidia.com/gpu")
    slices = gpus("a", 8), gpus("b", 8)
    half = [(GPU_DRIVER, f"gpu-{index}") for index in range(4)]
    mark = {"resource.kubernetes.io__extended-resource-claim": "true"}
    requesting, other = pod("requests", "b", 4), pod("other", "b", 0)
    for each in (requesting, other):
        each["metadata"]["uid"] = each["metadata"]["name"]

    def placed(gpus_of_job: int, user: str) -> int:
        found = claim("c", "b", *half, pod=user, **mark)
        return place(job(2, gpus_of_job), serving, *slices, found, pods=(requesting, other))[0]

    assert placed(4, "requests") == 0, "the request and its claim are the same devices"
    assert placed(8, "requests") == 1
    assert placed(4, "other") == 1, "four for the request, four for the claim of the other pod"
    assert placed(4, "unknown") == 1


def test_the_plan_of_nodes_has_their_devices(llmtrain: Shell, file: Callable[..., str]) -> None:
    whole = with_claims()
    whole["spec"]["model"] = {"preset": "llama3-8b"}
    whole["spec"]["training"] = {"steps": 100, "globalBatchSize": 16}
    [request] = whole["spec"]["workers"]["deviceClaims"][0]["requests"]
    request["deviceClassName"] = "gpu.nvidia.com"
    selector = f"device.driver == '{GPU_DRIVER}'"
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    listed = items(device_class("gpu.nvidia.com", selector), gpus("a", 8), gpus("b", 8))
    for each in listed["items"][:2]:
        each["metadata"]["labels"] |= labels
    arguments = (file("job.yaml", whole, True), "--nodes", file("nodes.json", listed))
    code, out, err = llmtrain("plan", "-f", *arguments, "--output", "json")
    assert code == 0, err
    assert "H100" in out
    del listed["items"][-1]
    arguments = (arguments[0], "--nodes", file("nodes.json", listed))
    code, _, err = llmtrain("plan", "-f", *arguments)
    assert code != 0 and "1 of 1 have them" in err, "the node without slices has no GPUs"


def test_claims_of_the_gang_are_said_not_to_be_counted(
    place: Callable[..., tuple[int, Any]],
) -> None:
    manifest = with_claims()
    manifest["spec"]["workers"]["deviceClaims"].append(claim_of_gang())
    code, found = place(manifest, *CLASSES, gpus("a", 8), gpus("b", 8))
    assert code == 0, "no node has such devices, and none needs any"
    fields = [text for text in found["reasons"] if text.startswith("spec.workers.deviceClaims: ")]
    assert f"spec.workers.deviceClaims: no DeviceClass is named '{PORT_CLASS}'" in fields
    assert any("claims of scope gang are not counted here" in text for text in fields)
