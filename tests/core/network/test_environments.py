"""Which network `auto` chooses on recorded node lists, what it sets, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from llmtrain_core.network import (
    Kind,
    NetworkRequest,
    gang_networks,
)
from tests.support.node_lists import FOLDER, NETWORKS, decided, facts_of, network

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Expected:
    row: str
    fact: str
    resources: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    topology: str | None = None
    note: str = ""
    """Start of the only note, and its end."""
    remedy: str = ""


ETH0 = {"NCCL_SOCKET_IFNAME": "eth0"}
NOTHING = "no other network can be used as it is"
ACCELERATOR = "label cloud.google.com/gke-accelerator="
PATCH = "; mount the paths by workers.podPatch, and set network.profile: roce to use it"
AUTO = {
    "aws-p5": Expected(
        "aws-efa",
        "allocatable vpc.amazonaws.com/efa: 32",
        {"vpc.amazonaws.com/efa": "32", "hugepages-2Mi": "5120Mi"},
        {"FI_PROVIDER": "efa"},
        topology="aws",
    ),
    "aws-p4d-no-huge-pages": Expected(
        "aws-efa",
        "allocatable vpc.amazonaws.com/efa: 4",
        {"vpc.amazonaws.com/efa": "4"},
        {"FI_PROVIDER": "efa"},
    ),
    "aws-efa-dra": Expected(
        "tcp",
        NOTHING,
        note="dra (ResourceSlice of driver efa.networking.k8s.aws) is not used: it needs a",
        remedy="(workers.deviceClaims)",
    ),
    "gke-a3-ultra": Expected(
        "tcp",
        NOTHING,
        note=f"gke-gib ({ACCELERATOR}nvidia-h200-141gb) is not used: it needs host paths",
        remedy=f"names of its RDMA networks{PATCH}",
    ),
    "gke-a3-mega": Expected(
        "tcp",
        NOTHING,
        note=f"gke-tcpxo ({ACCELERATOR}nvidia-h100-mega-80gb) is not used: it needs a sidecar"
        " with NET_ADMIN, tcpxo-daemon,",
        remedy="; set network.profile: tcpxo to use it",
    ),
    "gke-a3-high": Expected(
        "tcp",
        NOTHING,
        note=f"gke-tcpx ({ACCELERATOR}nvidia-h100-80gb) is not used: it needs a sidecar"
        " with NET_ADMIN, tcpx-daemon,",
        remedy="; set network.profile: tcpx to use it",
    ),
    "gke-l4": Expected("tcp", "no fact of the node names another network"),
    "coreweave-h100": Expected(
        "coreweave-infiniband",
        "allocatable rdma/ib: 100",
        {"rdma/ib": "1"},
        {**ETH0, "NCCL_IB_HCA": "ibp"},
        topology="coreweave",
    ),
    "coreweave-gb300": Expected(
        "tcp",
        NOTHING,
        note="coreweave-roce (label node.kubernetes.io/instance-type=gb300-4x) is not used",
        remedy="; set network.profile: roce to use it",
    ),
    "oci-h100-virtual-functions": Expected(
        "tcp",
        NOTHING,
        note="oci-roce (allocatable nvidia.com/rdma-vf: 16) is not used: it needs a privileged",
        remedy=f"/dev/infiniband{PATCH}",
    ),
    "oci-b200-host-network": Expected(
        "tcp",
        NOTHING,
        note="oci-roce (label node.kubernetes.io/instance-type=BM.GPU.B200.8) is not used",
        remedy=f"/dev/infiniband{PATCH}",
    ),
    "oci-mi355x-virtual-functions": Expected(
        "tcp",
        NOTHING,
        note="oci-roce (allocatable nvidia.com/rdma-vf: 8) is not used: it needs a privileged",
        remedy=f"/dev/infiniband{PATCH}",
    ),
    "azure-h100-virtual-functions": Expected(
        "azure-infiniband",
        "allocatable rdma/ib: 8",
        {"rdma/ib": "8"},
        ETH0,
        topology="azure",
    ),
    "azure-mi300x-shared": Expected(
        "azure-infiniband",
        "allocatable rdma/shared_ib: 63",
        {"rdma/shared_ib": "1"},
        {**ETH0, "RCCL_MSCCL_ENABLE": "0"},
    ),
    "amd-ainic": Expected(
        "tcp",
        NOTHING,
        note="amd-ainic (allocatable amd.com/nic: 8) is not used: it needs the"
        " NetworkAttachmentDefinition amd-host-device-nad",
        remedy="; set network.profile: roce to use it",
    ),
    "amd-ainic-virtual": Expected(
        "tcp",
        NOTHING,
        note="amd-ainic (allocatable amd.com/vnic: 8) is not used: it needs the"
        " NetworkAttachmentDefinition vf-amd-host-device-nad",
        remedy="; set network.profile: roce to use it",
    ),
    "openshift-infiniband": Expected(
        "nvidia-network-operator",
        "allocatable rdma/rdma_shared_device_ib: 63",
        {"rdma/rdma_shared_device_ib": "1"},
    ),
    "openshift-roce": Expected(
        "tcp",
        NOTHING,
        note="nvidia-network-operator (allocatable rdma/rdma_shared_device_eth: 63) is not used:"
        " it needs a network of Multus",
        remedy="; set network.profile: roce to use it",
    ),
    "network-operator-shared": Expected(
        "tcp",
        NOTHING,
        note="nvidia-network-operator (allocatable rdma/hca_shared_devices_a: 1000) is not used:"
        " it needs to know whether it is InfiniBand or RoCE",
        remedy="; set network.profile: infiniband or roce to use it",
    ),
    "network-operator-two-resources": Expected(
        "tcp",
        NOTHING,
        note="nvidia-network-operator (allocatable rdma/rdma_shared_device_a: 63) is not used:"
        " it needs network.rdma to choose one of",
        remedy="rdma/rdma_shared_device_a, rdma/rdma_shared_device_b",
    ),
    "network-operator-host-device": Expected(
        "tcp",
        NOTHING,
        note="nvidia-network-operator (allocatable nvidia.com/hostdev: 8) is not used",
        remedy="; set network.profile: infiniband or roce to use it",
    ),
    "dranet": Expected(
        "tcp",
        NOTHING,
        note="dra (ResourceSlice of driver dra.net) is not used",
        remedy="(workers.deviceClaims)",
    ),
    "plain": Expected("tcp", "no fact of the node names another network"),
}


def test_every_list_is_expected() -> None:
    assert AUTO.keys() == {path.stem for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", AUTO)
def test_auto_chooses_by_the_facts_of_the_nodes(name: str) -> None:
    found, expected = decided(name), AUTO[name]
    (option,) = found
    network = option.network
    assert network is not None
    assert option.nodes == facts_of(name).keys() and not option.excluded
    assert (network.row, network.fact) == (expected.row, expected.fact)
    assert network.of_kind(Kind.RESOURCE) == expected.resources
    assert network.of_kind(Kind.VARIABLE) == expected.variables
    assert network.of_kind(Kind.ANNOTATION) == {}
    devices = {resource for resource in expected.resources if "/" in resource}
    assert network.of_kind(Kind.TOLERATION) == dict.fromkeys(devices, "Exists:NoSchedule")
    assert network.topology == expected.topology
    assert {setting.set_by for setting in network.settings} <= {expected.row}
    if not expected.note:
        assert network.notes == ()
    else:
        (note,) = network.notes
        assert note.startswith(expected.note) and note.endswith(expected.remedy)


ROCE = {"NCCL_NET": "IB", "NCCL_IB_ROCE_VERSION_NUM": "2"}
AINIC = {
    "NCCL_NET_PLUGIN": "librccl-anp.so",
    "NCCL_IB_GID_INDEX": "1",
    "NCCL_IB_USE_INLINE": "1",
    "NCCL_GDR_FLUSH_DISABLE": "1",
    "IONIC_LOCKFREE": "all",
}
CW_NETWORKS = ",".join(f"cw-multus/ibs{n}p{p}-macvlan" for n in range(4) for p in range(4))


@pytest.mark.parametrize(
    ("name", "profile", "resources", "variables", "networks"),
    [
        (
            "aws-p5",
            "efa",
            {"vpc.amazonaws.com/efa": "32", "hugepages-2Mi": "5120Mi"},
            {"FI_PROVIDER": "efa", "NCCL_NET": "AWS Libfabric"},
            None,
        ),
        (
            "coreweave-h100",
            "infiniband",
            {"rdma/ib": "1"},
            {**ETH0, "NCCL_IB_HCA": "ibp", "NCCL_NET": "IB"},
            None,
        ),
        (
            "coreweave-gb300",
            "roce",
            {"rdma/ib": "1"},
            {
                **ETH0,
                **ROCE,
                "NCCL_IB_HCA": "ibp",
                "NCCL_IB_ADDR_FAMILY": "AF_INET6",
                "NCCL_IB_ADDR_RANGE": "fd02::/16",
                "NCCL_IB_TC": "96",
                "NCCL_IB_ADAPTIVE_ROUTING": "1",
            },
            CW_NETWORKS,
        ),
        ("coreweave-gb300", "infiniband", {"rdma/ib": "1"}, None, None),
        ("amd-ainic", "roce", {"amd.com/nic": "8"}, AINIC, ",".join(["amd-host-device-nad"] * 8)),
        (
            "amd-ainic-virtual",
            "roce",
            {"amd.com/vnic": "8"},
            AINIC,
            ",".join(["vf-amd-host-device-nad"] * 8),
        ),
        (
            "network-operator-shared",
            "roce",
            {"rdma/hca_shared_devices_a": "1"},
            ROCE,
            None,
        ),
        (
            "network-operator-host-device",
            "infiniband",
            {"nvidia.com/hostdev": "8"},
            {"NCCL_NET": "IB"},
            None,
        ),
        ("plain", "tcp", {}, {"NCCL_IB_DISABLE": "1"}, None),
        ("aws-p5", "tcp", {}, {"NCCL_IB_DISABLE": "1"}, None),
    ],
)
def test_a_named_profile_demands_its_network_and_confirms_what_nodes_do_not_show(
    name: str,
    profile: str,
    resources: dict[str, str],
    variables: dict[str, str] | None,
    networks: str | None,
) -> None:
    found = network(name, profile=profile)
    assert found.of_kind(Kind.RESOURCE) == resources
    if variables is not None:
        assert found.of_kind(Kind.VARIABLE) == variables
    assert found.of_kind(Kind.ANNOTATION) == ({NETWORKS: networks} if networks else {})


@pytest.mark.parametrize(
    ("name", "profile", "cause"),
    [
        (
            "coreweave-h100",
            "efa",
            "has coreweave-infiniband by resource rdma/ib, not efa (use network.profile infiniband"
            " or auto)",
        ),
        (
            "aws-p5",
            "infiniband",
            "has aws-efa by resource vpc.amazonaws.com/efa, not infiniband (use network.profile"
            " efa or auto)",
        ),
        ("plain", "roce", "shows no network but TCP, not roce (use network.profile tcp)"),
        ("openshift-infiniband", "roce", "has nvidia-network-operator by resource rdma/"),
        ("gke-a3-high", "roce", f"has gke-tcpx by {ACCELERATOR}nvidia-h100-80gb, not roce (use"),
        ("gke-a3-ultra", "roce", "has gke-gib, which needs host paths"),
        ("oci-h100-virtual-functions", "roce", "has oci-roce, which needs a privileged container"),
        ("gke-a3-mega", "tcpx", f"has gke-tcpxo by {ACCELERATOR}nvidia-h100-mega-80gb, not tcpx"),
        ("aws-efa-dra", "efa", "has dra, which needs a ResourceClaim"),
        ("network-operator-two-resources", "roce", "has nvidia-network-operator, which needs netw"),
    ],
)
def test_a_profile_that_the_nodes_contradict_is_refused_with_the_nearest(
    name: str, profile: str, cause: str
) -> None:
    (found,) = decided(name, profile=profile)
    assert found.network is None and found.nodes == frozenset()
    assert found.excluded.keys() == facts_of(name).keys()
    assert all(text.startswith(cause) for text in found.excluded.values())


def test_a_job_that_names_its_devices_gets_them_and_the_variables_of_their_row() -> None:
    found = network("oci-h100-virtual-functions", profile="roce", rdma=("nvidia.com/rdma-vf", 16))
    assert found.row == "oci-roce"
    (devices,) = [item for item in found.settings if item.kind is Kind.RESOURCE]
    assert (devices.value, devices.set_by) == ("16", "spec.network.rdma")
    assert found.of_kind(Kind.VARIABLE) == {
        **ETH0,
        **ROCE,
        "NCCL_IB_HCA": "mlx5",
        "NCCL_IB_GID_INDEX": "3",
        "NCCL_IB_TC": "41",
        "NCCL_IB_SL": "0",
        "NCCL_IB_TIMEOUT": "22",
    }
    of_amd = network("oci-mi355x-virtual-functions", profile="roce", rdma=("nvidia.com/rdma-vf", 8))
    assert of_amd.row == "oci-roce" and of_amd.of_kind(Kind.VARIABLE) == ROCE
    chosen = network("network-operator-two-resources", rdma=("rdma/rdma_shared_device_b", 1))
    assert chosen.resources == {"rdma/rdma_shared_device_b": 1}


@pytest.mark.parametrize(("profile", "variables"), [("auto", {}), ("roce", ROCE)])
def test_devices_that_the_table_does_not_know_are_as_the_job_says(
    profile: str, variables: dict[str, str]
) -> None:
    found = network("plain", profile=profile, rdma=("example.com/nic", 4))
    assert (found.row, found.fact) == ("network.rdma", "spec.network.rdma")
    assert found.resources == {"example.com/nic": 4}
    assert found.of_kind(Kind.VARIABLE) == variables


@pytest.mark.parametrize(("gpus", "nics"), [(8, "32"), (4, "16"), (1, "4")])
def test_a_pod_gets_the_share_of_the_nics_that_it_has_of_the_gpus(gpus: int, nics: str) -> None:
    found = network("aws-p5", gpus=gpus)
    assert found.of_kind(Kind.RESOURCE)["vpc.amazonaws.com/efa"] == nics


def test_a_pod_with_fewer_gpus_than_a_nic_serves_gets_one_nic() -> None:
    found = network("aws-p4d-no-huge-pages", gpus=1)
    assert found.resources == {"vpc.amazonaws.com/efa": 1}


def test_a_gang_of_one_node_takes_no_nics() -> None:
    nodes = {"p5-1": facts_of("aws-p5")["p5-1"]}
    (option,) = gang_networks(nodes, NetworkRequest(1, 8), 1)
    assert option.network and (option.network.row, option.network.settings) == ("tcp", ())
    (option,) = gang_networks(nodes, NetworkRequest(1, 8, profile="efa"), 1)
    assert option.network and option.network.resources["vpc.amazonaws.com/efa"] == 32


def test_amounts_of_the_containers_resources_win() -> None:
    found = network("aws-p5", resources={"hugepages-2Mi": "1Gi", "vpc.amazonaws.com/efa": "8"})
    settings = {i.name: (i.value, i.set_by) for i in found.settings if i.kind is Kind.RESOURCE}
    assert settings == {
        "hugepages-2Mi": ("1Gi", "spec.workers.resources"),
        "vpc.amazonaws.com/efa": ("8", "spec.workers.resources"),
    }


def test_variables_of_the_job_win_and_say_who_set_them() -> None:
    found = network(
        "coreweave-h100",
        profile="infiniband",
        nccl={"NCCL_IB_HCA": "ibp0", "NCCL_ALGO": "Ring"},
        env={"NCCL_SOCKET_IFNAME": "eth1", "UCX_TLS": "rc", "MY_TOKEN": "secret"},
    )
    variables = {
        item.name: (item.value, item.set_by)
        for item in found.settings
        if item.kind is Kind.VARIABLE
    }
    assert variables == {
        "NCCL_IB_HCA": ("ibp0", "spec.network.nccl"),
        "NCCL_ALGO": ("Ring", "spec.network.nccl"),
        "NCCL_SOCKET_IFNAME": ("eth1", "spec.workers.env"),
        "UCX_TLS": ("rc", "spec.workers.env"),
        "NCCL_NET": ("IB", "spec.network.profile"),
    }
