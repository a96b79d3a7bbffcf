"""The lifecycle of a job, with a real operator process, a real API server and scripted nodes."""

from __future__ import annotations

import asyncio
import json

import pytest

from llmtrain_devcluster.scripted_node.node import PodScript, named
from tests.support.operator_harness.harness import (
    JOBS,
    Bench,
    OperatorProcess,
    condition,
    reporting,
    status_of,
)

pytestmark = pytest.mark.cluster


async def test_from_apply_to_succeeded(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
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
    bench.nodes.default = PodScript(
        exit_after=1.5, termination_message=json.dumps({"result": result})
    )
    await bench.submit("first")
    running = await bench.phase("first", "Running")
    assert condition(running, "Placed")["status"] == "True"
    assert status_of(running)["layout"] == "tp2·dp2"
    done = await bench.phase("first", "Succeeded")
    status = status_of(done)
    assert status["progress"]["heldOutLossAfter"] == 3.25
    assert status["progressPercent"] == "100%"
    assert status["progress"]["collectives"][0]["group"] == "tp"
    assert [c["type"] for c in status["conditions"] if c["status"] == "True"] == [
        "Accepted",
        "Placed",
        "Succeeded",
    ]


async def test_wait_reason_of_a_gang_that_does_not_fit(
    operator: OperatorProcess, bench: Bench
) -> None:
    await bench.add_nodes({"topology.kubernetes.io/zone": "east"})
    bench.nodes.default = PodScript(exit_after=None)
    await bench.submit("wide")
    waiting = await bench.wait(
        "wide", lambda job: "zone: east=1" in condition(job, "Placed").get("message", "")
    )
    placed = condition(waiting, "Placed")
    assert (placed["status"], placed["reason"]) == ("False", "InsufficientNodes")
    assert "needs 2 nodes with 2 nvidia.com/gpu" in placed["message"]
    assert status_of(waiting)["phase"] == "Queued"
    assert status_of(waiting)["reason"] == "InsufficientNodes", "the REASON column"
    assert status_of(waiting)["nodes"] == "0/2"
    assert await bench.children() == []
    await bench.add_nodes({"topology.kubernetes.io/zone": "east"}, start=1)
    running = await bench.phase("wide", "Running")
    assert status_of(running)["placementSummary"] == "2 nodes · 1 zone"
    assert len(await bench.pods()) == 2


async def test_suspend_releases_the_nodes(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=None)
    await bench.submit("first")
    await bench.phase("first", "Running")
    await bench.submit("second")
    await bench.wait("second", lambda j: status_of(j).get("reason") == "InsufficientGpus")
    await bench.patch("first", {"spec": {"suspend": True}})
    suspended = await bench.wait(
        "first", lambda j: condition(j, "Suspended").get("status") == "True"
    )
    assert "placement" not in status_of(suspended)
    await bench.phase("second", "Running")
    await bench.patch("first", {"spec": {"suspend": False}})
    await bench.phase("first", "Queued")
    await bench.api.delete(JOBS, "second", bench.namespace)
    resumed = await bench.phase("first", "Running")
    assert status_of(resumed)["attempt"] == 1
    assert status_of(resumed).get("restarts", 0) == 0
    names = sorted(p["metadata"]["name"] for p in await bench.pod_count(2))
    assert names == ["first-1-0", "first-1-1"]


async def test_deletion_removes_all_child_objects(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=None, delete_after=1.0)
    await bench.submit("doomed")
    await bench.phase("doomed", "Running")
    assert len(await bench.children()) == 5
    await bench.api.delete(JOBS, "doomed", bench.namespace)
    held = await bench.job("doomed")
    assert "llmtrain.dev/finalizer" in held["metadata"]["finalizers"]
    assert await bench.pods(), "the name is held while pods run"
    await bench.gone("doomed")
    assert await bench.pods() == []
    for _ in range(100):
        if not await bench.children():
            break
        await asyncio.sleep(0.2)
    assert await bench.children() == []


async def test_time_to_live(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=0.3)
    await bench.submit("brief", runPolicy={"ttlSecondsAfterFinished": 0})
    await bench.gone("brief")


async def test_deadline_and_clean_pod_policy(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=None)
    policy = {"activeDeadlineSeconds": 2, "cleanPodPolicy": "All"}
    await bench.submit("late", runPolicy=policy)
    failed = await bench.phase("late", "Failed")
    assert condition(failed, "Failed")["reason"] == "DeadlineExceeded"
    assert status_of(failed)["reason"] == "DeadlineExceeded"
    await bench.pod_count(0)


async def test_a_job_of_another_controller_is_not_written(
    operator: OperatorProcess, bench: Bench
) -> None:
    await bench.add_nodes({}, {})
    made = await bench.submit("foreign", managedBy="example.com/other")
    await bench.submit("ours")
    await bench.phase("ours", "Running", "Succeeded")
    found = await bench.job("foreign")
    assert found["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert "finalizers" not in found["metadata"] and "status" not in found


async def test_name_conflict(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=None)
    taken = {"metadata": {"name": "mine"}, "spec": {"ports": [{"port": 80}]}}
    await bench.api.create("services", taken, bench.namespace)
    await bench.submit("mine")
    stuck = await bench.wait(
        "mine", lambda job: condition(job, "PodsReady").get("reason") == "NameConflict"
    )
    assert "services mine" in condition(stuck, "PodsReady")["message"]
    assert status_of(stuck)["reason"] == "NameConflict"
    assert await bench.pods() == []
    await bench.api.delete("services", "mine", bench.namespace)
    await bench.phase("mine", "Running")


async def test_quota(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=None)
    quota = {"metadata": {"name": "tight"}, "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}
    await bench.api.create("resourcequotas", quota, bench.namespace)
    await bench.api.wait_for(
        "resourcequotas", "tight", lambda q: "hard" in (q or {}).get("status", {}), bench.namespace
    )
    await bench.submit("greedy")
    stuck = await bench.wait(
        "greedy", lambda job: condition(job, "PodsReady").get("reason") == "QuotaExceeded"
    )
    assert "raise the quota" in condition(stuck, "PodsReady")["message"]
    await bench.api.delete("resourcequotas", "tight", bench.namespace)
    running = await bench.phase("greedy", "Running")
    assert status_of(running).get("restarts", 0) == 0


async def test_a_signal_restarts_the_gang_on_the_same_nodes(
    operator: OperatorProcess, bench: Bench
) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=None)
    bench.nodes.script(named("hit-0-1"), PodScript(exit_after=0.5, exit_code=137))
    await bench.submit("hit")
    again = await bench.runs("hit", attempt=1)
    status = status_of(again)
    assert status["restarts"] == 1 and status["failures"][0]["exitCode"] == 137
    assert condition(again, "Restarting")["status"] == "False"
    names = sorted(p["metadata"]["name"] for p in await bench.pod_count(2))
    assert names == ["hit-1-0", "hit-1-1"]
    await bench.api.delete("pods", "hit-1-0", bench.namespace)
    deleted = await bench.runs("hit", attempt=2)
    assert status_of(deleted)["failures"][1]["reason"] == "PodDeleted"
    events = await bench.api.list("events", bench.namespace)
    reasons = {e["reason"] for e in events if e["involvedObject"]["kind"] == "LLMTrainingJob"}
    assert {"Valid", "Placed", "Training", "GangRestart"} <= reasons
    assert "llmtrain_operator_recovery_seconds_count" in operator.metrics()


async def test_a_lost_node_leads_to_a_new_placement(
    operator: OperatorProcess, bench: Bench
) -> None:
    nodes = await bench.add_nodes({}, {}, {})
    bench.nodes.default = PodScript(exit_after=None)
    await bench.submit("moving")
    await bench.phase("moving", "Running")
    await bench.nodes.node_not_ready(nodes[1])
    moved = await bench.runs("moving", attempt=1)
    used = [n for b in status_of(moved)["placement"]["blocks"] for n in b["nodes"]]
    assert used == [nodes[0], nodes[2]]
    assert status_of(moved)["failures"][0]["reason"] == "NodeLost"


async def test_startup_timeout_releases_the_nodes(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=None)
    bench.nodes.script(named("slow-0-1"), PodScript(runs_after=3600))
    await bench.submit("slow", failurePolicy={"startupTimeout": "5s", "maxRestarts": 2})
    again = await bench.runs("slow", attempt=1, seconds=60)
    assert status_of(again)["failures"][0]["reason"] == "StartupTimeout"


async def test_progress_is_read_from_rank_zero(operator: OperatorProcess, bench: Bench) -> None:
    await bench.add_nodes({}, {})
    bench.nodes.default = PodScript(exit_after=None)
    await bench.submit("told")
    await bench.phase("told", "Running")
    head = await bench.api.get("pods", "told-0-0", bench.namespace)
    report = {
        "phase": "training",
        "attempt": 0,
        "step": 42,
        "totalSteps": 100,
        "loss": 5.125,
        "stepSeconds": 0.5,
        "tokensPerSecond": 2500.0,
        "mfu": 0.01,
    }

    async with reporting(head, report):
        found = await bench.wait("told", lambda j: "step" in status_of(j).get("progress", {}))
        assert status_of(found)["progress"]["loss"] == 5.125
        assert status_of(found)["progressPercent"] == "42%"
        version = found["metadata"]["resourceVersion"]
        await asyncio.sleep(2.5)
        still = await bench.job("told")
        assert still["metadata"]["resourceVersion"] == version, "nothing moved, nothing written"
