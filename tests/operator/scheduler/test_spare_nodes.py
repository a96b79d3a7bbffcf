"""Spare nodes are kept as long as no other job needs them. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import Allocation, Assignment
from llmtrain_core.topology.inventory import Node
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.scheduler.spares import spare_allocations, taken_spares
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
    cluster,
    decide,
    nodes,
    record,
    waiting_job,
)

pytestmark = pytest.mark.unit

SPARED: dict[str, Any] = {
    **PLACEMENT,
    "blocks": [{"path": "", "nodes": ["n0", "n1"]}],
    "spares": [{"path": "", "nodes": ["n2", "n3"]}],
    "explanation": "4 ranks on 2 nodes; spare: n2, n3; 1 node with no label",
}
WANTED = {"topology": {"spares": 2}}


def owner(name: str = "owner") -> JobRecord:
    return record(name, status(placement=SPARED), **WANTED)


def spare(*names: str) -> Allocation:
    return Allocation("owner", "other", 0, names, {GPU: 8})


def find(gpus: int) -> Any:
    return lambda name: Node(name, {}, {GPU: gpus})


def test_the_spares_of_jobs_that_hold_nodes_are_known() -> None:
    [found] = spare_allocations([owner()], {"owner": ("n0",)})
    taken = {GPU: 2, "memory": 2**30, "pods": 1}
    assert (found.nodes, found.resources) == (("n2", "n3"), taken)
    assert list(spare_allocations([owner()], {})) == [], "its reservation has expired"


def test_a_waiting_job_gets_other_nodes_first_and_then_a_spare() -> None:
    state = replace(cluster(nodes(3)), spares=(spare("n0", "n1"),))
    [found] = decide([waiting_job("job-1", 1)], state).values()
    assert isinstance(found, Assignment) and found.nodes == ("n2",)
    [found] = decide([waiting_job("job-1", 3)], state).values()
    assert isinstance(found, Assignment) and set(found.nodes) == {"n0", "n1", "n2"}


def test_a_spare_is_taken_when_another_job_has_its_node() -> None:
    other = record("other", status(placement={**PLACEMENT, "blocks": [_block("n2")]}))
    none: dict[str, Assignment] = {}
    assert taken_spares(owner(), [owner()], none, find(2)) == frozenset()
    assert taken_spares(owner(), [owner(), other], none, find(2)) == {"n2"}
    # The node has enough GPUs for both.
    assert taken_spares(owner(), [owner(), other], none, find(4)) == frozenset()
    later = record("later")
    given = {"later": assignment(0, "n3", "n4")}
    assert taken_spares(owner(), [later], given, find(2)) == {"n3"}
    over = record("other", status(ConditionType.FAILED, placement=other.view.stored_placement))
    assert taken_spares(owner(), [over], none, find(2)) == frozenset()


def _block(*names: str) -> dict[str, Any]:
    return {"path": "", "nodes": [*names]}


def test_the_owner_shows_how_many_spares_are_left() -> None:
    before = status(placement=SPARED, placementSummary="2 nodes · 2 spare")
    gang = (pod(0), pod(1))
    observed = make_observed(before, spec=WANTED, pods=gang, taken_spares=frozenset({"n2"}))
    actions, after = settle(observed)
    placement = actions.status["placement"]
    assert placement["spares"] == [_block("n3")]
    assert placement["explanation"] == "4 ranks on 2 nodes; 1 node with no label; spares: 1 of 2"
    assert actions.status["placementSummary"] == "2 nodes · spares: 1 of 2"
    actions, _ = settle(replace(after, taken_spares=frozenset({"n2", "n3"})))
    assert "spares" not in actions.status["placement"]
    assert actions.status["placement"]["explanation"].endswith("; spares: 0 of 2")
    assert actions.status["placementSummary"] == "2 nodes · spares: 0 of 2"


def test_a_spare_that_another_job_got_replaces_no_node() -> None:
    names = ("n0", "n1", "n2", "n3")
    observed = make_observed(
        status(ConditionType.RUNNING, placement=SPARED, placementSummary="2 nodes · 2 spare"),
        spec=WANTED,
        pods=(pod(0), failed(1, 0, exit_code=None, disruption="Evicted", reason="Evicted")),
        nodes={name: node(name) for name in names},
        taken_spares=frozenset({"n2"}),
    )
    actions, _ = settle(observed)
    assert actions.status["placement"]["blocks"] == [_block("n0", "n3")]
