"""A node that rejects pods is left at once, and blamed if nothing else explains it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.queueing import Assignment, ClusterState
from llmtrain_operator.cache.records import JobRecord, PodRecord
from llmtrain_operator.job_state.observation import Observed
from tests.support.operator_harness.observed import (
    NOW,
    ago,
    failed,
    make_observed,
    node,
    pod,
    settle,
    status,
)
from tests.support.operator_harness.scheduling import (
    as_pending,
    cluster,
    decide,
    nodes,
    quarantine_after,
    record,
)

pytestmark = pytest.mark.unit

GPUS = (("nvidia.com/gpu", 2),)


def rejected(index: int, why: str = "UnexpectedAdmissionError", **changes: Any) -> PodRecord:
    found = pod(
        index, "Failed", reason=why, disruption=why, message="Allocate failed", rejected=True
    )
    return replace(found, **changes)


def observed(pods: Sequence[PodRecord], **more: Any) -> Observed:
    return make_observed(status(), pods=tuple(pods), **more)


def evidence(seen: Observed) -> tuple[str, str, str]:
    actions, _ = settle(seen)
    (failure,) = actions.status["failures"]
    return failure["reason"], failure["evidence"], failure["node"]


@pytest.mark.parametrize("why", ["UnexpectedAdmissionError", "OutOfcpu", "OutOfpods", "Whatever"])
def test_a_rejection_is_evidence_of_the_node_for_all_jobs(why: str) -> None:
    actions, _ = settle(observed((pod(0), rejected(1, why))))
    (failure,) = actions.status["failures"]
    assert (failure["reason"], failure["evidence"], failure["node"]) == (why, "Node", "n1")
    assert "placement" not in actions.status, "the job leaves the node"
    found = quarantine_after([record("a", dict(actions.status))], NOW.timestamp())
    assert found.of("other").suspects == {"n1"}


def test_a_rejection_that_something_else_explains_counts_for_the_job_only() -> None:
    full = observed(
        (pod(0), rejected(1, "OutOfcpu")), start_obstacles=lambda _node: ("cpu in use",)
    )
    cordoned = observed(
        (pod(0), rejected(1)), nodes={"n0": node("n0"), "n1": node("n1", cordoned=True)}
    )
    greedy = (*GPUS, ("cpu", 1_000_000))
    larger = observed((pod(0), rejected(1, "OutOfcpu", resources=greedy)))
    more_gpus = observed((pod(0), rejected(1, resources=(("nvidia.com/gpu", 8),))))
    stranger = observed((pod(0), pod(1), rejected(1, uid="other", name="stranger")))
    elsewhere = observed((pod(0), rejected(1, node="n7")))
    for seen in (full, cordoned, larger, more_gpus, stranger, elsewhere):
        assert evidence(seen)[1] == "Start"
    assert evidence(observed((pod(0), rejected(1, "TopologyAffinityError"))))[1] == "Start"


def test_a_peer_that_crashed_without_its_rejected_peer_is_not_the_cause() -> None:
    crashed = failed(0, 137, "no peer", at=1)
    assert evidence(observed((crashed, rejected(1)))) == ("UnexpectedAdmissionError", "Node", "n1")


def test_a_container_that_starts_nowhere_is_the_job_and_one_that_starts_elsewhere_the_node() -> (
    None
):
    unstarted = failed(1, 128, "nvidia-container-cli: driver error", reason="StartError")
    assert evidence(observed((pod(0), unstarted))) == ("ExitCode", "Start", "n1")
    actions, _ = settle(observed((pod(0), unstarted)))
    assert "placement" not in actions.status, "the job leaves the node"
    everywhere = (failed(0, 128, "no such file", reason="StartError"), unstarted)
    assert evidence(observed(everywhere))[1] == "Job"


def attempt_on(found: JobRecord, state: ClusterState) -> str:
    """Return the node of the next attempt of a job of one node."""
    candidate = as_pending(found)
    assert candidate is not None
    decision = decide([candidate], state)["a"]  # type: ignore[list-item]
    assert isinstance(decision, Assignment), decision
    (name,) = decision.nodes
    return name


def test_four_attempts_do_not_meet_the_same_rejecting_nodes() -> None:
    """Two of four nodes reject each pod. Each is tried at most once."""
    spec: dict[str, Any] = {"workers": {"nodes": 1}}
    failures: list[dict[str, Any]] = []
    tried: list[str] = []
    for attempt in range(4):
        found = record("a", {"failures": failures} if failures else None, **spec)
        state = replace(
            cluster(nodes(4, gpus=2), ()), quarantine=quarantine_after([found], NOW.timestamp(), 4)
        )
        name = attempt_on(found, state)
        tried.append(name)
        if name in ("n2", "n3"):
            break
        seen = make_observed(
            status(
                placement={
                    "attempt": 0,
                    "gpusPerNode": 2,
                    "blocks": [{"path": "", "nodes": [name]}],
                    "levels": [{"level": "node", "domains": 1}],
                },
                failures=failures,
            ),
            spec={**spec, "failurePolicy": {"maxRestarts": 9}},
            pods=(rejected(0, node=name),),
            nodes={name: node(name)},
        )
        actions, _ = settle(seen)
        failures = actions.status["failures"]
        assert len(failures) == attempt + 1
    assert tried == ["n0", "n1", "n2"]


def test_older_statuses_without_evidence_still_count() -> None:
    entries = [
        {"time": ago(9), "attempt": 0, "reason": why, "message": "", "node": name}
        for why, name in (("NodeLost", "n1"), ("StartupTimeout", "n2"), ("ExitCode", "n3"))
    ]
    found = quarantine_after([record("a", {"failures": entries})], NOW.timestamp())
    assert found.of("ns").suspects == {"n1", "n2"}
    assert found.of("other").suspects == {"n1"}
