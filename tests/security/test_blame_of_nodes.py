"""Tenants whose jobs do not start, by mistake or on purpose, take no nodes from other tenants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmtrain_core.queueing.quarantine import NodeLists
from llmtrain_operator.cache.records import JobRecord, PodRecord
from tests.support.operator_harness.observed import (
    NOW,
    PLACEMENT,
    ago,
    make_observed,
    node,
    pod,
    settle,
    status,
)
from tests.support.operator_harness.scheduling import quarantine_after, record

pytestmark = pytest.mark.unit

COUNT = 8
Gang = Callable[[Sequence[str]], tuple[PodRecord, ...]]


def ends_on(nodes: Sequence[str], gang: Gang, seconds: float, timeout: str) -> list[dict[str, Any]]:
    """Return the failures of a job whose gang is in this state when it has had so many seconds."""
    placement = {
        **PLACEMENT,
        "blocks": [{"path": "", "nodes": [*nodes]}],
        "levels": [{"level": "node", "domains": len(nodes)}],
    }
    spec = {"workers": {"nodes": len(nodes)}, "failurePolicy": {"startupTimeout": timeout}}
    before = status(attemptStartTime=ago(seconds), placement=placement)
    seen = make_observed(
        before, spec=spec, pods=gang(nodes), nodes={name: node(name) for name in nodes}
    )
    actions, _ = settle(seen)
    assert "placement" not in actions.status or actions.status["attempt"] == 1, "the attempt ended"
    return list(actions.status.get("failures") or ())


def tenant(
    namespace: str, jobs: int, gang: Gang, width: int, seconds: float = 601, timeout: str = "10m"
) -> list[JobRecord]:
    """Return jobs of one namespace that fail on every node, several of them on each."""
    found = []
    for index in range(jobs):
        failures: list[dict[str, Any]] = []
        for start in range(COUNT):
            nodes = [f"n{(start + index + offset) % COUNT}" for offset in range(width)]
            failures += ends_on(nodes, gang, seconds, timeout)
        found.append(record(f"job-{index}", {"failures": failures[-10:]}, namespace))
    return found


def refused(nodes: Sequence[str]) -> tuple[PodRecord, ...]:
    """The claim of the gang does not exist: kube-scheduler refuses its pods."""
    missing = {"reason": "Unschedulable", "message": 'persistentvolumeclaim "dta" not found'}
    return tuple(
        pod(index, "Pending", node=name, bound=False, refused_since=ago(30), **missing)
        for index, name in enumerate(nodes)
    )


def too_large(nodes: Sequence[str]) -> tuple[PodRecord, ...]:
    """Each pod asks for more than any node has: kube-scheduler refuses all of them."""
    why = {"reason": "Unschedulable", "message": "0/8 nodes are available: 8 Insufficient cpu."}
    return tuple(
        pod(i, "Pending", node=name, bound=False, refused_since=ago(30), **why)
        for i, name in enumerate(nodes)
    )


def held_up(nodes: Sequence[str]) -> tuple[PodRecord, ...]:
    """A volume of the gang cannot be mounted: its ConfigMap is missing, for example."""
    why = {"reason": "ContainerCreating", "setting_up": True}
    return tuple(pod(index, "Pending", node=name, **why) for index, name in enumerate(nodes))


def last_one(**why: Any) -> Gang:
    """All pods run but the last one."""

    def gang(nodes: Sequence[str]) -> tuple[PodRecord, ...]:
        *first, last = nodes
        late = pod(len(first), "Pending", node=last, reason="ContainerCreating", **why)
        return (*(pod(index, node=name) for index, name in enumerate(first)), late)

    return gang


HELD_UP_ALONE = last_one(setting_up=True)
IN_A_HURRY = last_one(setting_up=True, bound_at=NOW.timestamp() - 2)
MISTAKES: dict[str, tuple[tuple[Any, ...], str]] = {
    "four jobs with a mistyped claim": (("a", 4, refused, 2), "Unschedulable"),
    "eight jobs of 1,000 CPUs in a hurry": (("a", 8, too_large, 2, 3, "2s"), "Unschedulable"),
    "four jobs without their ConfigMap": (("a", 4, held_up, 2), "StartupTimeout"),
    "four jobs of one node without it": (("a", 4, held_up, 1), "StartupTimeout"),
    "eight jobs that wait two seconds": (("a", 8, IN_A_HURRY, 2, 3, "2s"), "StartupTimeout"),
    "eight jobs whose image takes longer": (("a", 8, last_one(), 2), "StartupTimeout"),
}
"""Arguments of `tenant`, and the reason of each failure."""


@pytest.mark.parametrize("case", MISTAKES)
def test_no_node_is_blamed_for(case: str) -> None:
    arguments, reason = MISTAKES[case]
    jobs = tenant(*arguments)
    assert {f["reason"] for job in jobs for f in job.view.failures} == {reason}
    found = quarantine_after(jobs, NOW.timestamp(), COUNT)
    for namespace in ("a", "b"):
        assert found.of(namespace) == NodeLists(), namespace


def test_a_patient_tenant_excludes_nodes_only_for_itself_and_few_of_them() -> None:
    jobs = tenant("a", 8, HELD_UP_ALONE, 2)
    found = quarantine_after(jobs, NOW.timestamp(), COUNT)
    assert len(found.of("a").excluded) == 1 and len(found.of("a").suspects) == COUNT - 1
    assert found.of("b") == NodeLists()


def test_two_patient_namespaces_exclude_few_nodes_for_all() -> None:
    jobs = [job for namespace in "ab" for job in tenant(namespace, 8, HELD_UP_ALONE, 2)]
    assert len(quarantine_after(jobs, NOW.timestamp(), COUNT).of("c").excluded) == 1
    assert len(quarantine_after(jobs, NOW.timestamp(), 39).of("c").excluded) == 3
