"""What a network adds to the pods of a job counts wherever the job holds, or would get, nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.network import NetworkRequest, NodeFacts, NodeNetwork, network_of
from llmtrain_core.node_health import HealthFinding
from llmtrain_core.placement import Request
from llmtrain_core.queueing import RunningJob
from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.informers import ChangeHandlers, Informers
from llmtrain_operator.cache.network_status import network_status
from llmtrain_operator.cache.records import JobRecord, NodeRecord
from llmtrain_operator.config import Config
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.scheduler.cycle import find_better_placement, find_place_elsewhere
from llmtrain_operator.scheduler.jobs import running_job
from llmtrain_operator.scheduler.snapshot import ClusterReader
from llmtrain_operator.scheduler.usage import node_resources
from tests.support.operator_harness.observed import (
    PLACEMENT,
    assignment,
    failed,
    make_observed,
    node,
    pod,
    settle,
    status,
)
from tests.support.operator_harness.scheduling import (
    GPU,
    LEAF,
    cluster,
    in_use,
    record,
    thin_uplinks,
)

pytestmark = pytest.mark.unit

EFA = "vpc.amazonaws.com/efa"
SHAPE: dict[str, Any] = {
    "workers": {"gpusPerNode": 8, "command": ["x"]},
    "parallelism": {"tensor": 8, "data": 2},
}


def network(nics: int = 32) -> NodeNetwork:
    found = network_of(NodeFacts({}, {GPU: 8, EFA: nics}), NetworkRequest(2, 8))
    assert isinstance(found, NodeNetwork)
    return found


NETWORK = network_status(network()).to_wire()


THIN = thin_uplinks("leaf", LEAF)
"""Thin uplinks: two nodes of one leaf are a better place than nodes of two."""


def on_efa(*nodes: str, **more: Any) -> JobRecord:
    """A job that runs with EFA on these nodes."""
    blocks = [{"path": "", "nodes": [*nodes]}]
    placement = {**PLACEMENT, "gpusPerNode": 8, "blocks": blocks}
    progress = {"step": 41, "totalSteps": 100, "lastCheckpointStep": 40}
    found = status(
        ConditionType.RUNNING, placement=placement, network=NETWORK, progress=progress, **more
    )
    return record("job", found, **SHAPE)


def nodes(*names: str, nics: int = 0, leaf: str = "l0", cordoned: bool = False) -> list[Node]:
    amounts = {GPU: 8, **({EFA: nics} if nics else {})}
    return [Node(name, {LEAF: leaf}, amounts, cordoned=cordoned) for name in names]


def as_running(found: JobRecord) -> RunningJob:
    checked = check(found.name, found.raw["spec"])
    assert isinstance(checked, Job)
    running = running_job(found, checked, {}, 1767268800.0, Request.of)
    assert running is not None
    return running


def test_a_job_holds_the_devices_of_its_network() -> None:
    found = on_efa("n0", "n1")
    assert node_resources(found.view) == {GPU: 8, "memory": 2**30, EFA: 32, "pods": 1}
    used = {(item.node, item.resource): item.amount for item in in_use([found])}
    assert used["n0", EFA] == used["n1", EFA] == 32


def test_a_job_holds_what_its_sidecars_request_beside_its_network() -> None:
    pages = {"limits": {"hugepages-2Mi": "1Gi"}}
    sidecar = {"name": "s", "image": "i", "restartPolicy": "Always", "resources": pages}
    patch = {"podPatch": {"spec": {"initContainers": [sidecar]}}}
    facts = NodeFacts({}, {GPU: 8, EFA: 32, "hugepages-2Mi": 2**40})
    of_pages = network_of(facts, NetworkRequest(2, 8))
    assert isinstance(of_pages, NodeNetwork)
    placement = {**PLACEMENT, "gpusPerNode": 8, "blocks": [{"path": "", "nodes": ["n0", "n1"]}]}
    given = network_status(of_pages).to_wire()
    found = record(
        "job",
        status(ConditionType.RUNNING, placement=placement, network=given),
        **{**SHAPE, "workers": {**SHAPE["workers"], **patch}},
    )
    assert node_resources(found.view)["hugepages-2Mi"] == 6 * 2**30


def reader(found: JobRecord, *here: Node) -> ClusterReader:
    informers = Informers(
        cast(KubeApi, None), None, False, ChangeHandlers(*[lambda *_: None] * 7), Metrics()
    )
    for each in here:
        informers.nodes._store(each.name, None, NodeRecord(each, ""))
    informers.jobs._store(found.uid, None, found)
    return ClusterReader(informers, CheckedJobs(), lambda *_: frozenset(), Config())


def test_a_node_that_lost_devices_starts_no_pod_of_the_job() -> None:
    found = on_efa("n0", "n1")
    whole, broken, bare = (*nodes("n0", nics=32), *nodes("n1", nics=31), *nodes("n2"))
    seen = reader(found, whole, broken, bare)
    assert seen.start_obstacles(found, whole) == ()
    assert seen.start_obstacles(found, broken) == (f"has fewer than 32 {EFA}",)
    assert seen.start_obstacles(found, bare) == (f"has fewer than 32 {EFA}",)


def test_pods_that_a_job_has_not_created_yet_are_charged_with_their_devices() -> None:
    found = on_efa("n0", "n1")
    seen = reader(found, *nodes("n0", "n1", nics=32))
    [(charge, count)] = seen.promised("ns", {})
    assert (charge.amounts[f"requests.{EFA}"], count) == (32, 2)
    waiting = record("job", {}, **SHAPE)
    given = replace(assignment(0), network=network(4))
    [(charge, _)] = reader(waiting, *nodes("n0", "n1")).promised("ns", {"job": given})
    assert charge.amounts[f"requests.{EFA}"] == 4


def moving(found: JobRecord, *here: Node) -> Any:
    running = replace(as_running(found), leaving=frozenset({"n1"}))
    return find_place_elsewhere(running, cluster(here, tuple(in_use([found])), running=(running,)))


def test_a_drained_job_goes_to_nodes_of_its_network_and_else_to_others() -> None:
    found = on_efa("n0", "n1")
    here = [*nodes("n0", nics=32), *nodes("n1", nics=32, cordoned=True)]
    moved = moving(found, *here, *nodes("a0"), *nodes("n2", nics=32))
    assert set(moved.nodes) == {"n0", "n2"}
    assert moved.network.row == "aws-efa" and moved.resources[EFA] == 32
    moved = moving(found, *here, *nodes("a0", "a1"))
    assert set(moved.nodes) == {"a0", "a1"}
    assert moved.network.row == "tcp" and EFA not in moved.resources
    assert moving(found, *here, *nodes("a0")) is None


def test_a_better_placement_is_on_the_network_that_the_job_has() -> None:
    found = on_efa("n0", "n1")
    here = [*nodes("n0", nics=32, leaf="l0"), *nodes("n1", nics=32, leaf="l1")]
    for nics, expected in ((32, {"b0", "b1"}), (0, None)):
        near = nodes("b0", "b1", nics=nics, leaf="l2")
        running = as_running(found)
        state = cluster([*here, *near], tuple(in_use([found])), THIN, running=(running,))
        hint, offer = find_better_placement(running, state)
        assert (set(offer.nodes) if offer else None) == expected, hint
        assert offer is None or (offer.network is not None and offer.network.row == "aws-efa")


BAD = HealthFinding("gpu/missing", "condition GPUMissing=True")


@pytest.mark.parametrize("why", [{"health": (BAD,)}, {"cordoned": True}, {"ready": False}])
def test_a_job_with_a_node_that_takes_no_pods_finds_a_better_place_on_its_network(
    why: dict[str, Any],
) -> None:
    found = on_efa("n0", "n1")
    here = [*nodes("n0", nics=32, leaf="l0"), *nodes("n1", nics=32, leaf="l1")]
    here[1] = replace(here[1], **why)
    running = as_running(found)
    for nics, expected in ((32, {"b0", "b1"}), (0, None)):
        near = nodes("b0", "b1", nics=nics, leaf="l2")
        state = cluster([*here, *near], tuple(in_use([found])), THIN, running=(running,))
        _, offer = find_better_placement(running, state)
        assert (set(offer.nodes) if offer else None) == expected


def test_the_network_is_written_with_the_placement_and_goes_with_it() -> None:
    given = replace(assignment(0), network=network())
    actions, observed = settle(make_observed(decision=given))
    assert actions.status["network"] == NETWORK
    stopped = make_observed(dict(actions.status), spec={"suspend": True})
    assert "network" not in settle(stopped)[0].status
    assert observed.view.stored_network == NETWORK


def test_a_restart_on_the_same_nodes_keeps_the_network() -> None:
    before = status(ConditionType.RUNNING, network=NETWORK)
    gang = (failed(0, 137), pod(1))
    actions, _ = settle(make_observed(before, pods=gang))
    assert actions.status["attempt"] == 1
    assert actions.status["placement"]["attempt"] == 1
    assert actions.status["network"] == NETWORK


def test_a_job_that_queues_again_has_no_network() -> None:
    before = status(ConditionType.RUNNING, network=NETWORK)
    lost = {"n0": node("n0"), "n1": node("n1", ready=False, since=7200)}
    actions, _ = settle(make_observed(before, pods=(pod(0), failed(1, 137)), nodes=lost))
    assert "placement" not in actions.status and "network" not in actions.status


def test_a_job_of_an_older_release_keeps_nothing_but_its_placement() -> None:
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1))))
    assert "network" not in actions.status
    found = record("job", status(ConditionType.RUNNING, placement=PLACEMENT), **SHAPE)
    assert EFA not in node_resources(found.view)
