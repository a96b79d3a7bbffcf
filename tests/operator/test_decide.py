"""The checklist: one table of situations for each policy. Pure."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from operator_bench import job_object, message

from llmtrain_core.api.check import check
from llmtrain_core.api.conditions import get_condition, set_condition
from llmtrain_core.api.status import JobStatus
from llmtrain_core.topology.inventory import Node
from llmtrain_operator.lifecycle.apply import status_patch
from llmtrain_operator.lifecycle.decide import decide
from llmtrain_operator.lifecycle.draft import C, Plan
from llmtrain_operator.lifecycle.observe import Observed, Trouble, from_time
from llmtrain_operator.records import NodeRecord, PodRecord
from llmtrain_operator.verdicts import Offer, Refusal

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
PLACEMENT = {
    "attempt": 0, "gpusPerNode": 2, "blocks": [{"path": "leaf-1", "nodes": ["n0", "n1"]}],
    "levels": [{"level": "node", "domains": 2}], "explanation": "4 ranks on 2 nodes",
}  # fmt: skip


def ago(seconds: float) -> str:
    return from_time(NOW - timedelta(seconds=seconds))


def node(name: str, ready: bool = True, since: float = 3600, cordoned: bool = False) -> NodeRecord:
    return NodeRecord(
        Node(name, {}, {"nvidia.com/gpu": 2}, ready=ready, cordoned=cordoned), ago(since)
    )


def pod(index: int, phase: str = "Running", attempt: int = 0, **changes: Any) -> PodRecord:
    record = PodRecord(
        uid=f"pod-{attempt}-{index}", name=f"job-{attempt}-{index}", namespace="ns", job="uid",
        owner="uid", attempt=attempt, index=index, node=f"n{index}", bound=True, phase=phase,
        ready=phase == "Running", deleting=False, reason="", disruption="", message="",
        exit_code=None, finished="", address="10.0.0.1", resources=(("nvidia.com/gpu", 2),),
    )  # fmt: skip
    return replace(record, **changes)


def failed(index: int, code: int, text: str = "", at: float = 5, **changes: Any) -> PodRecord:
    end = {"exit_code": code, "message": text, "finished": ago(at), "reason": "Error"}
    return pod(index, "Failed", **{**end, **changes})


def seen(status: dict[str, Any] | None = None, *, spec: dict[str, Any] | None = None,
         metadata: dict[str, Any] | None = None, **rest: Any) -> Observed:  # fmt: skip
    raw = job_object("job", "ns", **(spec or {}))
    raw["metadata"] |= {"uid": "uid", "generation": 1, "resourceVersion": "7"} | (metadata or {})
    if status is not None:
        raw["status"] = status
    rest.setdefault("nodes", {"n0": node("n0"), "n1": node("n1")})
    return Observed(now=NOW, raw=raw, checked=check("job", raw["spec"]), **rest)


def status(*true: C, placed: bool = True, **more: Any) -> dict[str, Any]:
    """A status in which these conditions hold."""
    conditions: list[dict[str, Any]] = []
    for kind in (C.ACCEPTED, *((C.PLACED,) if placed else ()), *true):
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


def reason(plan: Plan, kind: C) -> tuple[str, str]:
    found = get_condition(plan.status["conditions"], kind)
    assert found is not None, plan.status["conditions"]
    return found["status"], found["reason"]


def text(plan: Plan, kind: C) -> str:
    found = get_condition(plan.status["conditions"], kind)
    assert found is not None
    return str(found["message"])


def settle(observed: Observed) -> tuple[Plan, Observed]:
    """Decide until the status no longer changes, as the turns of a loop do."""
    for _ in range(10):
        plan = decide(observed)
        JobStatus.from_wire(plan.status)
        if not plan.changed:
            return plan, observed
        observed = replace(observed, raw={**observed.raw, "status": plan.status})
    raise AssertionError("the status does not settle")


def test_a_new_job_is_accepted_and_waits() -> None:
    plan, _ = settle(seen())
    assert plan.status["phase"] == "Queued"
    assert reason(plan, C.ACCEPTED) == ("True", "Valid")
    assert reason(plan, C.PLACED) == ("False", "Queued")
    assert not plan.create and not plan.delete


def test_the_placement_is_written_before_any_pod() -> None:
    offer = Offer(0, PLACEMENT, "2 nodes", ("n0", "n1"), {"nvidia.com/gpu": 2})
    first = decide(seen(verdict=offer))
    assert first.changed and first.offer is offer
    assert first.status["placement"]["blocks"] == PLACEMENT["blocks"]
    assert not first.create
    plan, _ = settle(seen(verdict=offer))
    assert plan.create == (0, 1)
    assert plan.status["phase"] == "Starting"
    assert plan.status["startTime"] == plan.status["attemptStartTime"] == from_time(NOW)


def test_an_offer_for_another_attempt_is_not_taken() -> None:
    offer = Offer(0, PLACEMENT, "2 nodes", ("n0", "n1"), {"nvidia.com/gpu": 2})
    plan, _ = settle(seen(status(placed=False, attempt=1), verdict=offer))
    assert "placement" not in plan.status


def test_a_refusal_is_shown() -> None:
    plan, _ = settle(seen(verdict=Refusal("InsufficientGpus", "needs 2 nodes; 1 is free")))
    assert reason(plan, C.PLACED) == ("False", "InsufficientGpus")
    assert plan.status["reason"] == "InsufficientGpus"
    assert plan.status["nodes"] == "0/2"


def test_an_invalid_job_gets_no_children() -> None:
    plan, _ = settle(seen(spec={"model": {"preset": "gpt-9000"}}))
    assert reason(plan, C.ACCEPTED) == ("False", "UnknownPreset")
    assert text(plan, C.ACCEPTED).startswith("spec.model.preset: ")
    assert "use one of" in text(plan, C.ACCEPTED)
    assert plan.status["phase"] == "Rejected"
    assert not plan.create and not plan.delete and plan.offer is None


def test_a_gang_that_runs() -> None:
    plan, _ = settle(seen(status(), pods=(pod(0), pod(1))))
    assert reason(plan, C.RUNNING) == ("True", "Training")
    assert reason(plan, C.PODS_READY) == ("True", "AllPodsReady")
    assert plan.status["phase"] == "Running"
    assert plan.status["nodes"] == "2/2"
    assert plan.poll is not None and plan.poll.index == 0


def test_missing_pods_are_created_until_the_gang_runs() -> None:
    plan, _ = settle(seen(status(), pods=(pod(1),)))
    assert plan.create == (0,)


def test_a_deleted_pod_of_a_running_gang_restarts_it() -> None:
    plan, _ = settle(seen(status(C.RUNNING), pods=(pod(0),)))
    assert plan.status["attempt"] == 1 and plan.status["restarts"] == 1
    assert plan.status["failures"][0]["reason"] == "PodDeleted"
    assert plan.status["placement"]["attempt"] == 1
    assert [victim.index for victim in plan.delete] == [0]
    assert not plan.create, "the old gang must be gone first"


def test_pods_of_a_later_attempt_mean_that_the_status_is_old() -> None:
    plan, _ = settle(seen(status(), pods=(pod(0, attempt=1), pod(1, attempt=1))))
    assert not plan.delete and not plan.create


def test_all_succeeded() -> None:
    result = json.dumps({"result": {"step": 10, "totalSteps": 10, "heldOutLossAfter": 3.0,
                                    "evil": "x" * 10}})  # fmt: skip
    pods = (pod(0, "Succeeded", message=result), pod(1, "Succeeded"))
    plan, _ = settle(seen(status(C.RUNNING), pods=pods))
    assert plan.status["phase"] == "Succeeded"
    assert plan.status["progress"] == {"step": 10, "totalSteps": 10, "heldOutLossAfter": 3.0}
    assert plan.status["completionTime"] == from_time(NOW)
    assert reason(plan, C.RUNNING)[0] == "False"
    assert not plan.delete, "finished pods stay for their logs"


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"result": 3}', '{"result": {"step": "x"}}',
                                     '{"result": {"step": -1, "loss": NaN}}', '"x"'])  # fmt: skip
def test_a_result_that_makes_no_sense_is_left_out(garbage: str) -> None:
    pods = (pod(0, "Succeeded", message=garbage), pod(1, "Succeeded"))
    plan, _ = settle(seen(status(C.RUNNING), pods=pods))
    assert plan.status["phase"] == "Succeeded"
    assert not plan.status.get("progress", {}).get("step")


CORPUS = message("CorpusMissing", "no folder /data", "spec.data.sources[0].uri", "mount it", 2)
PEER = message("PeerLost", "a peer was lost", "", "", 200)

FAILURES = [
    # pods, restarted?, reason, in the message
    ((failed(0, 2, CORPUS), pod(1)), False, "CorpusMissing", "spec.data.sources[0].uri: no folder"),
    ((failed(0, 1), pod(1)), False, "ExitCode", "exit code 1"),
    ((failed(0, 127, "garbage \x00\n"), pod(1)), False, "ExitCode", "garbage"),
    ((failed(0, 137), pod(1)), True, "ExitCode", "exit code 137"),
    ((failed(0, 143), pod(1)), True, "ExitCode", "exit code 143"),
    ((failed(0, 143, deleting=True), pod(1)), True, "PodDeleted", "deleted by someone else"),
    ((failed(0, 137, reason="OOMKilled"), pod(1)), True, "OutOfMemory", "raise the memory limit"),
    ((failed(0, 200, PEER, at=20), pod(1)), True, "PeerLost", "a peer was lost"),
    ((failed(0, 200, PEER, at=1), failed(1, 2, CORPUS, at=0)), False, "CorpusMissing", "no folder"),
    ((failed(0, 200, PEER), failed(1, 139)), True, "ExitCode", "exit code 139"),
    ((pod(0, "Failed", reason="Evicted", message="disk"), pod(1)), True, "Evicted", "disk"),
    ((pod(0, "Failed", reason="not a reason!"), pod(1)), True, "PodFailed", "pod job-0-0"),
    ((failed(0, 2, message("no reason\n", "x", "", "", 2)), pod(1)), False, "ExitCode", "x"),
]


@pytest.mark.parametrize(("pods", "restarted", "why", "said"), FAILURES)
def test_failures(pods: Any, restarted: bool, why: str, said: str) -> None:
    plan, _ = settle(seen(status(C.RUNNING), pods=pods))
    entry = plan.status["failures"][-1]
    assert entry["reason"] == why
    assert said in entry["message"]
    if restarted:
        assert plan.status["attempt"] == 1
        assert reason(plan, C.RESTARTING) == ("True", "GangRestart")
        assert get_condition(plan.status["conditions"], C.FAILED) is None
        assert {victim.attempt for victim in plan.delete} == {0}
        assert not plan.create
    else:
        assert plan.status["phase"] == "Failed"
        assert reason(plan, C.FAILED) == ("True", why)
        assert said in text(plan, C.FAILED)
        assert "attempt" not in plan.status
        assert {victim.phase for victim in plan.delete} <= {"Running"}


def test_a_lost_peer_waits_for_the_cause() -> None:
    plan, _ = settle(seen(status(C.RUNNING), pods=(failed(0, 200, PEER, at=2), pod(1))))
    assert "failures" not in plan.status
    assert plan.wake_after == pytest.approx(8.0)


def test_restarts_are_bounded() -> None:
    observed = seen(status(C.RUNNING, restarts=3, attempt=3, placement={**PLACEMENT, "attempt": 3}),
                    pods=(failed(0, 137, attempt=3), pod(1, attempt=3)))  # fmt: skip
    plan, _ = settle(observed)
    assert reason(plan, C.FAILED) == ("True", "TooManyRestarts")
    assert "spec.failurePolicy.maxRestarts" in text(plan, C.FAILED)


def test_without_restarts_the_cause_is_the_reason() -> None:
    observed = seen(status(C.RUNNING), spec={"failurePolicy": {"maxRestarts": 0}},
                    pods=(failed(0, 137, reason="OOMKilled"), pod(1)))  # fmt: skip
    plan, _ = settle(replace(observed, pods=observed.pods))
    assert reason(plan, C.FAILED)[0] == "True"


def test_only_ten_failures_are_kept() -> None:
    old = [{"time": ago(9000 - i), "attempt": i, "reason": "ExitCode", "message": ""}
           for i in range(10)]  # fmt: skip
    observed = seen(status(C.RUNNING, failures=old, restarts=1), pods=(failed(0, 137), pod(1)),
                    spec={"failurePolicy": {"maxRestarts": 100}})  # fmt: skip
    plan, _ = settle(observed)
    assert len(plan.status["failures"]) == 10


@pytest.mark.parametrize(("nodes", "lost"), [
    ({"n0": node("n0")}, True),
    ({"n0": node("n0"), "n1": node("n1", ready=False, since=100)}, True),
    ({"n0": node("n0"), "n1": node("n1", ready=False, since=3)}, False),
])  # fmt: skip
def test_a_lost_node_means_a_new_placement(nodes: dict[str, NodeRecord], lost: bool) -> None:
    plan, observed = settle(seen(status(C.RUNNING), pods=(pod(0), pod(1)), nodes=nodes))
    if not lost:
        assert plan.wake_after is not None and plan.wake_after <= 27
        return
    assert plan.status["failures"][0]["reason"] == "NodeLost"
    assert "placement" not in plan.status
    assert reason(plan, C.PLACED) == ("False", "NotPlaced")
    # The pod on the lost node stays Terminating for ever: it must not hold the new gang up.
    offer = Offer(1, {**PLACEMENT, "attempt": 1, "blocks": [{"path": "", "nodes": ["n2", "n3"]}]},
                  "2 nodes", ("n2", "n3"), {})  # fmt: skip
    later = replace(
        observed, verdict=offer, pods=(pod(1, deleting=True),),
        nodes={**nodes, "n2": node("n2"), "n3": node("n3")},
    )  # fmt: skip
    plan, _ = settle(later)
    assert plan.create == (0, 1)


def test_a_cordoned_node_is_not_used_again() -> None:
    observed = seen(status(C.RUNNING), pods=(failed(0, 137), pod(1)),
                    nodes={"n0": node("n0"), "n1": node("n1", cordoned=True)})  # fmt: skip
    plan, _ = settle(observed)
    assert "placement" not in plan.status


def test_repeated_failures_hold_back() -> None:
    failures = [{"time": ago(seconds), "attempt": 0, "reason": "ExitCode", "message": ""}
                for seconds in (30, 20, 1)]  # fmt: skip
    plan, _ = settle(seen(status(failures=failures, restarts=3, attempt=3,
                                 placement={**PLACEMENT, "attempt": 3})))  # fmt: skip
    assert not plan.create
    assert plan.wake_after == pytest.approx(1.0)


def test_a_gang_that_does_not_start_in_time_is_released() -> None:
    late = status(attemptStartTime=ago(601))
    plan, _ = settle(seen(late, pods=(pod(0), pod(1, "Pending", reason="Unschedulable"))))
    assert plan.status["failures"][0]["reason"] == "StartupTimeout"
    assert "placement" not in plan.status and plan.status["attempt"] == 1
    assert len(plan.delete) == 2


def test_an_image_that_cannot_be_pulled() -> None:
    bad = (pod(0, "Pending", reason="ErrImagePull"), pod(1, "Pending", reason="ImagePullBackOff"))
    plan, _ = settle(seen(status(), pods=bad))
    assert reason(plan, C.PODS_READY) == ("False", "ImagePullFailed")
    assert text(plan, C.PODS_READY).find("spec.workers.image: example.com/trainer:1") > 0
    plan, _ = settle(seen(status(attemptStartTime=ago(601)), pods=bad))
    assert reason(plan, C.FAILED) == ("True", "ImagePullFailed")
    assert len(plan.delete) == 2


def test_trouble_is_shown() -> None:
    trouble = Trouble("QuotaExceeded", "spec.workers: quota; raise it")
    plan, _ = settle(seen(status(), trouble=trouble))
    assert reason(plan, C.PODS_READY) == ("False", "QuotaExceeded")
    assert plan.status["reason"] == "QuotaExceeded"


def test_suspend_and_resume() -> None:
    suspended = {"suspend": True}
    plan, observed = settle(seen(status(C.RUNNING), spec=suspended, pods=(pod(0), pod(1))))
    assert len(plan.delete) == 2 and "placement" not in plan.status
    assert reason(plan, C.SUSPENDED)[0] == "False"
    plan, observed = settle(replace(observed, pods=()))
    assert reason(plan, C.SUSPENDED)[0] == "True"
    assert plan.status["phase"] == "Suspended"
    assert (plan.status["attempt"], plan.status["restarts"]) == (1, 0)
    plan, _ = settle(seen(dict(plan.status)))
    assert reason(plan, C.SUSPENDED) == ("False", "Resumed")
    assert plan.status["phase"] == "Queued" and plan.status["attempt"] == 1


def test_a_job_that_starts_suspended_keeps_attempt_zero() -> None:
    plan, _ = settle(seen(spec={"suspend": True}))
    assert plan.status["phase"] == "Suspended" and plan.status.get("attempt", 0) == 0


def test_deadline() -> None:
    late = {"runPolicy": {"activeDeadlineSeconds": 30}}
    plan, _ = settle(seen(status(C.RUNNING), spec=late, pods=(pod(0), pod(1))))
    assert reason(plan, C.FAILED) == ("True", "DeadlineExceeded")
    assert "spec.runPolicy.activeDeadlineSeconds" in text(plan, C.FAILED)
    assert len(plan.delete) == 2
    early = {"runPolicy": {"activeDeadlineSeconds": 90}}
    plan, _ = settle(seen(status(C.RUNNING), spec=early, pods=(pod(0), pod(1))))
    assert plan.status["phase"] == "Running" and plan.wake_after == pytest.approx(30)


@pytest.mark.parametrize(("policy", "deleted"), [("All", [0, 1]), ("Running", [1]), ("None", [])])
def test_clean_pod_policy(policy: str, deleted: list[int]) -> None:
    observed = seen(status(C.FAILED, completionTime=ago(5)), pods=(failed(0, 1), pod(1)),
                    spec={"runPolicy": {"cleanPodPolicy": policy}})  # fmt: skip
    plan, _ = settle(observed)
    assert [victim.index for victim in plan.delete] == deleted


@pytest.mark.parametrize(("lifetime", "deleted"), [(None, False), (0, True), (4, True), (9, False)])
def test_time_to_live(lifetime: int | None, deleted: bool) -> None:
    policy = {} if lifetime is None else {"ttlSecondsAfterFinished": lifetime}
    observed = seen(status(C.SUCCEEDED, completionTime=ago(5)), spec={"runPolicy": policy})
    plan, _ = settle(observed)
    assert plan.delete_job is deleted


def test_deletion_waits_for_the_pods() -> None:
    observed = seen(status(C.RUNNING), pods=(pod(0), pod(1, deleting=True)),
                    metadata={"deletionTimestamp": ago(1)})  # fmt: skip
    plan = decide(observed)
    assert not plan.changed and not plan.done
    assert [victim.index for victim in plan.delete] == [0]
    assert decide(replace(observed, pods=())).done


def test_progress_is_taken_in() -> None:
    report = {"attempt": 0, "step": 25, "totalSteps": 100, "loss": 4.5, "stepSeconds": 2.0,
              "tokensPerSecond": 1000, "mfu": 0.4, "phase": "training",
              "collectives": [{"group": "tp", "op": "x", "count": 1, "bytesPerStep": 2,
                               "meanSeconds": 0.5}, {"group": "evil"}, 7]}  # fmt: skip
    observed = seen(status(C.RUNNING), pods=(pod(0), pod(1)), report=report)
    plan, after = settle(observed)
    found = plan.status["progress"]
    assert found["step"] == 25 and found["tokensPerSecond"] == 1000.0
    assert found["eta"] == from_time(NOW + timedelta(seconds=150))
    assert len(found["collectives"]) == 1
    assert plan.status["progressPercent"] == "25%"
    later = replace(after, now=NOW + timedelta(seconds=50))
    assert not decide(later).changed, "nothing moved: nothing is written"
    old = replace(observed, report={**report, "attempt": 3})
    assert "progress" not in settle(old)[0].status


def test_figures_alone_are_not_written_at_once() -> None:
    _, after = settle(seen(status(), pods=(pod(0), pod(1, "Pending", ready=False))))
    fresh = replace(after, pods=(pod(0, ready=False), pod(1, "Pending")), since_write=0.5)
    plan = decide(fresh)
    assert not plan.changed and plan.wake_after is not None and plan.wake_after <= 1.5
    assert decide(replace(fresh, since_write=5)).changed


def test_status_patch_takes_away_what_is_gone() -> None:
    observed = seen(status(C.RUNNING), pods=(pod(0),), nodes={"n0": node("n0")})
    plan = decide(observed)
    body = status_patch(observed, plan.status)
    assert body["metadata"]["resourceVersion"] == "7"
    assert body["status"]["placement"] is None
    assert "startTime" not in body["status"], "what is the same is not sent"


def test_no_write_in_a_steady_state() -> None:
    for observed in (
        seen(status(C.RUNNING), pods=(pod(0), pod(1))),
        seen(status(C.SUCCEEDED, completionTime=ago(5))),
        seen(verdict=Refusal("InsufficientGpus", "no")),
        seen(spec={"suspend": True}),
    ):
        _, settled = settle(observed)
        later = replace(settled, now=NOW + timedelta(seconds=60))
        again = decide(later)
        assert not again.changed and not again.create and not again.delete
