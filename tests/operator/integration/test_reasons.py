"""Every wait reason is true: without what it names, the job starts.

There is one case per reason. Each has its own nodes; all run concurrently with one operator
process.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import PodScript, ScriptedNodes
from tests.support.operator_harness.advice import CaseBench
from tests.support.operator_harness.harness import (
    JOBS,
    OperatorProcess,
    condition,
    job_object,
)
from tests.support.operator_harness.node_reasons import CASES, case

pytestmark = pytest.mark.cluster


@case
async def behind_an_older_job(bench: CaseBench) -> None:
    await bench.add_nodes({}, {})
    await bench.runs_small("holder")
    # Within one second the name decides the order: "ahead" comes before "job".
    await bench.submit("ahead")
    await bench.wait_reason("ahead", "InsufficientGpus")
    await bench.small("job")
    await bench.wait_reason(
        "job", "WaitingBehindJob", f"kept for jobs ahead: {bench.namespace}/ahead"
    )
    await bench.api.delete(JOBS, "ahead", bench.namespace)
    await bench.starts("job")


@case
async def behind_a_job_of_higher_priority(bench: CaseBench) -> None:
    await bench.add_nodes({})
    await bench.priority_class(preemptionPolicy="Never")
    await bench.runs_small("holder")
    await bench.small("job")
    await bench.wait_reason("job", "InsufficientGpus")
    await bench.small("vip", priorityClassName=bench.tag)
    await bench.wait_reason("vip", "InsufficientGpus")
    expected = f"ahead in the queue: {bench.namespace}/vip"
    await bench.wait("job", lambda j: expected in condition(j, "Placed").get("message", ""), 60)
    await bench.api.delete(JOBS, "holder", bench.namespace)
    await bench.starts("vip")
    await bench.wait_reason("job", "InsufficientGpus")
    await bench.api.delete(JOBS, "vip", bench.namespace)
    await bench.starts("job")


@case
async def behind_a_namespace_that_holds_less(bench: CaseBench) -> None:
    other = CaseBench(bench.api, f"{bench.namespace}-poor", bench.nodes, bench.tag)
    await other.enter()
    await bench.add_nodes({}, {})
    await bench.runs_small("holder")
    await bench.submit("job")
    await bench.wait_reason("job", "InsufficientGpus")
    await other.submit("younger")
    await other.wait_reason("younger", "InsufficientGpus")
    expected = "ahead in the queue: 1 of other namespaces"
    job = await bench.wait(
        "job", lambda j: expected in condition(j, "Placed").get("message", ""), 60
    )
    await other.api.delete(JOBS, "younger", other.namespace)
    await bench.follow(condition(job, "Placed")["message"])
    await bench.starts("job")
    await other.leave()


@case
async def until_others_have_stopped_for_it(bench: CaseBench) -> None:
    await bench.add_nodes({})
    await bench.priority_class()
    bench.nodes.script(
        lambda pod: pod["metadata"]["name"].startswith(f"low-{bench.tag}"),
        PodScript(exit_after=None, hang_on_delete=True),
    )
    await bench.runs_small(f"low-{bench.tag}")
    await bench.small("job", priorityClassName=bench.tag)
    await bench.wait_reason("job", "Preempting", "pods have ")
    pod = f"low-{bench.tag}-0-0"
    await bench.api.delete("pods", pod, bench.namespace, grace_seconds=0)
    await bench.starts("job")


@case
async def quarantined(bench: CaseBench) -> None:
    [node] = await bench.add_nodes({})
    await bench.runs_small("unlucky")
    for attempt in (1, 2):
        await bench.nodes.node_not_ready(node)
        await bench.wait("unlucky", lambda j, a=attempt: j["status"].get("attempt") == a, 60)
        await bench.nodes.node_ready(node)
        if attempt == 1:
            await bench.runs("unlucky", 1, seconds=60)
    await bench.wait_reason("unlucky", "NodesQuarantined", f"{node} until ")
    await bench.small("job")
    await bench.wait_reason("job", "NodesQuarantined", f"{node} until ")
    await bench.api.delete(JOBS, "unlucky", bench.namespace)
    await bench.starts("job")


@case
async def suspended(bench: CaseBench) -> None:
    await bench.add_nodes({})
    await bench.small("job", suspend=True)
    await bench.wait_reason("job", "Suspended", "spec.suspend is set")
    await bench.patch("job", {"spec": {"suspend": False}})
    await bench.starts("job")


@case
async def the_gate_of_a_queue(bench: CaseBench) -> None:
    await bench.add_nodes({})
    workers = {"nodes": 1, "nodeSelector": {"bench": bench.tag}}
    body = job_object("job", bench.namespace, workers=workers)
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team"}
    await bench.api.create(JOBS, body, bench.namespace)
    await bench.wait_reason("job", "WaitingForQuota", "scheduling gate", kind="PodsReady")
    [pod] = await bench.pods("llmtrain.dev/job-name=job")
    await bench.patch_pod(pod["metadata"]["name"], {"spec": {"schedulingGates": None}})
    await bench.starts("job")


@case
async def the_quota_of_the_namespace(bench: CaseBench) -> None:
    await bench.add_nodes({})
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await bench.api.create("resourcequotas", quota, bench.namespace)
    await bench.small("job")
    await bench.wait_reason("job", "QuotaExceeded", "exceeded quota: none", kind="PodsReady")
    await bench.api.delete("resourcequotas", "none", bench.namespace)
    await bench.starts("job")


@case
async def what_the_server_forbids(bench: CaseBench) -> None:
    await bench.add_nodes({})
    most = {"type": "Container", "max": {"nvidia.com/gpu": "1"}}
    limit = {"metadata": {"name": "most"}, "spec": {"limits": [most]}}
    await bench.api.create("limitranges", limit, bench.namespace)
    await bench.small("job")
    await bench.wait_reason("job", "Forbidden", "maximum nvidia.com/gpu", kind="PodsReady")
    await bench.api.delete("limitranges", "most", bench.namespace)
    await bench.starts("job")


@case
async def a_name_that_is_taken(bench: CaseBench) -> None:
    await bench.add_nodes({})
    await bench.api.create("configmaps", {"metadata": {"name": "job-job"}}, bench.namespace)
    await bench.small("job")
    await bench.wait_reason("job", "NameConflict", "configmaps job-job exists", kind="PodsReady")
    await bench.api.delete("configmaps", "job-job", bench.namespace)
    await bench.starts("job")


@pytest.fixture(scope="module")
def queue_operator(
    installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    process = OperatorProcess(installed, tmp_path_factory.mktemp("operator"), "--kueue=yes")
    process.start()
    yield process
    process.stop()


@pytest.mark.timeout(400)
async def test_without_what_it_names_each_job_starts(
    queue_operator: OperatorProcess, api: Api, scripted_nodes: ScriptedNodes
) -> None:
    scripted_nodes.default = PodScript(exit_after=None)
    run = secrets.token_hex(3)
    tags = [f"{run}-{index}" for index in range(len(CASES))]
    benches = [CaseBench(api, f"case-{tag}", scripted_nodes, tag) for tag in tags]
    await asyncio.gather(*(bench.enter() for bench in benches))
    results = await asyncio.gather(
        *(run_case(bench) for run_case, bench in zip(CASES, benches, strict=True)),
        return_exceptions=True,
    )
    await asyncio.gather(*(bench.leave() for bench in benches))
    failed = {
        run_case.__name__: repr(error)[:2000]
        for run_case, error in zip(CASES, results, strict=True)
        if error is not None
    }
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
