"""Slow links in the queue: placements of the namespaces for which they count avoid them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from llmtrain_core.network.links import LinkPath
from llmtrain_core.network.slow_links import SlowLinks
from llmtrain_core.queueing import ClusterState, PendingJob, RunningJob
from llmtrain_core.queueing.quarantine import NodeLists, Quarantine
from llmtrain_core.topology.inventory import Usage
from llmtrain_operator.scheduler.cycle import find_better_placement, find_place_elsewhere
from tests.support.operator_harness.scheduling import (
    GPU,
    cluster,
    placed,
    rack_nodes,
    thin_uplinks,
    waiting_job,
)

pytestmark = pytest.mark.unit

NODES = rack_nodes(1, 2)
UPLINK_A: Mapping[LinkPath, float] = {("a",): 4.0}
NODE_A1: Mapping[LinkPath, float] = {("a", "a1"): 3.0}


def state(slow: SlowLinks | None = None, used: tuple[str, ...] = ()) -> ClusterState:
    taken = tuple(Usage(name, GPU, 8, "other") for name in used)
    found = cluster(NODES, taken, thin_uplinks("rack", "rack"))
    return replace(found, slow_links={} if slow is None else {"default": slow})


def job(count: int, namespace: str = "ns") -> PendingJob:
    return replace(waiting_job("job-1", count), namespace=namespace)


def own(links: Mapping[LinkPath, float]) -> SlowLinks:
    return SlowLinks({}, {"ns": links})


def test_a_slow_uplink_is_avoided_where_it_counts() -> None:
    usual = placed(job(4), state())
    assert {"a1", "a2"} <= set(usual)
    assert {name[0] for name in placed(job(4), state(own(UPLINK_A)))} == {"b", "c"}
    assert placed(job(4, "other"), state(own(UPLINK_A))) == usual
    for namespace in ("ns", "other"):
        nodes = placed(job(4, namespace), state(SlowLinks(UPLINK_A)))
        assert {name[0] for name in nodes} == {"b", "c"}


def test_inside_a_rack_its_uplink_does_not_matter() -> None:
    assert placed(job(2), state(own(UPLINK_A))) == placed(job(2), state())


def test_a_slow_node_is_used_last() -> None:
    assert placed(job(1), state()) == ("a1",)
    assert placed(job(1), state(own(NODE_A1))) != ("a1",)
    assert placed(job(1, "other"), state(own(NODE_A1))) == ("a1",)
    rest = tuple(node.name for node in NODES if node.name != "a1")
    assert placed(job(1), state(own(NODE_A1), used=rest)) == ("a1",)
    assert set(placed(job(6), state(own(NODE_A1)))) == {node.name for node in NODES}


def test_other_fabrics_have_their_own_links() -> None:
    found = replace(state(), slow_links={"other": SlowLinks(NODE_A1)})
    assert placed(job(1), found) == ("a1",)


def running(*nodes: str, namespace: str = "ns", leaving: tuple[str, ...] = ()) -> RunningJob:
    pending = replace(job(len(nodes), namespace), attempt=1)
    return RunningJob(pending, nodes, None, leaving=frozenset(leaving))


def test_a_better_placement_is_shown_to_the_namespace_that_has_shown_the_link() -> None:
    with_slow = state(own(UPLINK_A))
    for namespace, better in (("ns", True), ("other", False)):
        there = running("a1", "a2", "b1", "b2", namespace=namespace)
        hint, assignment = find_better_placement(there, replace(with_slow, running=(there,)))
        assert (hint.gain > 1.5) == better
        assert (assignment is not None) == better


@pytest.mark.parametrize("why", ["slow", "suspect", "failed"])
def test_no_node_that_is_used_last_makes_a_placement_better(why: str) -> None:
    there = running("a1", "b1")
    usual = find_better_placement(there, replace(state(), running=(there,)))[1]
    assert usual is not None
    new = set(usual.nodes) - set(there.nodes)
    found = state(own({(name[0], name): 3.0 for name in new}) if why == "slow" else None)
    if why == "suspect":
        lists = NodeLists(suspects=frozenset(new))
        found = replace(found, quarantine=Quarantine(lists))
    if why == "failed":
        there = replace(there, next=replace(there.next, avoided_nodes=frozenset(new)))
    _, offer = find_better_placement(there, replace(found, running=(there,)))
    assert offer is not None and new.isdisjoint(offer.nodes)


def test_a_job_that_leaves_drained_nodes_avoids_a_slow_one() -> None:
    there = running("b1", leaving=("b1",))
    found = find_place_elsewhere(there, replace(state(), running=(there,)))
    assert found is not None
    (usual,) = found.nodes
    slow = replace(state(own({(usual[0], usual): 3.0})), running=(there,))
    found = find_place_elsewhere(there, slow)
    assert found is not None and found.nodes != (usual,)
