"""Nodes of one kind share their facts, which are read again when a node changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_core.network import FactsCache, NetworkRequest, NodeFacts, gang_networks, network_of
from llmtrain_core.topology.inventory import Node

pytestmark = pytest.mark.unit

GPU, EFA = "nvidia.com/gpu", "vpc.amazonaws.com/efa"
INSTANCE = "node.kubernetes.io/instance-type"


def node(index: int, **more: int) -> Node:
    labels = {"kubernetes.io/hostname": f"n{index}", "rack": str(index), INSTANCE: "p5.48xlarge"}
    amounts = {GPU: 8, EFA: 32, "memory": 2**40 + index, "pods": 110, **more}
    return Node(f"n{index}", labels, amounts)


def test_nodes_that_differ_only_in_names_and_memory_have_the_same_facts() -> None:
    nodes = [node(index) for index in range(4)]
    found = FactsCache().of(nodes)
    assert len({id(facts) for facts in found.values()}) == 1
    facts = found["n0"]
    assert facts.allocatable == {GPU: 8, EFA: 32} and facts.labels[INSTANCE] == "p5.48xlarge"
    assert facts.has_label("rack") and facts == NodeFacts.of(nodes[3])


def test_a_changed_node_is_read_again_and_one_that_is_gone_is_forgotten() -> None:
    cache, nodes = FactsCache(), [node(0), node(1), node(2)]
    before = cache.of(nodes)
    broken = replace(nodes[1], allocatable={**nodes[1].allocatable, EFA: 31})
    after = cache.of([nodes[0], broken])
    assert after.keys() == {"n0", "n1"} and after["n0"] is before["n0"]
    assert after["n1"].amount(EFA) == 31 and before["n1"].amount(EFA) == 32
    assert cache.of([broken])["n1"] is after["n1"]


def test_a_resource_of_another_kind_is_another_fact() -> None:
    found = FactsCache().of([node(0), node(1, **{"hugepages-2Mi": 2**34})])
    assert found["n0"] is not found["n1"] and found["n1"].amount("hugepages-2Mi") == 2**34


def test_shared_facts_give_the_networks_that_facts_of_each_node_give() -> None:
    nodes = [node(0), node(1), node(2, **{EFA: 4}), replace(node(3), allocatable={GPU: 8})]
    request = NetworkRequest(2, 8)
    shared = gang_networks(FactsCache().of(nodes), request, 2)
    own = gang_networks({each.name: NodeFacts.of(each) for each in nodes}, request, 2)
    assert shared == own and len(shared) == 3
    assert shared[0].network == network_of(NodeFacts.of(nodes[0]), request)


def test_requests_that_exclude_other_nodes_have_other_keys() -> None:
    facts = FactsCache().of([node(0), node(1), replace(node(2), allocatable={GPU: 8})])
    several = gang_networks(facts, NetworkRequest(2, 8), 2)
    (alone,) = gang_networks(facts, NetworkRequest(1, 8), 1)
    plain = next(option for option in several if option.network and option.network.row == "tcp")
    assert plain.network and alone.network
    assert plain.network.settings == alone.network.settings == ()
    assert plain.excluded and not alone.excluded and plain.key != alone.key


def test_values_of_the_job_that_no_network_reads_share_its_decision() -> None:
    one = NetworkRequest(2, 8, env={"NCCL_IB_HCA": "a"})
    assert one.key == NetworkRequest(3, 8, env={"NCCL_IB_HCA": "a"}).key
    assert one.key != NetworkRequest(1, 8, env={"NCCL_IB_HCA": "a"}).key
    assert one.key != NetworkRequest(2, 8, env={"NCCL_IB_HCA": "b"}).key
