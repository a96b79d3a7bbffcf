"""The lifecycle of a job, with a real operator process, a real API server and scripted nodes."""

from __future__ import annotations

import asyncio
import json

import pytest

from llmtrain_devcluster.api import Object
from llmtrain_devcluster.scripted_node.node import PodScript, named
from tests.support.operator_harness.harness import (
    ENDLESS,
    OperatorHarness,
    OperatorProcess,
    condition,
    reporting,
    status_of,
)

pytestmark = pytest.mark.cluster


async def test_from_apply_to_succeeded(operator: OperatorProcess, harness: OperatorHarness) -> None:
    await harness.add_nodes({}, {})
    result = {
        "step": 100,
        "totalSteps": 100,
        "loss": 2.5,
        "heldOutLossBefore": 7.5,
        "heldOutLossAfter": 3.25,
        "collectives": [
            {
                "group": "tp",
                "op": "all_gather",
                "count": 36,
                "bytesPerStep": 1179648,
                "meanSeconds": 0.004,
            }
        ],
    }
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("first")
    running = await harness.phase("first", "Running")
    for index in range(2):
        said = json.dumps({"result": result})
        harness.nodes.end(harness.namespace, f"first-0-{index}", 0, message=said)
    assert condition(running, "Placed")["status"] == "True"
    assert status_of(running)["layout"] == "tp2·dp2"
    done = await harness.phase("first", "Succeeded")
    status = status_of(done)
    assert status["progress"]["heldOutLossAfter"] == 3.25
    assert (status["progressPercent"], status["nodes"]) == ("100%", "2/2")
    assert status["progress"]["collectives"][0]["group"] == "tp"
    assert [c["type"] for c in status["conditions"] if c["status"] == "True"] == [
        "Accepted",
        "Placed",
        "Succeeded",
    ]


async def test_wait_reason_of_a_gang_that_does_not_fit(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({"topology.kubernetes.io/zone": "east"})
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("wide")
    waiting = await harness.wait(
        "wide", lambda job: "zone: east=1" in condition(job, "Placed").get("message", "")
    )
    placed = condition(waiting, "Placed")
    assert (placed["status"], placed["reason"]) == ("False", "InsufficientNodes")
    assert "needs 2 nodes with 2 nvidia.com/gpu" in placed["message"]
    assert status_of(waiting)["phase"] == "Queued"
    assert status_of(waiting)["reason"] == "InsufficientNodes", "the REASON column"
    assert status_of(waiting)["nodes"] == "0/2"
    assert await harness.children() == []
    await harness.add_nodes({"topology.kubernetes.io/zone": "east"}, start=1)
    running = await harness.phase("wide", "Running")
    assert status_of(running)["placementSummary"] == "2 nodes · 1 zone"
    assert len(await harness.pods()) == 2


async def test_a_pod_that_is_to_shrink_holds_its_cpus_until_the_kubelet_has_acted(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({})
    harness.nodes.default = ENDLESS
    harness.nodes.script(named("large"), PodScript(exit_after=None, resizes=False))

    def with_cpus(name: str, cpus: str) -> Object:
        requests = {"requests": {"cpu": cpus}}
        container = {"name": "main", "image": "example.com/x:1", "resources": requests}
        spec = {"nodeSelector": {"harness": harness.tag}, "containers": [container]}
        return {"metadata": {"name": name}, "spec": spec}

    await harness.api.create("pods", with_cpus("large", "40"), harness.namespace)
    await harness.api.wait_for(
        "pods", "large", lambda pod: status_of(pod).get("phase") == "Running", harness.namespace
    )
    await harness.api.resize("large", "main", {"cpu": "1"}, harness.namespace)
    workers = {"nodes": 1, "resources": {"requests": {"cpu": "30"}}}
    await harness.submit("waits", workers=workers, parallelism={"tensor": 2})
    await harness.reason("waits", "Placed", "InsufficientGpus")
    await harness.api.create("pods", with_cpus("alike", "30"), harness.namespace)
    await harness.api.wait_for(
        "pods",
        "alike",
        lambda pod: condition(pod, "PodScheduled").get("reason") == "Unschedulable",
        harness.namespace,
    )
    assert {pod["metadata"]["name"] for pod in await harness.pods()} == {"large", "alike"}
    await harness.api.delete("pods", "large", harness.namespace)
    await harness.phase("waits", "Running")


async def test_suspend_releases_the_nodes(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.run_on_two_nodes("first")
    await harness.submit("second")
    await harness.wait("second", lambda j: status_of(j).get("reason") == "InsufficientGpus")
    await harness.patch("first", {"spec": {"suspend": True}})
    suspended = await harness.wait(
        "first", lambda j: condition(j, "Suspended").get("status") == "True"
    )
    assert "placement" not in status_of(suspended)
    await harness.phase("second", "Running")
    await harness.patch("first", {"spec": {"suspend": False}})
    await harness.phase("first", "Queued")
    await harness.delete("second")
    resumed = await harness.phase("first", "Running")
    assert status_of(resumed)["attempt"] == 1
    assert status_of(resumed).get("restarts", 0) == 0
    names = sorted(p["metadata"]["name"] for p in await harness.pod_count(2))
    assert names == ["first-1-0", "first-1-1"]


async def test_deadline_and_clean_pod_policy(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    policy = {"activeDeadlineSeconds": 2, "cleanPodPolicy": "All"}
    await harness.submit("late", runPolicy=policy)
    failed = await harness.phase("late", "Failed")
    assert condition(failed, "Failed")["reason"] == "DeadlineExceeded"
    assert status_of(failed)["reason"] == "DeadlineExceeded"
    await harness.pod_count(0)


async def test_a_job_of_another_controller_is_not_written(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({}, {})
    made = await harness.submit("foreign", managedBy="example.com/other")
    await harness.submit("ours")
    await harness.phase("ours", "Running", "Succeeded")
    found = await harness.job("foreign")
    assert found["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert "finalizers" not in found["metadata"] and "status" not in found


async def test_name_conflict(operator: OperatorProcess, harness: OperatorHarness) -> None:
    await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    taken = {"metadata": {"name": "mine"}, "spec": {"ports": [{"port": 80}]}}
    await harness.api.create("services", taken, harness.namespace)
    await harness.submit("mine")
    stuck = await harness.reason("mine", "PodsReady", "NameConflict")
    assert "services mine" in condition(stuck, "PodsReady")["message"]
    assert status_of(stuck)["reason"] == "NameConflict"
    assert await harness.pods() == []
    await harness.api.delete("services", "mine", harness.namespace)
    await harness.phase("mine", "Running")


async def test_quota(operator: OperatorProcess, harness: OperatorHarness) -> None:
    await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    quota = {"metadata": {"name": "tight"}, "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}
    await harness.api.create("resourcequotas", quota, harness.namespace)
    await harness.api.wait_for(
        "resourcequotas",
        "tight",
        lambda q: "hard" in (q or {}).get("status", {}),
        harness.namespace,
    )
    await harness.submit("greedy")
    stuck = await harness.reason("greedy", "Placed", "QuotaExceeded")
    assert "raise the quota" in condition(stuck, "Placed")["message"]
    await harness.api.delete("resourcequotas", "tight", harness.namespace)
    running = await harness.phase("greedy", "Running")
    assert status_of(running).get("restarts", 0) == 0


async def test_a_signal_restarts_the_gang_on_the_same_nodes(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    harness.nodes.script(named("hit-0-1"), PodScript(exit_after=0.5, exit_code=137))
    await harness.submit("hit", failurePolicy={"maxRestarts": 1})
    again = await harness.runs("hit", attempt=1)
    status = status_of(again)
    assert status["restarts"] == 1 and status["failures"][0]["exitCode"] == 137
    assert status["lastRestart"]["action"] == "RestartGang"
    assert condition(again, "Restarting")["status"] == "False"
    names = sorted(p["metadata"]["name"] for p in await harness.pod_count(2))
    assert names == ["hit-1-0", "hit-1-1"]
    await harness.api.delete("pods", "hit-1-0", harness.namespace)
    deleted = await harness.runs("hit", attempt=2)
    assert status_of(deleted)["failures"][1]["reason"] == "PodDeleted"
    assert status_of(deleted)["restartsCountTowardsMax"] == 1, "only the signal counts"
    events = await harness.api.list("events", harness.namespace)
    reasons = {e["reason"] for e in events if e["involvedObject"]["kind"] == "LLMTrainingJob"}
    assert {"Placed", "Training", "GangRestart"} <= reasons
    assert "llmtrain_operator_recovery_seconds_count" in operator.metrics()


async def test_a_lost_node_leads_to_a_new_placement(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    nodes = await harness.add_nodes({}, {}, {})
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("moving")
    await harness.phase("moving", "Running")
    await harness.nodes.node_not_ready(nodes[1])
    moved = await harness.runs("moving", attempt=1)
    used = [n for b in status_of(moved)["placement"]["blocks"] for n in b["nodes"]]
    assert used == [nodes[0], nodes[2]]
    assert status_of(moved)["failures"][0]["reason"] == "NodeLost"


async def test_a_gang_waits_until_a_dead_node_is_marked(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    nodes = await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("waiting")
    await harness.phase("waiting", "Running")
    harness.nodes.end(harness.namespace, "waiting-0-0", code=200)
    # Longer than the time within which the pod that caused a failure ends.
    await asyncio.sleep(3)
    assert status_of(await harness.job("waiting")).get("attempt", 0) == 0
    await harness.nodes.node_not_ready(nodes[1])
    queued = await harness.phase("waiting", "Queued")
    (failure,) = status_of(queued)["failures"]
    assert (failure["reason"], failure["node"]) == ("NodeLost", nodes[1])
    await harness.nodes.node_ready(nodes[1])
    again = await harness.runs("waiting", attempt=1)
    assert status_of(again)["restarts"] == 1 and len(status_of(again)["failures"]) == 1


async def test_startup_timeout_releases_the_nodes(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    nodes = await harness.add_nodes({}, {})
    harness.nodes.default = PodScript(exit_after=None)
    harness.nodes.script(named("slow-0-1"), PodScript(runs_after=3600))
    await harness.submit("slow", failurePolicy={"maxRestarts": 2})
    await harness.wait(
        "slow", lambda job: condition(job, "PodsReady").get("message", "").startswith("1 of 2 pods")
    )
    await harness.patch("slow", {"spec": {"failurePolicy": {"startupTimeout": "1s"}}})
    await harness.wait("slow", lambda job: bool(status_of(job).get("failures")))
    await harness.patch("slow", {"spec": {"failurePolicy": {"startupTimeout": "10m"}}})
    again = await harness.wait("slow", lambda job: status_of(job).get("phase") == "Running")
    failure = status_of(again)["failures"][0]
    assert (failure["reason"], failure["node"]) == ("StartupTimeout", nodes[1])


async def test_a_node_that_rejects_pods_is_left_by_this_job_and_the_next(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    bad, good, other = await harness.add_nodes({}, {}, {})
    harness.nodes.default = PodScript(exit_after=None)
    why = "Allocate failed due to no healthy devices present"
    harness.nodes.script(
        lambda pod: pod["spec"].get("nodeName") == bad,
        PodScript(rejected=True, reason="UnexpectedAdmissionError", termination_message=why),
    )
    one = {"workers": {"nodes": 1}}
    await harness.submit("first", failurePolicy={"maxRestarts": 2}, **one)
    running = await harness.runs("first", attempt=1)
    (failure,) = status_of(running)["failures"]
    assert (failure["node"], failure["evidence"]) == (bad, "Node")
    assert failure["reason"] == "UnexpectedAdmissionError" and why in failure["message"]
    assert [b["nodes"] for b in status_of(running)["placement"]["blocks"]] == [[good]]
    await harness.submit("next", **one)
    running = await harness.runs("next", attempt=0)
    assert [b["nodes"] for b in status_of(running)["placement"]["blocks"]] == [[other]]


async def test_a_missing_claim_blames_no_node(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.add_nodes({}, {})
    claim = {
        "name": "data",
        "mountPath": "/data",
        "persistentVolumeClaim": {"claimName": "missing"},
    }
    await harness.submit("claims", workers={"volumes": [claim]})
    found = await harness.wait("claims", lambda job: bool(status_of(job).get("backoffUntil")), 180)
    assert status_of(found)["restarts"] == 0 and "placement" not in status_of(found)
    placed = condition(found, "Placed")
    assert (placed["status"], placed["reason"]) == ("False", "Unschedulable")
    assert 'persistentvolumeclaim "missing" not found' in placed["message"]


async def event_of(harness: OperatorHarness, job: str, reason: str) -> Object:
    """Wait for the Event of a job with this reason, which follows its status write."""
    async with asyncio.timeout(60):
        while True:
            for event in await harness.api.list("events", harness.namespace):
                if (event["involvedObject"]["name"], event["reason"]) == (job, reason):
                    return event
            await asyncio.sleep(0.1)


async def test_progress_is_read_from_rank_zero(
    operator: OperatorProcess, harness: OperatorHarness
) -> None:
    await harness.run_on_two_nodes("reported")
    head = await harness.api.get("pods", "reported-0-0", harness.namespace)
    report = {
        "phase": "training",
        "attempt": 0,
        "step": 42,
        "totalSteps": 100,
        "loss": 5.125,
        "stepSeconds": 0.5,
        "tokensPerSecond": 2500.0,
        "mfu": 0.01,
        "restartsInPlace": 1,
        "lastRestart": {"rank": 3, "reason": "Signal", "message": "rank 3 was killed by signal 9"},
    }

    async with reporting(head, report):
        found = await harness.wait("reported", lambda j: "step" in status_of(j).get("progress", {}))
        assert status_of(found)["progress"]["loss"] == 5.125
        assert status_of(found)["progressPercent"] == "42%"
        assert status_of(found)["lastRestart"]["reason"] == "Signal"
        event = await event_of(harness, "reported", "RestartInPlace")
        assert event["type"] == "Warning" and "Signal of rank 3" in event["message"]
        # Nothing changes, so the writes end, although the same report is read each second.
        before: Object = {}
        async with asyncio.timeout(60):
            while found["metadata"]["resourceVersion"] != before.get("resourceVersion"):
                before = found["metadata"]
                await asyncio.sleep(2.5)
                found = await harness.job("reported")
