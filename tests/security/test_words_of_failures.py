"""What a pod says about its end is shown as its words, and is no finding of the operator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.api.failure_info import TRAINER_REASONS
from llmtrain_core.queueing.quarantine import Quarantine
from llmtrain_operator.cache.records import JobRecord
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.metrics.reasons import POD_REASONS
from llmtrain_operator.reconcile.events import status_events
from llmtrain_operator.scheduler.jobs import node_failures
from tests.support.operator_harness.observed import (
    NOW,
    failed,
    make_observed,
    node,
    pod,
    settle,
    status,
)
from tests.support.operator_harness.scheduling import quarantine_after

pytestmark = pytest.mark.unit

FOUND_BY_OTHERS = sorted((set(Reason) | POD_REASONS) - TRAINER_REASONS)
HOSTILE = (
    "\x1b]0;title\x07\x1b[2J\r\n2026-01-01 INFO forged\u2028\u202e\u200b\x00\x9b31m"
    "/data/\udcff\x1b[31m.txt"
)


def said(reason: str, text: str = "x", **more: Any) -> str:
    return json.dumps({"error": {"reason": reason, "message": text, **more}})


def failed_attempts(message: str, code: int) -> list[JobRecord]:
    """Return a job after its pods ended with a message, several times on the same nodes."""
    observed = make_observed(status(ConditionType.RUNNING), pods=(failed(0, code, message), pod(1)))
    entries: list[dict[str, Any]] = []
    for _ in range(4):
        actions, _ = settle(observed)
        entries += actions.status["failures"]
    raw = {
        **observed.raw,
        "metadata": {"resourceVersion": "1", **observed.raw["metadata"]},
        "status": {"failures": entries},
    }
    return [JobRecord("uid", "ns", "job", 1, raw)]


@pytest.mark.parametrize("code", [2, 137])
@pytest.mark.parametrize("reason", FOUND_BY_OTHERS)
def test_a_pod_cannot_blame_its_node(reason: str, code: int) -> None:
    jobs = failed_attempts(said(reason), code)
    (entry, *_) = jobs[0].view.failures
    assert entry["reason"] == "ExitCode"
    assert reason in entry["message"], "the words are shown"
    assert list(node_failures(jobs)) == []
    assert quarantine_after(jobs, NOW.timestamp()) == Quarantine()


def test_a_pod_that_says_its_node_is_lost_keeps_its_nodes() -> None:
    ended = failed(0, 137, said("NodeLost"))
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=(ended, pod(1))))
    assert actions.status["placement"]["blocks"] == [{"path": "leaf-1", "nodes": ["n0", "n1"]}]
    assert actions.status["placement"]["attempt"] == 1


@pytest.mark.parametrize("reason", ["CorpusMissing", "MyFrameworkError"])
def test_words_that_are_not_reserved_are_reasons(reason: str) -> None:
    ended = failed(0, 2, said(reason))
    actions, _ = settle(make_observed(status(ConditionType.RUNNING), pods=(ended, pod(1))))
    assert actions.status["failures"][0]["reason"] == reason


def test_a_lost_node_is_still_blamed() -> None:
    running = status(ConditionType.RUNNING)
    gone = make_observed(running, pods=(pod(0), pod(1)), nodes={"n1": node("n1")})
    actions, _ = settle(gone)
    assert actions.status["failures"][0]["reason"] == "NodeLost"


def texts(value: Any) -> Iterator[str]:
    """Yield all texts in an object, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


STARTING = status()
WORDS = {
    "termination message": (status(ConditionType.RUNNING), failed(0, 2, said("A", HOSTILE))),
    "its field and remedy": (
        status(ConditionType.RUNNING),
        failed(0, 2, said("A", "x", field=HOSTILE, remedy=HOSTILE)),
    ),
    "its reason": (status(ConditionType.RUNNING), failed(0, 2, said(HOSTILE))),
    "plain text": (status(ConditionType.RUNNING), failed(0, 137, HOSTILE)),
    "disruption": (
        status(ConditionType.RUNNING),
        failed(0, 137, HOSTILE, disruption=HOSTILE, reason=HOSTILE),
    ),
    "pod that cannot start": (
        STARTING,
        pod(0, "Pending", reason="CreateContainerError", message=HOSTILE),
    ),
    "reason of a pod that cannot start": (STARTING, pod(0, "Pending", reason=HOSTILE)),
}


@pytest.mark.parametrize("case", WORDS)
def test_control_characters_reach_neither_status_nor_events(case: str) -> None:
    before, first = WORDS[case]
    observed = make_observed(before, pods=(first, pod(1)))
    actions, _ = settle(observed)
    identity = JobIdentity.of(observed.raw)
    after = observed.view.with_status(actions.status)
    events = status_events(identity, observed.view, after, "2026-01-01T00:00:00Z")
    assert events
    found = [*texts(actions.status), *texts(events)]
    assert [text for text in found if not text.isprintable()] == []
    assert any("forged" in text for text in found) or case == "its reason", "the words are shown"
