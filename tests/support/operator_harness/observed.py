"""Situations of a job for the tests of the checklist: its status, its pods, its nodes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llmtrain_core.api.conditions import ConditionType, get_condition, set_condition
from llmtrain_core.api.status.job import JobStatus
from llmtrain_core.node_health import CORDONED
from llmtrain_core.placement import PlacedNode, Placement, Request, start_obstacles
from llmtrain_core.queueing import Assignment
from llmtrain_core.topology.inventory import Node
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.job import format_time, parse_time
from llmtrain_operator.cache.records import NodeRecord, PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.reconcile.checklist import decide
from tests.support.operator_harness.harness import job_object

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
PLACEMENT = {
    "attempt": 0,
    "gpusPerNode": 2,
    "blocks": [{"path": "leaf-1", "nodes": ["n0", "n1"]}],
    "levels": [{"level": "node", "domains": 2}],
    "explanation": "4 ranks on 2 nodes",
}


def assignment(attempt: int = 0, *names: str, domain: str = "") -> Assignment:
    """Two GPUs on each of the named nodes: by default those of PLACEMENT."""
    names, domain = names or ("n0", "n1"), domain or ("" if names else "leaf-1")
    path = {"leaf": domain} if domain else {}
    placed = tuple(
        PlacedNode(name, (2 * index, 2 * index + 1), {**path, "node": name})
        for index, name in enumerate(names)
    )
    found = Placement(placed, {"node": len(names)}, {}, "4 ranks on 2 nodes")
    return Assignment(attempt, found, {"nvidia.com/gpu": 2}, 2)


def ago(seconds: float) -> str:
    return format_time(NOW - timedelta(seconds=seconds))


def node(name: str, ready: bool = True, since: float = 3600, cordoned: bool = False) -> NodeRecord:
    return NodeRecord(
        Node(
            name,
            {},
            {"nvidia.com/gpu": 2},
            ready=ready,
            cordoned=cordoned,
            health=(CORDONED,) if cordoned else (),
        ),
        ago(since),
    )


def pod(index: int, phase: str = "Running", attempt: int = 0, **changes: Any) -> PodRecord:
    record = PodRecord(
        uid=f"pod-{attempt}-{index}",
        name=f"job-{attempt}-{index}",
        namespace="ns",
        job="uid",
        owner="uid",
        attempt=attempt,
        index=index,
        node=f"n{index}",
        bound=True,
        phase=phase,
        ready=phase == "Running",
        deleting=False,
        reason="",
        disruption="",
        message="",
        exit_code=None,
        finished="",
        address="10.0.0.1",
        resources=(("nvidia.com/gpu", 2),),
    )
    return replace(record, **changes)


def failed(index: int, code: int, text: str = "", at: float = 5, **changes: Any) -> PodRecord:
    end = {"exit_code": code, "message": text, "finished": ago(at), "reason": "Error"}
    return pod(index, "Failed", **{**end, **changes})


def make_observed(
    status: dict[str, Any] | None = None,
    *,
    spec: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    **rest: Any,
) -> Observed:
    raw = job_object("job", "ns", **(spec or {}))
    raw["metadata"] |= {"uid": "uid", "generation": 1, "resourceVersion": "7"} | (metadata or {})
    if status is not None:
        raw["status"] = status
    rest.setdefault("nodes", {"n0": node("n0"), "n1": node("n1")})
    rest.setdefault(
        "unready_seconds", {name: _passed(n.since) for name, n in rest["nodes"].items()}
    )
    refused = {pod.uid: pod.refused_since for pod in rest.get("pods", ()) if pod.refused_since}
    rest.setdefault("refused_seconds", {uid: _passed(since) for uid, since in refused.items()})
    ended = [pod.finished for pod in rest.get("pods", ()) if pod.phase == "Failed"]
    rest.setdefault("seconds_since_failure", _passed(min(ended, default=ago(0))))
    checked = check("job", raw["spec"])
    if isinstance(checked, Job):
        request = Request.of(checked)
        rest.setdefault("start_obstacles", lambda node: start_obstacles(request, node, {}))
    return Observed(now=NOW, raw=raw, checked=checked, **rest)


def _passed(moment: str) -> float:
    """Seconds since a moment, if the clocks of all machines agree."""
    return (NOW - parse_time(moment)).total_seconds()


def status(*true: ConditionType, placed: bool = True, **more: Any) -> dict[str, Any]:
    """A status in which these conditions hold."""
    conditions: list[dict[str, Any]] = []
    for kind in (ConditionType.ACCEPTED, *((ConditionType.PLACED,) if placed else ()), *true):
        conditions = set_condition(
            conditions, kind, True, "Because", "text", generation=1, now=ago(60)
        )
    found: dict[str, Any] = {"conditions": conditions, "startTime": ago(60)}
    if placed:
        found |= {
            "placement": PLACEMENT,
            "attemptStartTime": ago(60),
            "placementSummary": "2 nodes",
        }
    return found | more


def reason(actions: Actions, kind: ConditionType) -> tuple[str, str]:
    found = get_condition(actions.status["conditions"], kind)
    assert found is not None, actions.status["conditions"]
    return found["status"], found["reason"]


def text(actions: Actions, kind: ConditionType) -> str:
    found = get_condition(actions.status["conditions"], kind)
    assert found is not None
    return str(found["message"])


def settle(observed: Observed) -> tuple[Actions, Observed]:
    """Decide until the status no longer changes, as the turns of a loop do."""
    for _ in range(10):
        actions = decide(observed)
        JobStatus.from_wire(actions.status)
        if not actions.changed:
            return actions, observed
        observed = replace(observed, raw={**observed.raw, "status": actions.status})
    raise AssertionError("the status does not settle")
