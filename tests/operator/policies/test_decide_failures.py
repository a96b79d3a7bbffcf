"""Failures of pods and nodes, and the resulting actions. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType, get_condition
from llmtrain_operator.cache.records import NodeRecord
from llmtrain_operator.job_state.observation import CreateError
from tests.support.operator_harness.harness import message
from tests.support.operator_harness.observed import (
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

pytestmark = pytest.mark.unit


def test_a_deleted_pod_of_a_running_gang_restarts_it() -> None:
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=(pod(0),)))
    assert actions.status["attempt"] == 1 and actions.status["restarts"] == 1
    assert actions.status["failures"][0]["reason"] == "PodDeleted"
    assert actions.status["placement"]["attempt"] == 1
    assert [victim.index for victim in actions.delete_pods] == [0]
    assert not actions.create_pods, "the old gang must be gone first"


CORPUS = message("CorpusMissing", "no folder /data", "spec.data.sources[0].uri", "mount it", 2)
PEER = message("PeerLost", "a peer was lost", "", "", 200)

FAILURES = [
    # pods, restarted?, reason, in the message
    ((failed(0, 2, CORPUS), pod(1)), False, "CorpusMissing", "spec.data.sources[0].uri: no folder"),
    ((failed(0, 1), pod(1)), False, "ExitCode", "exit code 1"),
    ((failed(0, 127, "garbage \x00\n"), pod(1)), False, "ExitCode", "garbage"),
    ((failed(0, 137), pod(1)), True, "ExitCode", "exit code 137"),
    ((failed(0, 143), pod(1)), True, "ExitCode", "exit code 143"),
    ((failed(0, 143, deleting=True), pod(1)), True, "PodDeleted", "deleted by another client"),
    ((failed(0, 137, reason="OOMKilled"), pod(1)), True, "OutOfMemory", "raise the memory limit"),
    ((failed(0, 200, PEER, at=70), pod(1)), True, "PeerLost", "a peer was lost"),
    ((failed(0, 200, PEER, at=1), failed(1, 2, CORPUS, at=0)), False, "CorpusMissing", "no folder"),
    ((failed(0, 200, PEER), failed(1, 139)), True, "ExitCode", "exit code 139"),
    ((pod(0, "Failed", reason="Evicted", message="disk"), pod(1)), True, "Evicted", "disk"),
    ((pod(0, "Failed", reason="not a reason!"), pod(1)), True, "PodFailed", "pod job-0-0"),
    ((failed(0, 2, message("no reason\n", "x", "", "", 2)), pod(1)), False, "ExitCode", "x"),
]


@pytest.mark.parametrize(("pods", "restarted", "why", "said"), FAILURES)
def test_failures(pods: Any, restarted: bool, why: str, said: str) -> None:
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods))
    entry = actions.status["failures"][-1]
    assert entry["reason"] == why
    assert said in entry["message"]
    if restarted:
        assert actions.status["attempt"] == 1
        assert reason(actions, ConditionType.RESTARTING) == ("True", "GangRestart")
        assert get_condition(actions.status["conditions"], ConditionType.FAILED) is None
        assert {victim.attempt for victim in actions.delete_pods} == {0}
        assert not actions.create_pods
    else:
        assert actions.status["phase"] == "Failed"
        assert reason(actions, ConditionType.FAILED) == ("True", why)
        assert said in text(actions, ConditionType.FAILED)
        assert "attempt" not in actions.status
        assert {victim.phase for victim in actions.delete_pods} <= {"Running"}


def test_a_lost_peer_waits_for_the_cause() -> None:
    actions, _ = settle(
        make_observed(status(ConditionType.RUNNING), pods=(failed(0, 200, PEER, at=2), pod(1)))
    )
    assert "failures" not in actions.status
    assert actions.reconcile_after == pytest.approx(58.0)


def test_a_peer_on_a_node_that_is_not_ready_is_the_cause() -> None:
    pods = (failed(0, 200, PEER, at=2), pod(1))
    nodes = {"n0": node("n0"), "n1": node("n1", ready=False, since=1)}
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=pods, nodes=nodes))
    (failure,) = actions.status["failures"]
    assert (failure["reason"], failure["node"]) == ("NodeLost", "n1")
    assert actions.status["restarts"] == 1
    assert "placement" not in actions.status


def test_max_restarts() -> None:
    observed = make_observed(
        status(
            ConditionType.RUNNING,
            restarts=3,
            restartsCountTowardsMax=3,
            attempt=3,
            placement={**PLACEMENT, "attempt": 3},
        ),
        pods=(failed(0, 137, attempt=3), pod(1, attempt=3)),
    )
    actions, _ = settle(observed)
    assert reason(actions, ConditionType.FAILED) == ("True", "TooManyRestarts")
    assert "spec.failurePolicy.maxRestarts" in text(actions, ConditionType.FAILED)


def test_without_restarts_the_reason_is_the_cause() -> None:
    observed = make_observed(
        status(ConditionType.RUNNING),
        spec={"failurePolicy": {"maxRestarts": 0}},
        pods=(failed(0, 137, reason="OOMKilled"), pod(1)),
    )
    actions, _ = settle(replace(observed, pods=observed.pods))
    assert reason(actions, ConditionType.FAILED)[0] == "True"


def test_only_ten_failures_are_kept() -> None:
    old = [
        {"time": ago(9000 - i), "attempt": i, "reason": "ExitCode", "message": ""}
        for i in range(10)
    ]
    observed = make_observed(
        status(ConditionType.RUNNING, failures=old, restarts=1),
        pods=(failed(0, 137), pod(1)),
        spec={"failurePolicy": {"maxRestarts": 100}},
    )
    actions, _ = settle(observed)
    assert len(actions.status["failures"]) == 10


@pytest.mark.parametrize(
    ("nodes", "lost"),
    [
        ({"n0": node("n0")}, True),
        ({"n0": node("n0"), "n1": node("n1", ready=False, since=100)}, True),
        ({"n0": node("n0"), "n1": node("n1", ready=False, since=3)}, False),
    ],
)
def test_a_lost_node_means_a_new_placement(nodes: dict[str, NodeRecord], lost: bool) -> None:
    actions, observed = settle(
        make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)), nodes=nodes)
    )
    if not lost:
        assert actions.reconcile_after is not None and actions.reconcile_after <= 27
        return
    assert actions.status["failures"][0]["reason"] == "NodeLost"
    assert "placement" not in actions.status
    assert reason(actions, ConditionType.PLACED) == ("False", "NotPlaced")
    # The pod on the lost node stays Terminating for ever: it must not hold the new gang up.
    offer = assignment(1, "n2", "n3")
    later = replace(
        observed,
        decision=offer,
        pods=(pod(1, deleting=True),),
        nodes={**nodes, "n2": node("n2"), "n3": node("n3")},
    )
    actions, _ = settle(later)
    assert actions.create_pods == (0, 1)


def test_a_cordoned_node_is_not_used_again() -> None:
    observed = make_observed(
        status(ConditionType.RUNNING),
        pods=(failed(0, 137), pod(1)),
        nodes={"n0": node("n0"), "n1": node("n1", cordoned=True)},
    )
    actions, _ = settle(observed)
    assert "placement" not in actions.status


def test_consecutive_failures_delay_the_next_attempt() -> None:
    failures = [
        {"time": ago(seconds), "attempt": 0, "reason": "ExitCode", "message": ""}
        for seconds in (30, 20, 1)
    ]
    actions, _ = settle(
        make_observed(
            status(failures=failures, restarts=3, attempt=3, placement={**PLACEMENT, "attempt": 3})
        )
    )
    assert not actions.create_pods
    assert actions.reconcile_after == pytest.approx(1.0)


def test_startup_timeout_releases_the_nodes() -> None:
    late = status(attemptStartTime=ago(601))
    actions, _ = settle(
        make_observed(late, pods=(pod(0), pod(1, "Pending", reason="ContainerCreating")))
    )
    assert actions.status["failures"][0]["reason"] == "StartupTimeout"
    assert "placement" not in actions.status and actions.status["attempt"] == 1
    assert len(actions.delete_pods) == 2


def test_image_pull_failure() -> None:
    bad = (pod(0, "Pending", reason="ErrImagePull"), pod(1, "Pending", reason="ImagePullBackOff"))
    actions, _ = settle(make_observed(status(), pods=bad))
    assert reason(actions, ConditionType.PODS_READY) == ("False", "ImagePullFailed")
    assert (
        text(actions, ConditionType.PODS_READY).find("spec.workers.image: example.com/trainer:1")
        > 0
    )
    actions, _ = settle(make_observed(status(attemptStartTime=ago(601)), pods=bad))
    assert reason(actions, ConditionType.FAILED) == ("True", "ImagePullFailed")
    assert len(actions.delete_pods) == 2


def test_a_create_error_is_shown() -> None:
    trouble = CreateError("QuotaExceeded", "spec.workers: quota; raise it")
    actions, _ = settle(make_observed(status(), create_error=trouble))
    assert reason(actions, ConditionType.PODS_READY) == ("False", "QuotaExceeded")
    assert actions.status["reason"] == "QuotaExceeded"
