"""What a pod says of its GPU counts for its job, then for its namespace, then for all. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import PendingJob
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.job_state.status_draft import Actions
from tests.support.operator_harness.observed import (
    NOW,
    ago,
    failed,
    make_observed,
    pod,
    settle,
    status,
)
from tests.support.operator_harness.scheduling import as_pending, quarantine_after, record

pytestmark = pytest.mark.unit


def said(*codes: int, reason: str = "GpuError", **more: Any) -> str:
    text = f"Xid {codes}; Exception: CUDA error"
    return json.dumps({"error": {"reason": reason, "message": text, "xids": codes, **more}})


def after(*pods: PodRecord, **spec: Any) -> Actions:
    """What follows when pods of a running job end so."""
    return settle(make_observed(status(ConditionType.RUNNING), pods=pods, spec=spec))[0]


def entry(actions: Actions) -> dict[str, Any]:
    [found] = actions.status["failures"]
    return dict(found)


def test_a_gpu_that_cannot_be_used_costs_a_restart_and_the_node() -> None:
    actions = after(pod(0), failed(1, 202, said(79)))
    found = entry(actions)
    assert (found["reason"], found["evidence"], found["node"]) == ("GpuError", "Xid", "n1")
    assert "Xid (79,)" in found["message"] and found["exitCode"] == 202
    assert actions.status["restarts"] == 1
    assert "placement" not in actions.status, "it does not start on the same nodes again"
    job = record("job", {"failures": [found], "attempt": 1})
    waiting = as_pending(job)
    assert isinstance(waiting, PendingJob) and waiting.avoided_nodes == {"n1"}


def test_a_peer_that_fails_before_is_not_the_cause() -> None:
    """The collective of a peer may fail with an exception, which would end the job."""
    first = failed(0, 1, json.dumps({"error": {"reason": "Exception", "message": "NCCL"}}), at=9)
    found = entry(after(first, failed(1, 202, said(119), at=5)))
    assert (found["reason"], found["node"]) == ("GpuError", "n1")


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (said(31), 202, "GpuError"),  # the application, or contained
        (said(9999), 202, "GpuError"),
        (said(), 202, "GpuError"),
        (said(79), 1, "GpuError"),  # not as the contract has it
        (said(79), 200, "PeerLost"),
        ('{"error": {"reason": "GpuError", "message": "m", "xids": {"79": 1}}}', 202, "GpuError"),
        ("Xid 79", 202, "ExitCode"),
        (said(79, reason="NodeLost"), 202, "ExitCode"),
    ],
)
def test_which_messages_speak_against_a_node(message: str, code: int, reason: str) -> None:
    found = entry(after(failed(0, code, message), failed(1, 200)))
    against = message == said(79, reason="NodeLost")  # the reason is reserved, the code is its word
    assert (found["reason"], found["evidence"]) == (reason, "Xid" if against else "Job")


def test_a_failure_after_a_mild_xid_is_retried_on_the_same_nodes() -> None:
    actions = after(pod(0), failed(1, 202, said(94)))
    assert actions.status["placement"]["attempt"] == 1 and actions.status["restarts"] == 1


def reported(namespace: str, *names: str) -> list[JobRecord]:
    """Jobs of a namespace that report an Xid of n1."""
    failure = {
        "time": ago(60),
        "attempt": 0,
        "reason": "GpuError",
        "message": "Xid 79",
        "node": "n1",
        "evidence": "Xid",
    }
    return [record(name, {"failures": [failure]}, namespace) for name in names]


@pytest.mark.parametrize(
    ("jobs", "own", "others"),
    [
        (reported("a", "one"), "suspect", "good"),
        (reported("a", "one", "two"), "excluded", "good"),
        ([*reported("a", "one"), *reported("b", "two")], "excluded", "excluded"),
    ],
    ids=["one job", "two jobs of a namespace", "jobs of two namespaces"],
)
def test_for_whom_the_word_of_a_job_counts(jobs: list[JobRecord], own: str, others: str) -> None:
    found = quarantine_after(jobs, NOW.timestamp())
    for namespace, expected in (("a", own), ("c", others)):
        lists = found.of(namespace)
        assert ("n1" in lists.excluded) is (expected == "excluded"), namespace
        assert ("n1" in lists.suspects) is (expected == "suspect"), namespace
