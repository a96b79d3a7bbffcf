"""One network for a whole gang: nodes whose networks differ hold no gang together."""

from __future__ import annotations

import pytest

from llmtrain_core.network import (
    GangNetwork,
    Kind,
    NetworkRequest,
    NodeFacts,
    NodeNetwork,
    gang_networks,
)

pytestmark = pytest.mark.unit

GPU, EFA = "nvidia.com/gpu", "vpc.amazonaws.com/efa"
PLAIN = NodeFacts({}, {GPU: 8})
P5, P4 = NodeFacts({}, {GPU: 8, EFA: 32}), NodeFacts({}, {GPU: 8, EFA: 4})
MEGA = NodeFacts({"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"}, {GPU: 8})


def named(facts: NodeFacts, name: str, count: int) -> dict[str, NodeFacts]:
    return {f"{name}{index}": facts for index in range(count)}


def of(option: GangNetwork) -> NodeNetwork:
    assert option.network is not None
    return option.network


def row(option: GangNetwork) -> str:
    return of(option).row


def request(nodes: int, profile: str = "auto") -> NetworkRequest:
    return NetworkRequest(nodes, 8, profile=profile)


def test_rdma_comes_before_tcp_where_enough_nodes_have_it() -> None:
    nodes = named(PLAIN, "n", 8) | named(P5, "p", 2)
    first, second = gang_networks(nodes, request(2), 2)
    assert (row(first), row(second)) == ("aws-efa", "tcp")
    assert first.nodes == {"p0", "p1"}
    assert first.excluded == {f"n{index}": "has another network: tcp" for index in range(8)}
    assert second.excluded == dict.fromkeys(
        ("p0", "p1"), f"has another network: aws-efa (32 {EFA})"
    )


def test_a_network_with_enough_nodes_comes_before_better_ones_with_too_few() -> None:
    nodes = named(PLAIN, "n", 4) | named(P5, "p", 2)
    assert [row(o) for o in gang_networks(nodes, request(4), 4)] == [
        "tcp",
        "aws-efa",
    ]


def test_where_no_network_has_enough_nodes_the_one_with_the_most_comes_first() -> None:
    nodes = named(PLAIN, "n", 3) | named(P5, "p", 2)
    assert [len(o.nodes) for o in gang_networks(nodes, request(5), 5)] == [3, 2]


def test_nodes_with_other_amounts_are_another_network() -> None:
    nodes = named(P5, "p", 2) | named(P4, "q", 3)
    first, second = gang_networks(nodes, request(2), 2)
    assert of(first).resources == {EFA: 4} and first.nodes == {"q0", "q1", "q2"}
    assert of(second).resources == {EFA: 32}
    assert first.excluded["p0"] == f"has another network: aws-efa (32 {EFA})"


def test_slots_and_missing_topology_labels_are_no_other_network() -> None:
    labels = {"backend.coreweave.cloud/fabric": "f", "ds.coreweave.com/x": ""}
    nodes = {
        "a": NodeFacts({"ds.coreweave.com/x": ""}, {GPU: 8, "rdma/ib": 63}),
        "b": NodeFacts(labels, {GPU: 8, "rdma/ib": 100}),
    }
    (option,) = gang_networks(nodes, request(2), 2)
    assert option.nodes == {"a", "b"}
    assert of(option).fact == "allocatable rdma/ib: 63"
    assert of(option).topology == "coreweave"


def test_nodes_without_a_usable_network_agree_on_tcp_and_keep_their_reasons() -> None:
    nodes = named(PLAIN, "n", 1) | named(MEGA, "m", 1)
    (option,) = gang_networks(nodes, request(2), 2)
    assert row(option) == "tcp" and option.nodes == {"m0", "n0"}
    (note,) = of(option).notes
    assert note.startswith("gke-tcpxo")


def test_a_named_profile_excludes_the_nodes_that_lack_it() -> None:
    nodes = named(PLAIN, "n", 3) | named(P5, "p", 1)
    (option,) = gang_networks(nodes, request(2, "efa"), 2)
    assert option.nodes == {"p0"} and of(option).of_kind(Kind.VARIABLE)["NCCL_NET"]
    cause = "shows no network but TCP, not efa (use network.profile tcp)"
    assert option.excluded == {f"n{index}": cause for index in range(3)}


def test_without_nodes_there_is_nothing_to_choose() -> None:
    (option,) = gang_networks({}, request(2), 2)
    assert (option.network, option.key, option.excluded) == (None, None, {})
