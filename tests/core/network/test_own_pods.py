"""What `workers.podPatch` of a job, and what its pods request, mean for its network."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_core.network import Kind, NetworkRequest
from llmtrain_core.validation.check import Job, check
from tests.support.node_lists import NETWORKS, decided, network

pytestmark = pytest.mark.unit

ROCE = {"NCCL_NET": "IB", "NCCL_IB_ROCE_VERSION_NUM": "2"}


@pytest.mark.parametrize(
    ("name", "resources", "variables"),
    [
        ("oci-b200-host-network", {}, ROCE),
        ("gke-a3-ultra", {}, {}),  # the script of the library sets them
    ],
)
def test_a_job_that_mounts_paths_of_the_node_has_what_privileged_networks_need(
    name: str, resources: dict[str, str], variables: dict[str, str]
) -> None:
    found = network(name, profile="roce", node_paths=True)
    assert found.row in ("oci-roce", "gke-gib")
    assert found.of_kind(Kind.RESOURCE) == resources
    assert found.of_kind(Kind.VARIABLE) == variables
    assert network(name, node_paths=True).row == "tcp", "auto demands nothing of the image"


def test_paths_of_the_node_are_no_sidecar_and_no_claim() -> None:
    (option,) = decided("aws-efa-dra", profile="efa", node_paths=True)
    assert option.network is None
    assert network("gke-a3-mega", node_paths=True).row == "tcp"


@pytest.mark.parametrize(
    ("name", "profile"),
    [("coreweave-gb300", "roce"), ("azure-h100-virtual-functions", "auto"), ("amd-ainic", "roce")],
)
def test_interfaces_and_attachments_of_a_pod_are_not_those_of_the_node(
    name: str, profile: str
) -> None:
    of_pod = network(name, profile=profile)
    of_node = network(name, profile=profile, host_network=True)
    left_out = {*of_pod.settings} - {*of_node.settings}
    assert {item.name for item in left_out} <= {"NCCL_SOCKET_IFNAME", NETWORKS} and left_out
    assert {*of_node.settings} <= {*of_pod.settings}


def test_the_patch_of_a_job_says_what_its_pods_have_of_the_node() -> None:
    mount = {"name": "infiniband", "mountPath": "/dev/infiniband"}
    spec: dict[str, Any] = {
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "volumes": [{"name": "infiniband", "hostPath": {"path": "/dev/infiniband"}}],
    }
    assert (of_patch(spec).host_network, of_patch(spec).node_paths) == (True, False)
    mounted = {**spec, "containers": [{"name": "trainer", "volumeMounts": [mount]}]}
    assert of_patch(mounted).node_paths
    sidecar = {"name": "s", "image": "i", "restartPolicy": "Always", "volumeMounts": [mount]}
    assert not of_patch({**spec, "initContainers": [sidecar]}).node_paths
    elsewhere = [{"name": "trainer", "volumeMounts": [{**mount, "mountPath": "/ib"}]}]
    empty = {"volumes": [{"name": "infiniband", "emptyDir": {}}], "containers": elsewhere}
    assert (of_patch(empty).host_network, of_patch(empty).node_paths) == (False, False)
    keys = {NetworkRequest(2, 8).key, NetworkRequest(2, 8, host_network=True).key}
    assert len({*keys, NetworkRequest(2, 8, node_paths=True).key}) == 3


def of_patch(spec: dict[str, Any]) -> NetworkRequest:
    workers = {"gpusPerNode": 8, "image": "i", "command": ["x"], "podPatch": {"spec": spec}}
    job = check("job", {"workers": workers, "parallelism": {"tensor": 8, "data": 2}})
    assert isinstance(job, Job), job
    return NetworkRequest.of(job)


@pytest.mark.parametrize(
    ("amount", "attached"), [("2k", 8), ("999999999999999", 8), ("4", 4), ("0", 0)]
)
def test_a_job_chooses_the_size_of_no_annotation_beyond_the_devices_of_a_node(
    amount: str, attached: int
) -> None:
    found = network("amd-ainic", profile="roce", resources={"amd.com/nic": amount})
    text = found.of_kind(Kind.ANNOTATION).get(NETWORKS, "")
    assert text.split(",") == (["amd-host-device-nad"] * attached or [""])
