"""A gang leaves nodes where its pods cannot start: no restart, no failure of the node. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.node_health import HealthFinding
from llmtrain_core.placement import Request, start_obstacles
from llmtrain_core.queueing.quarantine import Quarantine
from llmtrain_core.topology.inventory import Node, Taint
from llmtrain_core.validation.check import check
from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.cache.records import NodeRecord, PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.policies.blocked_nodes import SHARED_BACKOFF_SECONDS
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    failed,
    make_observed,
    pod,
    reason,
    settle,
    status,
    text,
)
from tests.support.operator_harness.scheduling import as_pending, quarantine_after, record

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
RUNNING = ConditionType.RUNNING
SPEC: dict[str, Any] = {
    "workers": {
        "gpusPerNode": 2,
        "nodeSelector": {"pool": "a"},
        "resources": {"limits": {"cpu": 4}},
    }
}


def fit(name: str, **changes: Any) -> NodeRecord:
    offered = {"cpu": 8000, "memory": 2**40, "pods": 110, GPU: 2}
    offered |= changes.pop("allocatable", {})
    return NodeRecord(Node(name, {"pool": "a"}, offered, **changes), ago(3600))


Used = Mapping[tuple[str, str], int]


def obstacles(used: Used) -> Callable[[Node], tuple[str, ...]]:
    """The obstacles of the job on nodes of which others use a part."""
    checked = check("job", job_object("job", "ns", **SPEC)["spec"])
    assert not isinstance(checked, list), checked
    return lambda node: start_obstacles(Request.of(checked), node, used)


def observed(
    n1: NodeRecord,
    pods: tuple[PodRecord, ...] = (),
    stored: dict[str, Any] | None = None,
    used: Used | None = None,
) -> Observed:
    nodes = {"n0": fit("n0"), "n1": n1, "n2": fit("n2")}
    return make_observed(
        stored or status(),
        spec=SPEC,
        pods=pods,
        nodes=nodes,
        start_obstacles=obstacles(used or {}),
    )


def assert_left(actions: Actions, why: str, restarts: int = 0) -> None:
    assert "placement" not in actions.status
    assert actions.status.get("restarts", 0) == restarts
    assert actions.status["attempt"] == 1
    assert why in text(actions, ConditionType.PLACED)
    found = quarantine_after([record("a", dict(actions.status))], NOW.timestamp())
    assert found == Quarantine(), "no node is blamed"


UNFIT = {
    "allocatable falls from 8 to 7": (fit("n1", allocatable={GPU: 1}), {}, f"fewer than 2 {GPU}"),
    "a NoSchedule taint": (fit("n1", taints=(Taint("x", "", "NoSchedule"),)), {}, "taint"),
    "a NoExecute taint": (fit("n1", taints=(Taint("x", "", "NoExecute"),)), {}, "taint"),
    "a cordon": (fit("n1", cordoned=True), {}, "cordoned"),
    "disk pressure": (
        fit("n1", taints=(Taint("node.kubernetes.io/disk-pressure", "", "NoSchedule"),)),
        {},
        "taint",
    ),
    "the label of the selector is removed": (
        NodeRecord(Node("n1", {}, fit("n1").node.allocatable), ago(3600)),
        {},
        "selector",
    ),
    "a foreign pod takes the CPU": (fit("n1"), {("n1", "cpu"): 5000}, "cpu in use"),
    "a foreign pod takes a GPU": (fit("n1"), {("n1", GPU): 1}, f"{GPU} in use"),
    "the pod slots are full": (fit("n1"), {("n1", "pods"): 110}, "pods in use"),
    "an agent reports a missing GPU": (
        fit("n1", health=(HealthFinding("aks/GPUMissing", "condition GPUMissing=True"),)),
        {},
        "avoided for aks/GPUMissing: condition GPUMissing=True",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_no_pod_is_created_on_a_node_where_it_cannot_start(case: str) -> None:
    n1, used, why = UNFIT[case]
    actions, _ = settle(observed(n1, used=used))
    assert not actions.create_pods
    assert_left(actions, "cannot start on n1 (")
    assert why in text(actions, ConditionType.PLACED)
    assert reason(actions, ConditionType.PLACED) == ("False", "Unschedulable")
    assert as_pending(record("a", dict(actions.status))) is not None, "queued at once"


@pytest.mark.parametrize("case", UNFIT)
def test_a_rank_that_crashes_is_not_restarted_on_such_a_node(case: str) -> None:
    n1, used, _ = UNFIT[case]
    actions, _ = settle(observed(n1, (failed(0, 137), pod(1)), status(RUNNING), used))
    assert_left(actions, "cannot restart on n1 (", restarts=1)


def test_a_drain_while_the_gang_starts_moves_it() -> None:
    drained = fit("n1", cordoned=True)
    waiting, _ = settle(observed(drained, (pod(0), pod(1, "Pending", deleting=True))))
    assert not waiting.create_pods and "placement" in waiting.status, "its pod is still there"
    actions, _ = settle(observed(drained, (pod(0),)))
    assert_left(actions, "cannot start on n1 (cordoned)")
    assert [gone.index for gone in actions.delete_pods] == [0]


def test_a_rank_that_crashes_is_restarted_on_the_same_nodes_while_they_fit() -> None:
    own = {("n1", "cpu"): 4000}
    actions, _ = settle(observed(fit("n1"), (failed(0, 137), pod(1)), status(RUNNING), own))
    assert actions.status["placement"]["blocks"] == PLACEMENT["blocks"]


def with_spares(*names: str) -> dict[str, Any]:
    levels = [{"level": "leaf", "domains": 1}, {"level": "node", "domains": 2}]
    spares = [{"path": "leaf-1", "nodes": list(names)}]
    return {**status(), "placement": {**PLACEMENT, "levels": levels, "spares": spares}}


def test_a_spare_replaces_a_blocked_node_before_the_start() -> None:
    blocked = fit("n1", cordoned=True)
    actions, _ = settle(observed(blocked, stored=with_spares("n2")))
    assert actions.status["attempt"] == 1 and actions.status.get("restarts", 0) == 0
    assert [node for b in actions.status["placement"]["blocks"] for node in b["nodes"]] == [
        "n0",
        "n2",
    ]
    assert actions.create_pods == (0, 1)


def test_a_tainted_spare_replaces_nothing() -> None:
    tainted = fit("n2", taints=(Taint("x", "", "NoSchedule"),))
    before = observed(fit("n1", cordoned=True), stored=with_spares("n2"))
    actions, _ = settle(replace(before, nodes={**before.nodes, "n2": tainted}))
    assert_left(actions, "cannot start on n1 (cordoned)")


def refused(seconds: float = 1.0, message: str = "0/2 nodes are available") -> PodRecord:
    return pod(
        1,
        "Pending",
        bound=False,
        reason="Unschedulable",
        message=message,
        refused_since=ago(seconds),
    )


def test_a_refused_pod_on_a_node_that_filled_up_leaves_it_at_once() -> None:
    gang = (pod(0), refused(0.0))
    actions, _ = settle(observed(fit("n1"), gang, used={("n1", "cpu"): 8000}))
    assert_left(actions, "cannot start on n1 (cpu in use)")
    assert "failures" not in actions.status and "backoffUntil" not in actions.status
    assert [gone.index for gone in actions.delete_pods] == [0, 1]


@pytest.mark.parametrize(("seconds", "left"), [(4.0, False), (5.0, True)])
def test_a_refusal_without_a_known_cause_releases_the_nodes_within_seconds(
    seconds: float, left: bool
) -> None:
    gang = (pod(0), refused(seconds, 'persistentvolumeclaim "data" not found'))
    actions, _ = settle(observed(fit("n1"), gang))
    if not left:
        assert "placement" in actions.status and actions.reconcile_after == pytest.approx(1.0)
        return
    assert_left(actions, 'cannot be scheduled on n1: persistentvolumeclaim "data" not found')
    assert actions.status["backoffUntil"] == ago(-5)
    waiting = {**actions.status, "backoffUntil": None}
    candidate = as_pending(record("a", {k: v for k, v in waiting.items() if v is not None}))
    assert candidate is not None and candidate.avoided_nodes == {"n1"}


@pytest.mark.parametrize("skew", [-120, 120])
def test_a_difference_of_clocks_does_not_shorten_the_wait_for_a_refused_pod(skew: int) -> None:
    gang = (pod(0), refused(skew, "0/2 nodes are available"))
    for seconds, left in ((4.0, False), (5.0, True)):
        before = replace(observed(fit("n1"), gang), refused_seconds={gang[1].uid: seconds})
        assert ("placement" not in settle(before)[0].status) == left


def test_a_gang_that_is_scheduled_together_waits_for_its_pods() -> None:
    actions, _ = settle(observed(fit("n1"), (refused(60.0),)))
    assert actions.create_pods == (0,) and "placement" in actions.status


def test_a_short_limit_of_the_start_blames_nobody_for_a_refusal() -> None:
    before = observed(fit("n1"), (pod(0), refused(0.5)), status(attemptStartTime=ago(2)))
    spec = {**before.raw["spec"], "failurePolicy": {"startupTimeout": "2s"}}
    after = replace(before, raw={**before.raw, "spec": spec}, checked=check("job", spec))
    actions, _ = settle(after)
    assert_left(actions, "cannot be scheduled on n1")


def delay(uid: str, unstarted: int = 0, **situation: Any) -> float | None:
    """Seconds until a job queues again whose node a foreign pod has taken meanwhile."""
    nodes = {"n0": fit("n0"), "n1": fit("n1", cordoned=True)}
    observed = make_observed(
        status(unstartedAttempts=unstarted),
        metadata={"uid": uid},
        pods=(pod(0, owner=uid), refused()),
        nodes=nodes,
        **situation,
    )
    actions, _ = settle(observed)
    assert "placement" not in actions.status
    until = actions.status.get("backoffUntil")
    return None if until is None else (parse_time(until) - NOW).total_seconds()


def test_jobs_of_operators_that_share_nodes_queue_again_at_different_times() -> None:
    assert delay("alone") is None
    found = [delay(f"uid-{index}", shares_nodes=True) or 0 for index in range(100)]
    assert max(found) <= SHARED_BACKOFF_SECONDS
    pairs = list(zip(found[::2], found[1::2], strict=True))
    # A gang is bound within a second or two.
    assert sum(abs(one - other) >= 2 for one, other in pairs) > len(pairs) / 2
    assert max(delay(f"uid-{index}", 3, shares_nodes=True) or 0 for index in range(100)) > 60
