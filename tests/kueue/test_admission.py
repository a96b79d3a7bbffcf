"""A real Kueue admits, evicts and admits again the pod groups of jobs."""

from __future__ import annotations

import asyncio

import pytest

from llmtrain_devcluster.api import Object
from tests.support.kueue.queues import API, QUEUE, WORKLOADS, Queues, holds, lacks_quota
from tests.support.operator_harness.harness import status_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

BATCH_JOBS = "batch/v1/jobs"
PRIORITIES = f"{API}/workloadpriorityclasses"


def end(queues: Queues, name: str, attempt: int, code: int = 0) -> None:
    """End the pods of a job."""
    for index in range(2):
        queues.harness.nodes.end(queues.harness.namespace, f"{name}-{attempt}-{index}", code)


async def waits_for_quota(queues: Queues, name: str) -> Object:
    return await queues.harness.reason(name, "PodsReady", "WaitingForQuota")


async def second_waits_for_first(queues: Queues) -> None:
    """Create queues and two jobs, of which the first one takes the whole quota."""
    await queues.create(gpus=4)
    await queues.submit("first")
    await queues.harness.runs("first", 0, seconds=60)
    await queues.submit("second")
    await waits_for_quota(queues, "second")


async def wait_until_refused(queues: Queues, count: int) -> None:
    """Wait until Kueue has found no quota for so many Workloads, and for the next second.

    Until then a Workload may get quota before older ones, which Kueue tries again later. Kueue
    orders Workloads by the time of their creation, in whole seconds.
    """
    await queues.become(lambda found: sum(map(lacks_quota, found.values())) == count, 60)
    await asyncio.sleep(1.1)


async def test_a_job_waits_until_quota_is_free(queues: Queues) -> None:
    await second_waits_for_first(queues)
    for pod in await queues.harness.pods("llmtrain.dev/job-name=second"):
        assert "nodeName" not in pod["spec"]
        assert pod["metadata"]["finalizers"] == ["kueue.x-k8s.io/managed"]
    (workload,) = [w for w in (await queues.workloads()).values() if not holds(w, "Admitted")]
    assert [s["count"] for s in workload["spec"]["podSets"]] == [2]
    end(queues, "first", 0)
    await queues.harness.phase("first", "Succeeded", seconds=60)
    await queues.harness.runs("second", 0, seconds=60)
    end(queues, "second", 0)
    done = await queues.harness.phase("second", "Succeeded", seconds=60)
    assert status_of(done).get("restarts", 0) == 0
    await queues.become(lambda found: all(holds(w, "Finished") for w in found.values()))


async def test_an_evicted_job_is_queued_again(queues: Queues) -> None:
    await queues.create(gpus=4)
    await queues.submit("job")
    await queues.harness.runs("job", 0, seconds=60)
    await queues.patch(stopPolicy="HoldAndDrain")
    evicted = await queues.harness.wait("job", lambda job: status_of(job).get("attempt") == 1, 60)
    assert status_of(evicted).get("restarts", 0) == 0
    await waits_for_quota(queues, "job")
    await queues.patch(stopPolicy="None")
    await queues.harness.runs("job", 1, seconds=60)


async def test_a_restart_is_admitted_again(queues: Queues) -> None:
    await queues.create(gpus=4)
    await queues.submit("job")
    await queues.harness.runs("job", 0, seconds=60)
    end(queues, "job", 0, code=137)
    again = await queues.harness.runs("job", 1, seconds=60)
    assert status_of(again)["restarts"] == 1


async def test_a_job_of_higher_priority_evicts_another(queues: Queues) -> None:
    await queues.create(gpus=4, preemption={"withinClusterQueue": "LowerPriority"})
    urgent = {"kind": "WorkloadPriorityClass", "apiVersion": API, "value": 100}
    await queues.api.create(PRIORITIES, {**urgent, "metadata": {"name": queues.name}})
    await queues.submit("low")
    await queues.harness.runs("low", 0, seconds=60)
    await queues.submit("urgent", {"kueue.x-k8s.io/priority-class": queues.name})
    await queues.harness.runs("urgent", 0, seconds=60)
    low = await waits_for_quota(queues, "low")
    assert status_of(low)["attempt"] == 1 and status_of(low).get("restarts", 0) == 0
    end(queues, "urgent", 0)
    await queues.harness.runs("low", 1, seconds=60)
    await queues.api.delete(PRIORITIES, queues.name)


async def test_jobs_of_other_kinds_have_their_turn(queues: Queues) -> None:
    await second_waits_for_first(queues)
    await wait_until_refused(queues, 1)
    await queues.api.create(BATCH_JOBS, batch_job(queues), queues.harness.namespace)
    await wait_until_refused(queues, 2)
    end(queues, "first", 0)
    await queues.harness.runs("second", 0, seconds=60)
    assert (await queues.api.get(BATCH_JOBS, "other", queues.harness.namespace))["spec"]["suspend"]
    await queues.submit("third")
    await wait_until_refused(queues, 2)
    end(queues, "second", 0)
    await queues.api.wait_for(
        BATCH_JOBS,
        "other",
        lambda job: (job or {}).get("status", {}).get("active") == 2,
        queues.harness.namespace,
        seconds=60,
    )
    assert status_of(await queues.harness.job("third"))["phase"] == "Starting"
    await queues.api.delete(BATCH_JOBS, "other", queues.harness.namespace)
    await queues.harness.runs("third", 0, seconds=60)


def batch_job(queues: Queues) -> Object:
    amount = {"nvidia.com/gpu": "2"}
    container = {
        "name": "main",
        "image": "example.com/x:1",
        "resources": {"requests": amount, "limits": amount},
    }
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "nodeSelector": {"harness": queues.harness.tag},
    }
    return {
        "metadata": {"name": "other", "labels": {"kueue.x-k8s.io/queue-name": QUEUE}},
        "spec": {"parallelism": 2, "completions": 2, "template": {"spec": pod}},
    }


async def test_a_job_without_a_queue_gets_nodes_that_wait_for_quota(queues: Queues) -> None:
    await second_waits_for_first(queues)
    await queues.harness.submit("beside")
    await queues.harness.runs("beside", 0, seconds=60)
    second = await queues.harness.phase("second", "Queued", seconds=60)
    assert status_of(second).get("restarts", 0) == 0
    end(queues, "first", 0)
    await queues.harness.runs("second", 1, seconds=60)
    assert status_of(await queues.harness.job("beside")).get("attempt", 0) == 0


async def test_a_waiting_job_that_is_deleted_leaves_nothing(queues: Queues) -> None:
    await queues.create(gpus=2)
    await queues.submit("job")
    await waits_for_quota(queues, "job")
    await queues.harness.delete("job", seconds=60)
    await queues.become(lambda found: found == {})


async def test_a_job_may_have_the_name_of_one_before_it(queues: Queues) -> None:
    await queues.create(gpus=4)
    for _ in range(3):
        await queues.submit("job")
        await queues.harness.runs("job", 0, seconds=60)
        await queues.harness.delete("job", seconds=60)


async def test_a_suspended_job_returns_its_quota(queues: Queues) -> None:
    await second_waits_for_first(queues)
    await queues.harness.patch("first", {"spec": {"suspend": True}})
    await queues.harness.runs("second", 0, seconds=60)
    await queues.harness.patch("first", {"spec": {"suspend": False}})
    await waits_for_quota(queues, "first")
    end(queues, "second", 0)
    await queues.harness.runs("first", 1, seconds=60)


async def test_a_deleted_workload_queues_the_job_again(queues: Queues) -> None:
    await queues.create(gpus=4)
    await queues.submit("job")
    await queues.harness.runs("job", 0, seconds=60)
    (name,) = await queues.workloads()
    await queues.api.delete(WORKLOADS, name, queues.harness.namespace)
    again = await queues.harness.runs("job", 1, seconds=60)
    assert status_of(again).get("restarts", 0) == 0
