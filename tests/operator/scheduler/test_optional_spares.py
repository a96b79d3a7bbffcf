"""After its first placement a job goes on with fewer spares rather than wait for them. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.queueing import Assignment, PendingJob
from llmtrain_operator.scheduler.decisions import JobDecision
from tests.support.operator_harness.observed import (
    PLACEMENT,
    failed,
    make_observed,
    node,
    pod,
    settle,
)
from tests.support.operator_harness.observed import status as status_of
from tests.support.operator_harness.scheduling import (
    LEAF,
    as_pending,
    cluster,
    decide,
    nodes,
    record,
    refusal,
    waiting_job,
)

pytestmark = pytest.mark.unit
WANTED: dict[str, Any] = {"topology": {"spares": 2}}


def job(started: bool, **topology: object) -> PendingJob:
    """A job of two nodes that wants two spares."""
    found = waiting_job("job-1", 2, topology={"spares": 2, **topology})
    return replace(found, request=replace(found.request, spares_optional=started))


def answer(found: PendingJob, count: int, per_leaf: int = 4) -> JobDecision:
    [decision] = decide([found], cluster(nodes(count, per_leaf=per_leaf))).values()
    return decision


def test_only_the_first_placement_waits_for_spares() -> None:
    before = as_pending(record("job", status_of(placed=False) | {"startTime": ""}, **WANTED))
    after = as_pending(record("job", status_of(placed=False), **WANTED))
    assert isinstance(before, PendingJob) and isinstance(after, PendingJob)
    assert not before.request.spares_optional and before.node_count == 4
    assert after.request.spares_optional and after.node_count == 2


@pytest.mark.parametrize(("free", "spares"), [(2, 0), (3, 1), (4, 2), (6, 2)])
def test_it_gets_as_many_spares_as_are_free(free: int, spares: int) -> None:
    decision = answer(job(started=True), free)
    assert isinstance(decision, Assignment)
    placed = decision.placement
    assert (len(placed.nodes), len(placed.spares)) == (2, spares)
    if free < 4:
        text = refusal(answer(job(started=False), free)).message
        assert "2 nodes and 2 spares" in text


def test_what_it_waits_for_does_not_include_spares() -> None:
    text = refusal(answer(job(started=True), 1)).message
    assert "needs 2 nodes" in text and "spare" not in text


def test_a_domain_with_room_for_all_spares_comes_first() -> None:
    # Leaves of 3, 3 and 2 nodes: none has four. With leaves of 4 there is room for all.
    short = answer(job(True, require="leaf"), 8, per_leaf=3)
    assert isinstance(short, Assignment) and len(short.placement.spares) == 1
    ample = answer(job(True, require="leaf"), 7, per_leaf=4)
    assert isinstance(ample, Assignment) and len(ample.placement.spares) == 2
    used = {node.path["leaf"] for node in (*ample.placement.nodes, *ample.placement.spares)}
    assert used == {"l0"}, LEAF


def test_the_shortage_is_shown() -> None:
    decision = answer(job(started=True), 3)
    assert isinstance(decision, Assignment)
    observed = make_observed(status_of(placed=False), spec=WANTED, decision=decision)
    actions, _ = settle(observed)
    placement = actions.status["placement"]
    assert actions.status["placementSummary"].endswith(" · spares: 1 of 2")
    assert placement["explanation"].endswith("; spares: 1 of 2")
    assert [len(block["nodes"]) for block in placement["spares"]] == [1]


def test_a_used_spare_is_shown_as_missing() -> None:
    alone = [{"path": "", "nodes": ["n0", "n1"]}]
    spared = {**PLACEMENT, "blocks": alone, "spares": [{"path": "", "nodes": ["n2", "n3"]}]}
    evicted = failed(1, 0, exit_code=None, disruption="Evicted", reason="Evicted")
    observed = make_observed(
        status_of(placement=spared),
        spec=WANTED,
        pods=(pod(0), evicted),
        nodes={name: node(name) for name in ("n0", "n1", "n2", "n3")},
    )
    actions, _ = settle(observed)
    assert actions.status["placementSummary"] == "2 nodes · spares: 1 of 2"
