"""The queue decides the network of a gang with its nodes, and counts its devices. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from llmtrain_core.api.conditions import Reason
from llmtrain_core.network import NetworkRequest
from llmtrain_core.queueing import Allocation, ClusterState, PendingJob, decide
from llmtrain_core.queueing.cycle import decide_within
from llmtrain_core.topology.inventory import Node, Snapshot, Taint
from llmtrain_core.topology.levels import NODE
from tests.support.queue_sim import GPU, LEAF, Arrival, cluster_state, request, start, wait

pytestmark = pytest.mark.unit

EFA = "vpc.amazonaws.com/efa"


def nodes(name: str, count: int, **amounts: int) -> list[Node]:
    more = {key.replace("__", "/"): amount for key, amount in amounts.items()}
    return [Node(f"{name}{i}", {"leaf": name}, {GPU: 8, **more}) for i in range(count)]


def efa(name: str, count: int, nics: int = 32) -> list[Node]:
    return [
        Node(each.name, each.labels, {**each.allocatable, EFA: nics}) for each in nodes(name, count)
    ]


def state(found: Iterable[Node], running: tuple[Allocation, ...] = ()) -> ClusterState:
    return cluster_state(Snapshot((LEAF, NODE), tuple(found)), 0.0, running)


def waits(uid: str, count: int, profile: str = "auto", gpus: int = 8) -> PendingJob:
    job = Arrival(uid, count, 9, gpus=gpus).waiting()
    return replace(job, network=NetworkRequest(count, gpus, GPU, profile))


def held(uid: str, *names: str) -> Allocation:
    return Allocation(uid, "ns", 0, names, {GPU: 8})


def test_the_nodes_of_an_assignment_agree_on_its_network() -> None:
    found = start(decide([waits("a", 2)], state([*nodes("t", 3), *efa("e", 2)]))["a"])
    assert set(found.nodes) == {"e0", "e1"}
    assert found.network is not None and found.network.row == "aws-efa"
    assert found.resources == {**request(2).needs, EFA: 32}


def test_devices_that_one_job_gets_are_not_given_to_the_next_one() -> None:
    here = state([Node(f"n{i}", {"leaf": "l"}, {GPU: 8, EFA: 4}) for i in range(2)])
    jobs = [waits(name, 2, gpus=4) for name in ("a", "b")]
    found = decide(jobs, here)
    assert start(found["a"]).resources[EFA] == start(found["b"]).resources[EFA] == 2
    here = state([Node(f"n{i}", {"leaf": "l"}, {GPU: 8, EFA: 1}) for i in range(2)])
    found = decide(jobs, here)
    assert start(found["a"]).resources[EFA] == 1, "at least one"
    refused = wait(found["b"])
    assert f"2 {EFA} in use" in refused.message and refused.reason == Reason.INSUFFICIENT_GPUS


def test_nodes_of_several_networks_hold_no_gang_together() -> None:
    here = state([*nodes("t", 2), *efa("e", 2)])
    refused = wait(decide([waits("a", 3)], here)["a"])
    assert refused.reason == Reason.INSUFFICIENT_NODES
    assert "2 has another network: " in refused.message
    assert start(decide([waits("a", 3, "tcp")], here)["a"]).network is not None


def test_a_profile_that_the_nodes_contradict_is_refused_and_takes_nothing() -> None:
    here = state(nodes("c", 2, rdma__ib=100))
    jobs = [waits("a", 2, "efa"), waits("b", 2)]
    found = decide(jobs, here)
    refused = wait(found["a"])
    assert refused.reason == Reason.NETWORK_MISMATCH
    assert "not efa (use network.profile infiniband or auto)" in refused.message
    assert start(found["b"]).network is not None, "no node is reserved for it"


def test_a_privileged_network_is_refused_with_the_cause() -> None:
    label = {"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb", "leaf": "l"}
    here = state([Node(f"g{i}", label, {GPU: 8}) for i in range(2)])
    refused = wait(decide([waits("a", 2, "tcpxo")], here)["a"])
    assert refused.reason == Reason.NETWORK_MISMATCH
    assert "2 has gke-tcpxo, which needs a sidecar with NET_ADMIN" in refused.message
    found = start(decide([waits("a", 2)], here)["a"])
    assert found.network is not None and found.network.notes[0].startswith("gke-tcpxo")


def test_another_network_is_used_while_the_best_one_is_busy() -> None:
    busy = (held("x", "e0", "e1"),)
    both = [*nodes("t", 2), *efa("e", 2)]
    found = start(decide([waits("a", 2)], state(both, busy))["a"])
    assert found.network is not None and found.network.row == "tcp"
    all_busy = (*busy, held("y", "t0", "t1"))
    refused = wait(decide([waits("a", 2)], state(both, all_busy))["a"])
    assert refused.reason == Reason.INSUFFICIENT_GPUS and set(refused.blockers) == {"e0", "e1"}


def test_jobs_of_one_node_use_all_nodes_and_larger_ones_those_of_one_network() -> None:
    both = [*nodes("t", 1), *efa("e", 1)]
    found = decide([waits("a", 1), waits("b", 1), waits("c", 2)], state(both))
    assert {*start(found["a"]).nodes, *start(found["b"]).nodes} == {"t0", "e0"}
    assert "1 has another network: " in wait(found["c"]).message


def test_tainted_devices_are_tolerated_by_the_job_that_gets_them() -> None:
    taint = (Taint(EFA, "", "NoSchedule"),)
    tainted = [replace(each, taints=taint) for each in efa("e", 2)]
    assert set(start(decide([waits("a", 2)], state(tainted))["a"]).nodes) == {"e0", "e1"}
    refused = wait(decide([waits("a", 2, "tcp")], state(tainted))["a"])
    assert "2 taint not tolerated" in refused.message


def test_an_answer_of_an_earlier_cycle_holds_until_the_network_of_the_job_changes() -> None:
    here = state(nodes("c", 2, rdma__ib=100))
    jobs = [waits(f"j{index}", 2, "efa") for index in range(3)]
    first = decide_within(jobs, here, max_work=0)
    assert not first.complete and first.decisions.keys() == {"j0"}
    assert decide_within(jobs, here, first.round, max_work=0).decisions.keys() == {"j1"}
    changed = [replace(jobs[0], network=NetworkRequest(2, 8, GPU, "auto")), *jobs[1:]]
    again = decide_within(changed, here, first.round, max_work=0)
    assert start(again.decisions["j0"]).network is not None


def test_a_job_that_preempts_takes_nodes_of_its_network() -> None:
    both = [*nodes("t", 2), *efa("e", 2)]
    low = (held("x", "e0", "e1"), held("y", "t0", "t1"))
    urgent = replace(waits("vip", 2, "efa"), priority=9)
    assert wait(decide([urgent], state(both, low))["vip"]).victims == ("x",)
