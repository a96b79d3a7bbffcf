"""A job moves off nodes that are drained, and its pods are protected until then. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.node_health import HealthFinding
from llmtrain_core.topology.inventory import Node, Taint
from llmtrain_operator.cache.disruption_budgets import (
    BudgetRecord,
    LabelSelector,
    budget_record,
    covering_budget,
)
from llmtrain_operator.cache.records import NodeRecord, node_record
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.manifests.disruption_budget import make_disruption_budget
from llmtrain_operator.manifests.names import JobIdentity
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    assignment,
    failed,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
    text,
)
from tests.support.operator_harness.scheduling import record

pytestmark = pytest.mark.unit

NAMES = ("n0", "n1", "n2", "n3")
SAVED = {"step": 30, "totalSteps": 100, "lastCheckpointStep": 20}
CHECKPOINT = {"checkpoint": {"uri": "file:///shared"}}
TIMEOUT = 600.0


def cluster(*cordoned: str) -> dict[str, NodeRecord]:
    return {name: node(name, cordoned=name in cordoned) for name in NAMES}


def drained(*cordoned: str, progress: dict[str, Any] = SAVED, **more: Any) -> Observed:
    """A running job on n0 and n1, and these nodes cordoned."""
    before = status(ConditionType.RUNNING, progress=progress, **more.pop("status", {}))
    parts = {"pods": (pod(0), pod(1)), "nodes": cluster(*cordoned or ("n1",))} | more
    return make_observed(before, drain_timeout=TIMEOUT, **parts)


def later(observed: Observed, seconds: float, **progress: int) -> Observed:
    """The same job after some seconds, with a newer report."""
    stored = dict(observed.raw["status"])
    stored["progress"] = {**stored.get("progress", {}), **progress}
    raw = {**observed.raw, "status": stored}
    return replace(observed, now=NOW + timedelta(seconds=seconds), raw=raw)


def protects(actions: Actions, observed: Observed) -> bool:
    """Whether the gang has its budget after these actions."""
    if actions.delete_budget is not None:
        return False
    return actions.create_budget or observed.budget is not None


def budget(**changes: Any) -> BudgetRecord:
    made = make_disruption_budget(JobIdentity("ns", "job", "uid"), 2)
    made["metadata"]["uid"] = "budget"
    return replace(budget_record(made), **changes)


def test_a_running_gang_gets_a_budget_that_permits_no_eviction() -> None:
    observed = drained(nodes=cluster("n3"))
    actions, _ = settle(observed)
    assert actions.create_budget and actions.delete_budget is None
    made = make_disruption_budget(JobIdentity("ns", "job", "uid"), 2)
    assert made["spec"]["minAvailable"] == 2
    assert made["spec"]["selector"] == {"matchLabels": {"llmtrain.dev/job-uid": "uid"}}
    [owner] = made["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("uid", True)
    actions, _ = settle(replace(observed, budget=budget()))
    assert not actions.create_budget and actions.delete_budget is None


@pytest.mark.parametrize(
    "changes",
    [{"minimum": 1}, {"minimum": None}, {"selector": None}, {"selector": LabelSelector()}],
)
def test_a_budget_that_was_changed_is_replaced(changes: dict[str, Any]) -> None:
    observed = drained(nodes=cluster("n3"), budget=budget(**changes))
    actions, _ = settle(observed)
    assert actions.delete_budget == observed.budget
    assert settle(replace(observed, budget=None))[0].create_budget


@pytest.mark.parametrize(
    "job",
    [
        make_observed(status(), pods=(pod(0, "Pending"), pod(1, "Pending"))),
        make_observed(status(ConditionType.RUNNING), spec={"suspend": True}),
        make_observed(status(ConditionType.SUCCEEDED, completionTime=ago(5))),
        make_observed(status(ConditionType.RUNNING), pods=(failed(0, 137), pod(1))),
        make_observed(
            status(ConditionType.RUNNING),
            metadata={"deletionTimestamp": ago(1), "finalizers": ["orphan"]},
            pods=(pod(0), pod(1)),
        ),
    ],
    ids=["starting", "suspended", "finished", "restarting", "orphaning"],
)
def test_a_job_that_lets_go_has_no_budget(job: Observed) -> None:
    actions, after = settle(replace(job, budget=budget()))
    assert not protects(actions, after)


def test_a_budget_of_others_takes_precedence() -> None:
    observed = drained(nodes=cluster("n3"), covering_budget="theirs")
    assert not settle(observed)[0].create_budget
    assert not protects(*settle(replace(observed, budget=budget())))


def test_a_cordon_is_recorded_and_shown() -> None:
    actions, _ = settle(drained())
    move = actions.status["move"]
    assert move["nodes"] == ["n1"] and move["afterCheckpoint"] == 20
    assert move["deadline"] == ago(-TIMEOUT)
    assert reason(actions, ConditionType.RUNNING) == ("True", "NodeDraining")
    shown = text(actions, ConditionType.RUNNING)
    assert shown.startswith("n1 (cordoned): the job moves after a checkpoint newer than step 20")
    assert actions.status["placement"] == PLACEMENT and not actions.delete_pods
    assert actions.reconcile_after is not None and actions.reconcile_after <= TIMEOUT


@pytest.mark.parametrize("key", ["ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted"])
def test_the_taint_of_an_autoscaler_is_a_drain(key: str) -> None:
    taint = {"key": key, "effect": "NoSchedule"}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    raw = {"metadata": {"name": "n1"}, "spec": {"taints": [taint]}, "status": ready}
    tainted = node_record(raw)
    actions, _ = settle(drained(nodes=cluster() | {"n1": tainted}))
    assert actions.status["move"]["nodes"] == ["n1"]
    own = NodeRecord(Node("n1", {}, {}, taints=(Taint("team", "a", "NoSchedule"),)), ago(60))
    actions, _ = settle(drained(nodes=cluster("n3") | {"n1": own}))
    assert "move" not in actions.status


def test_the_job_moves_after_a_newer_checkpoint_and_lets_go() -> None:
    offer = assignment(1, "n2", "n3")
    actions, observed = settle(drained(decision=offer, budget=budget()))
    assert actions.status["placement"]["attempt"] == 0, "no checkpoint is newer than the cordon"
    assert protects(actions, observed)
    actions, observed = settle(later(observed, 60, step=41, lastCheckpointStep=40))
    assert (actions.status["attempt"], actions.status["restarts"]) == (1, 0)
    assert actions.status["placement"]["blocks"][0]["nodes"] == ["n2", "n3"]
    assert reason(actions, ConditionType.RUNNING) == ("False", "Moved")
    assert "n1 (cordoned)" in text(actions, ConditionType.RUNNING)
    assert not actions.status.get("failures") and "move" not in actions.status
    assert {victim.attempt for victim in actions.delete_pods} == {0}
    assert not protects(actions, observed), "released"


def test_a_spare_takes_the_ranks_of_a_drained_node() -> None:
    alone = [{"path": "", "nodes": ["n0", "n1"]}]
    placement = {**PLACEMENT, "blocks": alone, "spares": [{"path": "", "nodes": ["n2"]}]}
    _, observed = settle(drained(status={"placement": placement}))
    actions, _ = settle(later(observed, 60, lastCheckpointStep=40))
    assert actions.status["placement"]["blocks"] == [{"path": "", "nodes": ["n0", "n2"]}]
    assert actions.status["restarts"] == 0 and reason(actions, ConditionType.RUNNING)[1] == "Moved"


def test_a_placement_on_a_node_that_is_drained_meanwhile_is_not_accepted() -> None:
    _, observed = settle(drained("n0", "n1", decision=assignment(1, "n1", "n3")))
    actions, _ = settle(later(observed, 60, lastCheckpointStep=40))
    assert actions.status["placement"]["attempt"] == 0


def test_without_another_place_the_budget_gives_way_after_the_timeout() -> None:
    _, observed = settle(drained(budget=budget()))
    actions, after = settle(later(observed, TIMEOUT - 1, lastCheckpointStep=40))
    assert protects(actions, after)
    shown = text(actions, ConditionType.RUNNING)
    assert "the job moves when other nodes are free; its pods may be evicted from" in shown
    actions, after = settle(later(observed, TIMEOUT, lastCheckpointStep=40))
    assert not protects(actions, after)
    assert actions.status["phase"] == "Running" and not actions.delete_pods


@pytest.mark.parametrize("spec", [{}, CHECKPOINT])
def test_at_the_deadline_only_a_job_that_saves_checkpoints_moves(spec: dict[str, Any]) -> None:
    offer = assignment(1, "n2", "n3")
    _, observed = settle(drained(progress={}, spec=spec, decision=offer, budget=budget()))
    assert observed.raw["status"]["placement"]["attempt"] == 0
    actions, after = settle(later(observed, TIMEOUT))
    assert actions.status["placement"]["attempt"] == (1 if spec else 0)
    assert not protects(actions, after)
    if not spec:
        assert "saves no checkpoint" in text(actions, ConditionType.RUNNING)


def test_a_node_that_is_uncordoned_ends_the_drain() -> None:
    _, observed = settle(drained(budget=budget()))
    actions, after = settle(replace(later(observed, TIMEOUT + 1), nodes=cluster("n3")))
    assert "move" not in actions.status and protects(actions, after)
    assert reason(actions, ConditionType.RUNNING) == ("True", "Training")


def test_a_second_node_does_not_extend_the_time_of_the_first() -> None:
    _, observed = settle(drained())
    both = replace(later(observed, 300), nodes=cluster("n0", "n1"))
    actions, _ = settle(both)
    assert actions.status["move"]["nodes"] == ["n0", "n1"]
    assert actions.status["move"]["deadline"] == ago(-TIMEOUT)


def noticed(finding: HealthFinding) -> dict[str, NodeRecord]:
    marked = node("n1")
    return cluster("n3") | {"n1": replace(marked, node=replace(marked.node, health=(finding,)))}


SPOT = HealthFinding(
    "aws/spot-interruption",
    "taint aws-node-termination-handler/spot-itn=1:NoSchedule",
    leave=True,
    move_within=30.0,
)


def test_a_spot_notice_moves_the_job_before_the_node_stops() -> None:
    offer = assignment(1, "n2", "n0")
    actions, observed = settle(drained(nodes=noticed(SPOT), spec=CHECKPOINT, decision=offer))
    assert actions.status["move"]["deadline"] == ago(-30)
    assert text(actions, ConditionType.RUNNING).startswith(
        "n1 (aws/spot-interruption: taint aws-node-termination-handler/spot-itn=1:NoSchedule):"
        " the job moves after a checkpoint newer than step 20"
    )
    actions, _ = settle(later(observed, 30))
    assert actions.status["attempt"] == 1 and actions.status["restarts"] == 0
    assert not actions.status.get("failures")
    assert "n1 (aws/spot-interruption: " in text(actions, ConditionType.RUNNING)


def test_a_node_that_stops_sooner_shortens_the_time_of_the_first() -> None:
    _, observed = settle(drained("n0"))
    both = {**noticed(SPOT), **cluster("n0"), "n1": noticed(SPOT)["n1"]}
    actions, observed = settle(replace(later(observed, 100), nodes=both))
    assert actions.status["move"]["deadline"] == ago(-130)
    actions, _ = settle(later(observed, 110))
    assert actions.status["move"]["deadline"] == ago(-130), "the notice is not given again"


@pytest.mark.parametrize("changes", [{"leave": False}, {"in_force": False}])
def test_a_finding_that_is_only_avoided_or_has_no_effect_moves_no_job(
    changes: dict[str, Any],
) -> None:
    actions, _ = settle(drained(nodes=noticed(replace(SPOT, **changes))))
    assert "move" not in actions.status
    assert reason(actions, ConditionType.RUNNING)[0] == "True"


def test_a_job_with_an_invalid_spec_does_not_block_a_drain() -> None:
    invalid = {"failurePolicy": {"rules": [{"name": "later", "action": "FailJob"}]}}
    _, observed = settle(drained(spec=invalid, budget=budget()))
    assert observed.raw["status"]["move"]["nodes"] == ["n1"]
    actions, after = settle(later(observed, TIMEOUT))
    assert not protects(actions, after) and not actions.delete_pods


def test_a_pod_that_has_finished_its_ranks_is_not_worth_a_move() -> None:
    actions, _ = settle(drained(pods=(pod(0), pod(1, "Succeeded"))))
    assert "move" not in actions.status


def foreign(selector: dict[str, Any] | None) -> BudgetRecord:
    spec = {"maxUnavailable": 1} | ({} if selector is None else {"selector": selector})
    metadata = {"uid": "x", "name": "theirs", "namespace": "ns"}
    return budget_record({"metadata": metadata, "spec": spec})


@pytest.mark.parametrize(
    ("selector", "covers"),
    [
        (None, False),
        ({}, True),
        ({"matchLabels": {"llmtrain.dev/job-name": "job"}}, True),
        ({"matchLabels": {"llmtrain.dev/job-name": "other"}}, False),
        ({"matchLabels": {"llmtrain.dev/node-index": "1"}}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}, True),
        (
            {
                "matchExpressions": [
                    {"key": "llmtrain.dev/attempt", "operator": "In", "values": ["0", "1"]}
                ]
            },
            True,
        ),
    ],
)
def test_which_budgets_of_others_select_the_pods(
    selector: dict[str, Any] | None, covers: bool
) -> None:
    job = record("job", status(ConditionType.RUNNING))
    assert covering_budget(job, [foreign(selector)]) == ("theirs" if covers else "")
    assert covering_budget(record("job"), [foreign(selector)]) == "", "it has no pods"
