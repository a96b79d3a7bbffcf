"""When jobs get GPUDirect-TCPXO and GPUDirect-TCPX of GKE, and what their pods then get."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmtrain_core.api.workers import Workers
from llmtrain_core.network import (
    Kind,
    NetworkRequest,
    NodeFacts,
    NodeNetwork,
    NoNetwork,
    gang_networks,
    network_of,
)
from llmtrain_core.network.environments.gke_gpudirect import PARTS
from llmtrain_core.network.rows import INTERFACES
from llmtrain_core.validation.pod_privileges import privileges
from tests.support.node_lists import NVIDIA, decided, facts_of, network

pytestmark = pytest.mark.unit

PREFIX = "networking.gke.io.networks/"
LISTS = [("gke-a3-mega", "tcpxo", 8), ("gke-a3-high", "tcpx", 4)]
LIBRARIES = "/home/kubernetes/bin/nvidia/lib64"
each_list = pytest.mark.parametrize(("name", "profile", "count"), LISTS)


def node(name: str, networks: list[str] | None = None) -> NodeFacts:
    """Return a node of a list, with other networks if they are given."""
    facts = next(iter(facts_of(name).values()))
    if networks is None:
        return facts
    kept = {key: amount for key, amount in facts.allocatable.items() if PREFIX not in key}
    return replace(facts, allocatable={**kept, **{f"{PREFIX}{key}": 1 for key in networks}})


def names(count: int, start: str = "vpc") -> list[str]:
    return [f"{start}{index}" for index in range(1, count + 1)]


def cause(facts: NodeFacts, request: NetworkRequest) -> str:
    """Return why a job that names the profile does not get the network."""
    found = network_of(facts, request)
    assert isinstance(found, NoNetwork)
    return found.cause


@each_list
def test_a_job_gets_it_by_its_profile_and_auto_names_the_profile(
    name: str, profile: str, count: int
) -> None:
    auto = network(name)
    assert (auto.row, auto.settings) == ("tcp", ())
    (note,) = auto.notes
    assert note.startswith(f"gke-{profile} (") and "it needs a sidecar with NET_ADMIN" in note
    assert note.endswith(f"; set network.profile: {profile} to use it")
    found = network(name, profile=profile)
    assert found.row == f"gke-{profile}"
    assert found.fact.startswith("label cloud.google.com/gke-accelerator=nvidia-h100-")
    assert {item.set_by for item in found.settings} == {found.row}
    assert all(item.source for item in found.settings)


@each_list
def test_what_the_pods_get(name: str, profile: str, count: int) -> None:
    found = network(name, profile=profile)
    annotations = found.of_kind(Kind.ANNOTATION)
    interfaces = json.loads(annotations.pop(INTERFACES))
    expected = [("eth0", "default"), *((f"eth{i}", f"vpc{i}") for i in range(1, count + 1))]
    assert [(item["interfaceName"], item["network"]) for item in interfaces] == expected
    assert annotations.pop("networking.gke.io/default-interface") == "eth0"
    ((key, devices),) = annotations.items()
    assert key == f"devices.gke.io/container.{profile}-daemon"
    assert devices.startswith("- path: /dev/nvidia0\n- path: /dev/nvidia1\n")
    assert ("dmabuf_import_helper" in devices) == (profile == "tcpxo")
    (image,) = found.of_kind(Kind.SIDECAR).values()
    assert image.rpartition("/")[2].startswith("tcpgpudmarxd-dev:v")
    paths = found.of_kind(Kind.HOST_PATH)
    own = "/dev/aperture_devices" if profile == "tcpxo" else "/run/tcpx"
    assert paths.keys() == {LIBRARIES, "/sys", "/proc/sys", own}
    assert paths["/sys"] == f"{profile}-daemon:/hostsysfs"
    assert paths[LIBRARIES].startswith("trainer:/usr/local/nvidia/lib64, ")
    security = found.of_kind(Kind.SECURITY)
    assert security[f"{profile}-daemon"].startswith("user 0, capability NET_ADMIN")
    assert security.get("trainer") == (
        None if profile == "tcpxo" else "user 0, capability IPC_LOCK"
    )
    variables = found.of_kind(Kind.VARIABLE)
    assert variables["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    listed = ",".join(f"eth{index}" for index in range(1, count + 1))
    plugin = "NCCL_FASTRAK_IFNAME" if profile == "tcpxo" else "NCCL_GPUDIRECTTCPX_SOCKET_IFNAME"
    assert variables[plugin] == listed
    assert "NCCL_NET" not in variables


@pytest.mark.parametrize("row", PARTS)
def test_what_is_shown_as_security_is_what_needs_the_permission(row: str) -> None:
    workers = Workers.from_wire({"image": "i", "gpusPerNode": 8})
    found = privileges(workers, PARTS[row].patch)
    assert {item.field for item in found} == {"spec.network.profile"}
    assert found[0].level == "privileged" and len(set(found)) == len(found)
    what = {item.what for item in found}
    assert {"path of the node", "capability NET_ADMIN", "user 0 (root)"} <= what
    assert "privileged container" not in what and "network of the node" not in what
    assert ("capability IPC_LOCK" in what) == (row == "gke-tcpx")
    assert privileges(workers) == []


@each_list
def test_what_pods_need_besides_the_permission(name: str, profile: str, count: int) -> None:
    base = NetworkRequest(2, 8, profile=profile)
    assert isinstance(network_of(node(name), base), NodeNetwork)
    part = replace(base, gpus_per_node=4)
    assert "all 8 GPUs of their nodes (workers.gpusPerNode)" in cause(node(name), part)
    of_node = replace(base, host_network=True)
    assert "in pods without hostNetwork" in cause(node(name), of_node)
    text = cause(node(name, names(count - 1)), base)
    assert f"{count} networks" in text and f"shows {count - 1}," in text
    assert f"set {INTERFACES} in workers.podAnnotations" in text
    assert f"shows {count + 1}," in cause(node(name, names(count + 1)), base)
    assert "shows 0," in cause(node(name, []), base)


@each_list
def test_networks_have_the_order_of_their_numbers_and_no_addresses_among_them(
    name: str, profile: str, count: int
) -> None:
    listed = [f"gpu-nic-{9 + index}" for index in range(count)]
    resources = [*reversed(listed), "default", "default.IP", *(f"{each}.IP" for each in listed)]
    found = network_of(node(name, resources), NetworkRequest(2, 8, profile=profile))
    assert isinstance(found, NodeNetwork)
    interfaces = json.loads(found.of_kind(Kind.ANNOTATION)[INTERFACES])
    assert [item["network"] for item in interfaces] == ["default", *listed]


@each_list
def test_fields_of_the_job_win_and_the_row_says_so(name: str, profile: str, count: int) -> None:
    found = network_of(
        node(name, []),
        NetworkRequest(
            2,
            8,
            profile=profile,
            gke_annotations={INTERFACES: "mine"},
            sidecars={f"{profile}-daemon": "mirror/daemon:2"},
            env={"LD_LIBRARY_PATH": "/mine"},
            nccl={"NCCL_CROSS_NIC": "1"},
        ),
    )
    assert isinstance(found, NodeNetwork)
    shown = [item for item in found.settings if item.kind is not Kind.SECURITY]
    by_name = {item.name: (item.value, item.set_by) for item in shown}
    assert by_name[INTERFACES] == ("mine", "spec.workers.podAnnotations")
    assert by_name[f"{profile}-daemon"] == ("mirror/daemon:2", "spec.workers.podPatch")
    assert by_name["LD_LIBRARY_PATH"] == ("/mine", "spec.workers.env")
    assert by_name["NCCL_CROSS_NIC"] == ("1", "spec.network.nccl")


def test_nodes_with_networks_of_other_names_hold_no_gang_together() -> None:
    """Pods of a gang have one annotation, so GKE would refuse those on the other nodes."""
    facts = {"a": node("gke-a3-mega"), "b": node("gke-a3-mega", names(8, "other"))}
    options = gang_networks(facts, NetworkRequest(2, 8, profile="tcpxo"), 2)
    assert sorted(map(sorted, (option.nodes for option in options))) == [["a"], ["b"]]


def test_auto_says_nothing_where_no_sidecar_would_help() -> None:
    (option,) = decided("gke-l4")
    assert option.network is not None and (option.network.row, option.network.notes) == ("tcp", ())
    facts = node("gke-a3-mega")
    assert facts.amount(NVIDIA) == 8
    alone = network_of(facts, NetworkRequest(1, 8))
    assert isinstance(alone, NodeNetwork) and (alone.row, alone.notes) == ("tcp", ())
