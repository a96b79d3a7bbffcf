"""The network of a placement -> its status -> its pods, for each row of the table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from llmtrain_core.api import env
from llmtrain_core.api.defaults import MAX_NETWORK_NOTES, MAX_NETWORK_SETTINGS
from llmtrain_core.api.status.job import JobStatus
from llmtrain_core.api.status.network import NetworkStatus
from llmtrain_core.network import Kind, NetworkRequest, NodeNetwork, Setting, gang_networks
from llmtrain_core.network.environments import TABLE
from llmtrain_core.network.settings import ENV_FIELD
from llmtrain_core.placement import Request
from llmtrain_core.queueing.quota import charge_of
from llmtrain_core.topology.resources import pod_requests
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.network_status import network_status
from llmtrain_operator.manifests.pod import make_pod
from llmtrain_operator.manifests.pod_network import PodNetwork
from tests.support.node_lists import AMD, FOLDER, NETWORKS, NVIDIA, facts_of
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.jobs import IDENTITY

pytestmark = pytest.mark.unit

EFA = "vpc.amazonaws.com/efa"
EFA_VARIABLES = {"FI_PROVIDER": "efa"}
ETH0 = {"NCCL_SOCKET_IFNAME": "eth0"}
IB, ROCE = {"NCCL_NET": "IB"}, {"NCCL_NET": "IB", "NCCL_IB_ROCE_VERSION_NUM": "2"}
AINIC = {
    "NCCL_NET_PLUGIN": "librccl-anp.so",
    "NCCL_IB_GID_INDEX": "1",
    "NCCL_IB_USE_INLINE": "1",
    "NCCL_GDR_FLUSH_DISABLE": "1",
    "IONIC_LOCKFREE": "all",
}
GB300 = {
    **ETH0,
    "NCCL_IB_HCA": "ibp",
    "NCCL_IB_ADDR_FAMILY": "AF_INET6",
    "NCCL_IB_ADDR_RANGE": "fd02::/16",
    "NCCL_IB_TC": "96",
    "NCCL_IB_ADAPTIVE_ROUTING": "1",
}
RAILS = ",".join(f"cw-multus/ibs{nic}p{port}-macvlan" for nic in range(4) for port in range(4))


@dataclass(frozen=True)
class Added:
    """What a pod gets for its network besides the spec."""

    row: str
    resources: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    networks: str | None = None
    rdma: str | None = None


TCP = Added("tcp")
CASES: dict[tuple[str, str], Added] = {
    ("aws-p5", "auto"): Added(
        "aws-efa", {EFA: "32", "hugepages-2Mi": "5120Mi"}, EFA_VARIABLES, rdma="preferred"
    ),
    ("aws-p5", "efa"): Added(
        "aws-efa",
        {EFA: "32", "hugepages-2Mi": "5120Mi"},
        {**EFA_VARIABLES, "NCCL_NET": "AWS Libfabric"},
        rdma="required",
    ),
    ("aws-p5", "tcp"): Added("tcp", {}, {"NCCL_IB_DISABLE": "1"}),
    ("aws-p4d-no-huge-pages", "auto"): Added(
        "aws-efa", {EFA: "4"}, EFA_VARIABLES, rdma="preferred"
    ),
    ("aws-efa-dra", "auto"): TCP,
    ("gke-a3-ultra", "auto"): TCP,
    ("gke-a3-mega", "auto"): TCP,
    ("gke-a3-high", "auto"): TCP,
    ("gke-l4", "auto"): TCP,
    ("dranet", "auto"): TCP,
    ("plain", "auto"): TCP,
    ("coreweave-h100", "auto"): Added(
        "coreweave-infiniband",
        {"rdma/ib": "1"},
        {**ETH0, "NCCL_IB_HCA": "ibp"},
        rdma="preferred",
    ),
    ("coreweave-h100", "infiniband"): Added(
        "coreweave-infiniband",
        {"rdma/ib": "1"},
        {**ETH0, **IB, "NCCL_IB_HCA": "ibp"},
        rdma="required",
    ),
    ("coreweave-gb300", "auto"): TCP,
    ("coreweave-gb300", "roce"): Added(
        "coreweave-roce", {"rdma/ib": "1"}, {**GB300, **ROCE}, RAILS, "required"
    ),
    ("oci-h100-virtual-functions", "auto"): TCP,
    ("oci-mi355x-virtual-functions", "auto"): TCP,
    ("oci-b200-host-network", "auto"): TCP,
    ("azure-h100-virtual-functions", "auto"): Added(
        "azure-infiniband", {"rdma/ib": "8"}, ETH0, rdma="preferred"
    ),
    ("azure-mi300x-shared", "auto"): Added(
        "azure-infiniband",
        {"rdma/shared_ib": "1"},
        {**ETH0, "RCCL_MSCCL_ENABLE": "0"},
        rdma="preferred",
    ),
    ("amd-ainic", "auto"): TCP,
    ("amd-ainic-virtual", "auto"): TCP,
    **{
        (nodes, "roce"): Added(
            "amd-ainic", {f"amd.com/{nic}": "8"}, AINIC, ",".join([network] * 8), "required"
        )
        for nodes, nic, network in (
            ("amd-ainic", "nic", "amd-host-device-nad"),
            ("amd-ainic-virtual", "vnic", "vf-amd-host-device-nad"),
        )
    },
    ("openshift-infiniband", "auto"): Added(
        "nvidia-network-operator", {"rdma/rdma_shared_device_ib": "1"}, rdma="preferred"
    ),
    ("openshift-roce", "auto"): TCP,
    ("openshift-roce", "roce"): Added(
        "nvidia-network-operator", {"rdma/rdma_shared_device_eth": "1"}, ROCE, rdma="required"
    ),
    ("network-operator-shared", "auto"): TCP,
    ("network-operator-shared", "infiniband"): Added(
        "nvidia-network-operator", {"rdma/hca_shared_devices_a": "1"}, IB, rdma="required"
    ),
    ("network-operator-two-resources", "auto"): TCP,
    ("network-operator-host-device", "auto"): TCP,
}
REFUSED = {
    ("gke-a3-ultra", "roce"): "has gke-gib, which needs host paths",
    ("oci-h100-virtual-functions", "roce"): "has oci-roce, which needs a privileged",
    ("coreweave-h100", "efa"): (
        "has coreweave-infiniband by resource rdma/ib, not efa (use network.profile infiniband or"
        " auto)"
    ),
    ("plain", "efa"): "shows no network but TCP, not efa (use network.profile tcp)",
}
"""Profiles that the nodes contradict, or that jobs cannot have, and the start of the cause."""


def job_on(name: str, profile: str, **spec: Any) -> tuple[Job, str]:
    """A job of two whole nodes of a list, and the name of its GPUs."""
    first = next(iter(facts_of(name).values()))
    resource = AMD if first.amount(AMD) else NVIDIA
    gpus = first.amount(resource)
    workers = {"gpusPerNode": gpus, "command": ["x"], **spec.pop("workers", {})}
    if resource == AMD:
        workers["gpuResource"] = AMD
    network = {"profile": profile, **spec.pop("network", {})}
    degrees = {"tensor": gpus, "data": 2}
    raw = job_object("job", "team", workers=workers, parallelism=degrees, network=network, **spec)
    found = check("job", raw["spec"])
    assert isinstance(found, Job), found
    return found, resource


def decided(name: str, job: Job) -> NodeNetwork:
    (option,) = gang_networks(facts_of(name), NetworkRequest.of(job), 2)
    assert option.network is not None, option.excluded
    return option.network


def stored(network: NodeNetwork) -> dict[str, Any]:
    """The status, as the API server stores it."""
    wire = network_status(network).to_wire()
    return JobStatus.from_wire({"network": wire}).to_wire()["network"]


def pod_on(name: str, job: Job) -> dict[str, Any]:
    return make_pod(job, IDENTITY, 0, 0, ["a", "b"], network=stored(decided(name, job)))


def variables(body: dict[str, Any]) -> dict[str, str]:
    (container,) = body["spec"]["containers"]
    return {item["name"]: item.get("value", "") for item in container["env"]}


def added(body: dict[str, Any], plain: dict[str, Any], row: str) -> Added:
    """What a pod has that one without a network does not have."""
    (container,), (bare,) = body["spec"]["containers"], plain["spec"]["containers"]
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    devices = {n: a for n, a in limits.items() if n not in bare["resources"]["limits"]}
    assert {n: requests[n] for n in devices} == devices
    more = {n: v for n, v in variables(body).items() if n not in variables(plain)}
    rdma = more.pop(env.RDMA, None)
    networks = body["metadata"].get("annotations", {}).get(NETWORKS)
    keys = {toleration["key"] for toleration in body["spec"]["tolerations"]}
    assert {name for name in devices if "/" in name} <= keys
    return Added(row, devices, more, networks, rdma)


@pytest.mark.parametrize(("name", "profile"), CASES, ids=lambda value: str(value))
def test_a_pod_has_exactly_what_its_row_says(name: str, profile: str) -> None:
    job, _ = job_on(name, profile)
    network = decided(name, job)
    plain, _ = job_on(name, "auto")
    bare = make_pod(plain, IDENTITY, 0, 0, ["a", "b"])
    body = pod_on(name, job)
    assert added(body, bare, network.row) == CASES[name, profile]
    without = {"containers", "tolerations"}
    assert {k: v for k, v in body["spec"].items() if k not in without} == {
        k: v for k, v in bare["spec"].items() if k not in without
    }


@pytest.mark.parametrize(("name", "profile"), CASES, ids=lambda value: str(value))
def test_placement_counts_what_the_pod_requests(name: str, profile: str) -> None:
    job, _ = job_on(name, profile)
    network = decided(name, job)
    wanted = Request.of(job).with_resources(network.resources)
    assert pod_requests(pod_on(name, job)["spec"]) == wanted.needs
    assert PodNetwork.of_status(stored(network)).needs == network.resources


@pytest.mark.parametrize("own", [None, "64Mi"])
@pytest.mark.parametrize("first", [None, "6Gi"])
@pytest.mark.parametrize("sidecars", [0, 2])
def test_huge_pages_of_the_network_are_counted_beside_those_of_other_containers(
    own: str | None, first: str | None, sidecars: int
) -> None:
    workers: dict[str, Any] = {"resources": pages(own)}
    if first:
        workers["initContainers"] = [{"name": "i", "image": "i:1", "resources": pages(first)}]
    beside = {"image": "s:1", "restartPolicy": "Always", "resources": pages("1Gi")}
    names = [f"s{index}" for index in range(sidecars)]
    patch = {"initContainers": [{"name": name, **beside} for name in names]}
    workers["podPatch"] = {"spec": patch if sidecars else {}}
    job, _ = job_on("aws-p5", "auto", workers=workers)
    network, body = decided("aws-p5", job), pod_on("aws-p5", job)
    wanted, requests = Request.of(job).with_resources(network.resources), pod_requests(body["spec"])
    assert wanted.needs == requests
    amounts = charge_of(body["spec"]).amounts
    assert amounts["hugepages-2Mi"] == amounts["requests.hugepages-2Mi"]
    assert amounts["requests.hugepages-2Mi"] == requests["hugepages-2Mi"]


@pytest.mark.parametrize("where", ["trainer", "sidecar"])
def test_a_volume_of_huge_pages_is_mounted_although_the_network_adds_other_pages(
    where: str,
) -> None:
    spec: dict[str, Any] = {"volumes": [{"name": "p", "emptyDir": {"medium": "HugePages"}}]}
    gigantic = {"limits": {"hugepages-1Gi": "4Gi"}}
    workers: dict[str, Any] = {"podPatch": {"spec": spec}}
    if where == "trainer":
        workers["resources"] = gigantic
    else:
        beside = {"name": "s", "image": "s:1", "restartPolicy": "Always", "resources": gigantic}
        spec["initContainers"] = [beside]
    body = pod_on("aws-p5", job_on("aws-p5", "auto", workers=workers)[0])
    assert {"hugepages-2Mi", "hugepages-1Gi"} <= pod_requests(body["spec"]).keys()
    media = {
        item["name"]: item.get("emptyDir", {}).get("medium") for item in body["spec"]["volumes"]
    }
    assert media["p"] == "HugePages-1Gi"


def pages(amount: str | None) -> dict[str, Any]:
    return {"limits": {"hugepages-2Mi": amount} if amount else {}}


def test_every_row_and_every_list_has_a_pod_or_a_refusal() -> None:
    names = {name for name, _ in (*CASES, *REFUSED)}
    assert names == {path.stem for path in FOLDER.iterdir()}
    made = {case.row for case in CASES.values()} - {"tcp"}
    refused = {"gke-gib", "oci-roce", "dra"}
    elsewhere = {"gke-tcpxo", "gke-tcpx"}  # test_gpudirect_pods.py
    known = {
        candidate.row
        for name in names
        for facts in facts_of(name).values()
        for row in TABLE
        for candidate in row(facts)
    }
    assert made | refused | elsewhere == known


@pytest.mark.parametrize(("name", "profile"), REFUSED, ids=lambda value: str(value))
def test_what_jobs_cannot_have_is_refused_with_the_cause(name: str, profile: str) -> None:
    first = next(iter(facts_of(name).values()))
    request = NetworkRequest(2, first.amount(NVIDIA), profile=profile)
    (option,) = gang_networks(facts_of(name), request, 2)
    assert option.network is None and set(option.excluded) == set(facts_of(name))
    assert all(cause.startswith(REFUSED[name, profile]) for cause in option.excluded.values())


def test_fields_of_the_job_win_and_the_status_says_so() -> None:
    job, _ = job_on(
        "coreweave-gb300",
        "roce",
        network={"nccl": {"NCCL_IB_TC": "41"}},
        workers={
            "env": [{"name": "NCCL_IB_HCA", "value": "mlx5"}],
            "podAnnotations": {NETWORKS: "mine"},
        },
    )
    body = pod_on("coreweave-gb300", job)
    assert variables(body)["NCCL_IB_TC"] == "41" and variables(body)["NCCL_IB_HCA"] == "mlx5"
    assert body["metadata"]["annotations"] == {NETWORKS: "mine"}
    setters = {
        item["name"]: (item["value"], item["setBy"])
        for item in stored(decided("coreweave-gb300", job))["settings"]
        if item["kind"] != "Toleration"
    }
    assert setters["NCCL_IB_TC"] == ("41", "spec.network.nccl")
    assert setters["NCCL_IB_HCA"] == ("mlx5", "spec.workers.env")
    assert setters[NETWORKS] == ("mine", "spec.workers.podAnnotations")
    assert setters["NCCL_NET"] == ("IB", "spec.network.profile")
    assert setters["rdma/ib"] == ("1", "coreweave-roce")


def test_amounts_of_the_job_replace_those_of_the_row() -> None:
    pages = {"resources": {"limits": {"hugepages-2Mi": "64Mi"}}}
    job, _ = job_on("aws-p5", "auto", workers=pages)
    (container,) = pod_on("aws-p5", job)["spec"]["containers"]
    assert container["resources"]["limits"]["hugepages-2Mi"] == "64Mi"
    assert container["resources"]["limits"][EFA] == "32"
    own = {"rdma": {"resource": EFA, "count": 8}}
    job, _ = job_on("aws-p5", "auto", network=own)
    body = pod_on("aws-p5", job)
    (container,) = body["spec"]["containers"]
    assert container["resources"]["limits"] == {NVIDIA: "8", EFA: "8"}
    assert variables(body)["FI_PROVIDER"] == "efa"


def test_pods_are_made_from_the_status_and_not_from_the_table() -> None:
    """Another release may have another table while a gang restarts."""
    job, _ = job_on("coreweave-h100", "auto")
    earlier = stored(
        NodeNetwork(
            "earlier",
            "a fact",
            (
                Setting(Kind.RESOURCE, "rdma/ib", "2", "earlier", "a document"),
                Setting(Kind.VARIABLE, "NCCL_IB_HCA", "mlx5", "earlier", "a document"),
                Setting(Kind.ANNOTATION, "other.example.com/x", "y", "earlier", "a document"),
            ),
        )
    )
    body = make_pod(job, IDENTITY, 0, 0, ["a", "b"], network=earlier)
    (container,) = body["spec"]["containers"]
    assert container["resources"]["limits"]["rdma/ib"] == "2"
    assert variables(body)["NCCL_IB_HCA"] == "mlx5" and "NCCL_SOCKET_IFNAME" not in variables(body)
    assert "annotations" not in body["metadata"], "the table annotates networks only"


@pytest.mark.parametrize(
    ("profile", "expected"),
    [("auto", {}), ("tcp", {"NCCL_IB_DISABLE": "1"}), ("efa", EFA_VARIABLES), ("roce", ROCE)],
)
def test_a_placement_of_an_older_release_keeps_its_pods(
    profile: str, expected: dict[str, str]
) -> None:
    job, _ = job_on("aws-p5", profile)
    body = make_pod(job, IDENTITY, 0, 0, ["a", "b"])
    assert variables(body).items() >= expected.items()
    (container,) = body["spec"]["containers"]
    assert container["resources"]["limits"] == {NVIDIA: "8"}


def test_the_status_is_bounded_and_keeps_what_the_pods_need() -> None:
    network = decided("aws-p5", job_on("aws-p5", "efa")[0])
    own = tuple(
        Setting(Kind.VARIABLE, f"NCCL_{index}{'x' * 400}", "v" * 9000, ENV_FIELD, "the job")
        for index in range(300)
    )
    notes = tuple(f"{index} {'n' * 5000}" for index in range(30))
    large = replace(network, settings=(*own, *network.settings), notes=notes, fact="f" * 5000)
    found = NetworkStatus.from_wire(network_status(large).to_wire())
    assert len(found.settings) == MAX_NETWORK_SETTINGS
    assert len(found.notes or ()) == MAX_NETWORK_NOTES
    assert len(json.dumps(found.to_wire())) < 64 * 1024
    small = PodNetwork.of_status(network_status(network).to_wire())
    assert PodNetwork.of_status(found.to_wire()) == small


def test_a_status_of_any_content_adds_no_variable_of_the_contract() -> None:
    job, _ = job_on("aws-p5", "auto")
    hostile = {
        "settings": [
            {"kind": "Variable", "name": env.MASTER_ADDR, "value": "x", "setBy": "r", "source": ""},
            {"kind": "Resource", "name": "cpu", "value": "1000", "setBy": "r", "source": ""},
            {"kind": "Resource", "name": NVIDIA, "value": "64", "setBy": "r", "source": ""},
            {"kind": "Resource", "name": "rdma/ib", "value": "x", "setBy": "r", "source": ""},
        ]
    }
    body = make_pod(job, IDENTITY, 0, 0, ["a", "b"], network=hostile)
    assert variables(body)[env.MASTER_ADDR] != "x"
    (container,) = body["spec"]["containers"]
    assert container["resources"]["limits"] == {NVIDIA: "8"}
