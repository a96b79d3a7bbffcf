"""A job that would be better off elsewhere: it says so, and moves when asked, from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.placement import Request
from llmtrain_core.queueing import Assignment, ClusterState, RunningJob
from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import check
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.placement_status import placement_status
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.scheduler.cycle import find_better_placement
from llmtrain_operator.scheduler.decisions import RelocationHint
from llmtrain_operator.scheduler.jobs import running_job
from llmtrain_operator.scheduler.loop import Scheduler
from llmtrain_operator.scheduler.uplink_usage_cache import UplinkUsageCache
from tests.support.operator_harness.observed import (
    PLACEMENT,
    assignment,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
)
from tests.support.operator_harness.scheduling import (
    GPU,
    LEAF,
    SPINE,
    cluster,
    fabric,
    in_use,
    record,
)

pytestmark = pytest.mark.unit
ASKED = {"annotations": {"llmtrain.dev/replace": "0"}}
PODS = (pod(0), pod(1))
WORKERS = {"gpusPerNode": 8, "command": ["x"]}
HINT = RelocationHint(0, 2.0, "2 nodes · 1 leaf")


def running(**more: Any) -> dict[str, Any]:
    return status(ConditionType.RUNNING, **more)


def test_the_hint_is_shown_and_written_anew_only_when_it_changed() -> None:
    actions, _ = settle(make_observed(running(), pods=PODS, decision=HINT))
    found = actions.status["betterPlacement"]
    assert found == {"attempt": 0, "gain": 2.0, "summary": "2 nodes · 1 leaf"}
    again = make_observed(dict(actions.status), pods=PODS, decision=RelocationHint(0, 2.1, "other"))
    assert settle(again)[0].status["betterPlacement"] == found
    gone = make_observed(dict(actions.status), pods=PODS, decision=RelocationHint(0, 1.0, ""))
    assert "betterPlacement" not in settle(gone)[0].status
    kept = make_observed(dict(actions.status), pods=PODS)
    assert settle(kept)[0].status["betterPlacement"] == found, "no news: nothing is written"


def test_a_request_waits_for_a_newer_checkpoint() -> None:
    progress = {"step": 30, "totalSteps": 100, "lastCheckpointStep": 20}
    offer = assignment(1, "n2", "n3")
    actions, _ = settle(
        make_observed(running(progress=progress), metadata=ASKED, pods=PODS, decision=offer)
    )
    assert actions.status["move"] == {"attempt": 0, "afterCheckpoint": 20}
    assert actions.status["placement"]["attempt"] == 0, (
        "the last checkpoint is older than the request"
    )
    newer = {**dict(actions.status), "progress": {**progress, "step": 41, "lastCheckpointStep": 40}}
    nodes = {name: node(name) for name in ("n0", "n1", "n2", "n3")}
    actions, _ = settle(
        make_observed(newer, metadata=ASKED, pods=PODS, decision=offer, nodes=nodes)
    )
    assert (actions.status["attempt"], actions.status["restarts"]) == (1, 0)
    assert actions.status["placement"]["blocks"][0]["nodes"] == ["n2", "n3"]
    assert (
        reason(actions, ConditionType.RUNNING) == ("False", "Moved")
        and reason(actions, ConditionType.PLACED)[0] == "True"
    )
    assert "move" not in actions.status and [victim.attempt for victim in actions.delete_pods] == [
        0,
        0,
    ]


@pytest.mark.parametrize("metadata", [{}, {"annotations": {"llmtrain.dev/replace": "3"}}])
def test_nobody_moves_unasked(metadata: dict[str, Any]) -> None:
    progress = {"step": 41, "totalSteps": 100, "lastCheckpointStep": 40}
    before = running(progress=progress, move={"attempt": 0, "afterCheckpoint": 20})
    offer = assignment(1)
    actions, _ = settle(make_observed(before, metadata=metadata, pods=PODS, decision=offer))
    assert "move" not in actions.status and actions.status["placement"]["attempt"] == 0


def spread(*names: str, asked: bool = False) -> JobRecord:
    """A job on these nodes, with a checkpoint that is newer than its request."""
    found = record(
        "job",
        running(
            placement={**PLACEMENT, "gpusPerNode": 8, "blocks": [{"path": "", "nodes": [*names]}]},
            progress={"step": 41, "totalSteps": 100, "lastCheckpointStep": 40},
            move={"attempt": 0, "afterCheckpoint": 20},
        ),
        workers=WORKERS,
        parallelism={"tensor": 8, "data": 2},
    )
    if asked:
        found.raw["metadata"]["annotations"] = ASKED["annotations"]
    return found


def sitting(job: JobRecord) -> RunningJob:
    found = running_job(job, check(job.name, job.raw["spec"]), {}, 0.0, Request.of)
    assert found is not None
    return found


NODES = tuple(Node(f"n{i}", {SPINE: f"s{i // 4}", LEAF: f"l{i // 2}"}, {GPU: 8}) for i in range(8))


def state(
    job: JobRecord, nodes: tuple[Node, ...] = NODES, spine: int = 8, leaf: int = 4
) -> ClusterState:
    """Two spines of two leaves; the uplinks of spines and leaves are thin."""
    levels = [
        {"name": "spine", "nodeLabel": SPINE, "oversubscription": spine},
        {"name": "leaf", "nodeLabel": LEAF, "oversubscription": leaf},
        {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
    ]
    taken = tuple(in_use([job], [], {}))
    return cluster(nodes, taken, fabric({"levels": levels}), running=(sitting(job),))


def test_a_better_place_counts_what_the_job_itself_would_leave() -> None:
    job = spread("n0", "n4")
    hint, offer = find_better_placement(sitting(job), state(job))
    assert hint.attempt == 0 and hint.gain > 1.1 and hint.summary == "2 nodes · 1 leaf · 1 spine"
    assert offer is not None and offer.attempt == placement_status(offer).attempt == 1
    assert {"n0", "n4"} & set(offer.nodes) or len(offer.nodes) == 2
    near = spread("n0", "n1")
    assert find_better_placement(sitting(near), state(near)) == (RelocationHint(0, 1.0, ""), None)


def test_nodes_that_foreign_pods_fill_are_no_better_place() -> None:
    job = spread("n0", "n4")
    nodes = tuple(replace(node, allocatable={**node.allocatable, "pods": 3}) for node in NODES)
    full = {(node.name, "pods"): 3 for node in nodes if node.name not in ("n0", "n4")}
    assert find_better_placement(sitting(job), state(job, nodes))[1] is not None
    assert find_better_placement(sitting(job), replace(state(job, nodes), foreign=full))[1] is None


async def test_the_scheduler_offers_the_place_only_when_asked() -> None:
    jobs = {"job": spread("n0", "n4")}

    def stored(uid: str) -> JobView | None:
        return jobs[uid].view

    woken: list[str] = []
    for asked, kind in ((False, RelocationHint), (True, Assignment)):
        jobs["job"] = spread("n0", "n4", asked=asked)
        scheduler = Scheduler(dict, lambda _: state(jobs["job"]), stored, woken.append)
        await scheduler.cycle()
        assert isinstance(scheduler.decision("job"), kind) and woken.pop() == "job"
        await scheduler.cycle()
        assert isinstance(scheduler.decision("job"), kind), "it has time to take it"


USAGE = UplinkUsageCache()


def uplinks(now: ClusterState) -> Mapping[tuple[str, ...], float]:
    """What the next job would see as busy."""
    bare = replace(now.fabrics[None], uplinks={})
    return USAGE.add_to(bare, now.running, "default").uplinks


def test_uplink_usage_follows_labels_and_the_fabric() -> None:
    """The job sits where it sat; what its bytes cross changes with the map."""
    job = spread("n0", "n2")
    now = state(job)
    first = uplinks(now)
    assert first.keys() == {("s0", "l0"), ("s0", "l1")}
    assert uplinks(now) == first == now.fabrics[None].uplinks

    other = tuple(
        replace(n, labels={**n.labels, LEAF: "l9"}) if n.name == "n2" else n for n in NODES
    )
    assert uplinks(state(job, other)).keys() == {("s0", "l0"), ("s0", "l9")}

    joined = tuple(
        replace(n, labels={**n.labels, LEAF: "l0"}) if n.name == "n3" else n for n in NODES
    )
    wider = uplinks(state(job, joined))
    assert wider[("s0", "l0")] != first[("s0", "l0")], "a third node widens the uplink of l0"

    thinner = state(job, spine=8, leaf=2)
    assert uplinks(thinner) == thinner.fabrics[None].uplinks != first
