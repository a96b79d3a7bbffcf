"""Every wait reason is true: without what it names, the job starts.

There is one case per reason. Each has its own nodes; all run concurrently with one operator
process.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

import pytest

from llmtrain_devcluster.api import Api, Object
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
async def behind_an_older_job(harness: CaseBench) -> None:
    await harness.add_nodes({}, {})
    await harness.runs_small("holder")
    # Within one second the name decides the order: "ahead" comes before "job".
    await harness.submit("ahead")
    await harness.wait_reason("ahead", "InsufficientGpus")
    await harness.small("job")
    await harness.wait_reason(
        "job", "WaitingBehindJob", f"reserved for jobs ahead: {harness.namespace}/ahead"
    )
    await harness.delete("ahead")
    await harness.starts("job")


@case
async def behind_a_job_of_higher_priority(harness: CaseBench) -> None:
    await harness.add_nodes({})
    await harness.priority_class(preemptionPolicy="Never")
    await harness.runs_small("holder")
    await harness.small("job")
    await harness.wait_reason("job", "InsufficientGpus")
    await harness.small("vip", priorityClassName=harness.tag)
    await harness.wait_reason("vip", "InsufficientGpus")
    expected = f"ahead in the queue: {harness.namespace}/vip"
    await harness.wait("job", lambda j: expected in condition(j, "Placed").get("message", ""))
    await harness.delete("holder")
    await harness.starts("vip")
    await harness.wait_reason("job", "InsufficientGpus")
    await harness.delete("vip")
    await harness.starts("job")


@case
async def behind_a_namespace_that_holds_less(harness: CaseBench) -> None:
    other = CaseBench(harness.api, f"{harness.namespace}-poor", harness.nodes, harness.tag)
    await other.enter()
    await harness.add_nodes({}, {})
    await harness.runs_small("holder")
    await harness.submit("job")
    await harness.wait_reason("job", "InsufficientGpus")
    await other.submit("younger")
    await other.wait_reason("younger", "InsufficientGpus")
    expected = "ahead in the queue: 1 of other namespaces"
    job = await harness.wait(
        "job", lambda j: expected in condition(j, "Placed").get("message", ""), 60
    )
    await other.api.delete(JOBS, "younger", other.namespace)
    await harness.follow(condition(job, "Placed")["message"])
    await harness.starts("job")
    await other.leave()


@case
async def until_others_have_stopped_for_it(harness: CaseBench) -> None:
    await harness.add_nodes({})
    await harness.priority_class()
    harness.nodes.script(
        lambda pod: pod["metadata"]["name"].startswith(f"low-{harness.tag}"),
        PodScript(exit_after=None, hang_on_delete=True),
    )
    await harness.runs_small(f"low-{harness.tag}")
    await harness.small("job", priorityClassName=harness.tag)
    await harness.wait_reason("job", "Preempting", "pods have ")
    pod = f"low-{harness.tag}-0-0"
    await harness.api.delete("pods", pod, harness.namespace, grace_seconds=0)
    await harness.starts("job")


@case
async def quarantined(harness: CaseBench) -> None:
    [node] = await harness.add_nodes({})
    await harness.runs_small("unlucky")
    for attempt in (1, 2):
        await harness.nodes.node_not_ready(node)
        await harness.wait("unlucky", lambda j, a=attempt: j["status"].get("attempt") == a)
        await harness.nodes.node_ready(node)
        if attempt == 1:
            await harness.runs("unlucky", 1)
    await harness.wait_reason("unlucky", "NodesQuarantined", f"{node} until ")
    await harness.small("job")
    await harness.wait_reason("job", "NodesQuarantined", f"{node} until ")
    cause = f"(NodeLost of {harness.namespace}/unlucky)"
    await harness.wait_reason("job", "NodesQuarantined", cause)
    await harness.delete("unlucky")
    await harness.starts("job")


@case
async def suspended(harness: CaseBench) -> None:
    await harness.add_nodes({})
    await harness.small("job", suspend=True)
    await harness.wait_reason("job", "Suspended", "spec.suspend is set")
    await harness.patch("job", {"spec": {"suspend": False}})
    await harness.starts("job")


@case
async def the_gate_of_a_queue(harness: CaseBench) -> None:
    await harness.add_nodes({})
    workers = {"nodes": 1, "nodeSelector": {"harness": harness.tag}}
    body = job_object("job", harness.namespace, workers=workers)
    body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team"}
    await harness.api.create(JOBS, body, harness.namespace)
    await harness.wait_reason("job", "WaitingForQuota", "scheduling gate", kind="PodsReady")
    [pod] = await harness.pods("llmtrain.dev/job-name=job")
    await harness.patch_pod(pod["metadata"]["name"], {"spec": {"schedulingGates": None}})
    await harness.starts("job")


@case
async def the_quota_of_the_namespace(harness: CaseBench) -> None:
    await harness.add_nodes({})
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await harness.api.create("resourcequotas", quota, harness.namespace)
    await harness.small("job")
    await harness.wait_reason("job", "QuotaExceeded", "exceeded quota: none")
    await harness.api.delete("resourcequotas", "none", harness.namespace)
    await harness.starts("job")


@case
async def what_the_server_forbids(harness: CaseBench) -> None:
    await harness.add_nodes({})
    most = {"type": "Container", "max": {"nvidia.com/gpu": "1"}}
    limit = {"metadata": {"name": "most"}, "spec": {"limits": [most]}}
    await harness.api.create("limitranges", limit, harness.namespace)
    await harness.small("job")
    await harness.wait_reason("job", "Forbidden", "maximum nvidia.com/gpu")
    await harness.api.delete("limitranges", "most", harness.namespace)
    await harness.starts("job")


@case
async def a_default_limit_below_the_shared_memory(harness: CaseBench) -> None:
    await harness.add_nodes({}, {})
    default = {"type": "Container", "default": {"memory": "512Mi"}}
    limit = {"metadata": {"name": "small"}, "spec": {"limits": [default]}}
    await harness.api.create("limitranges", limit, harness.namespace)
    await harness.small("job")
    remedy = "(at least shmSize); set limits.memory above it, or change the LimitRange"
    await harness.wait_reason("job", "InvalidSpec", remedy, "memory limit of 512Mi")
    await harness.runs_small("limited", workers={"resources": {"limits": {"memory": "2Gi"}}})
    await harness.api.delete("limitranges", "small", harness.namespace)
    await harness.starts("job")


@case
async def a_name_that_is_taken(harness: CaseBench) -> None:
    await harness.add_nodes({})
    await harness.api.create("configmaps", {"metadata": {"name": "job-job-0"}}, harness.namespace)
    await harness.small("job")
    await harness.wait_reason(
        "job", "NameConflict", "configmaps job-job-0 exists", kind="PodsReady"
    )
    await harness.api.delete("configmaps", "job-job-0", harness.namespace)
    await harness.starts("job")


@case
async def a_service_account_that_does_not_exist(harness: CaseBench) -> None:
    await harness.add_nodes({})
    await harness.small("job", workers={"serviceAccountName": "runner"})
    named = 'spec.workers.serviceAccountName: serviceaccount "runner" not found'
    await harness.wait_reason("job", "ObjectNotFound", named)
    await harness.api.create("serviceaccounts", {"metadata": {"name": "runner"}}, harness.namespace)
    await harness.starts("job")


@case
async def a_secret_that_does_not_exist(harness: CaseBench) -> None:
    [node] = await harness.add_nodes({})

    def waits(pod: Object) -> bool:
        return bool(pod["metadata"]["name"].startswith(f"job-{harness.tag}"))

    missing = PodScript(
        reason="CreateContainerConfigError", termination_message='secret "hub" not found'
    )
    harness.nodes.script(waits, missing)
    token = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    name = f"job-{harness.tag}"
    await harness.small(name, workers={"env": [token]})
    await harness.wait_reason(name, "ObjectNotFound", 'secret "hub" not found', kind="PodsReady")
    await harness.wait_reason(name, "ObjectNotFound", f"{name}-0-0 on node {node}")
    harness.nodes.script(waits, PodScript(exit_after=None))
    await harness.starts(name)
    status = (await harness.job(name))["status"]
    assert not status.get("failures") and not status.get("restarts")


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    """Jobs may name a queue of Kueue."""
    return ("--kueue=yes",)


@pytest.mark.timeout(400)
async def test_without_what_it_names_each_job_starts(
    operator: OperatorProcess, api: Api, scripted_nodes: ScriptedNodes
) -> None:
    scripted_nodes.default = PodScript(exit_after=None)
    run = secrets.token_hex(3)
    tags = [f"{run}-{index}" for index in range(len(CASES))]
    benches = [CaseBench(api, f"case-{tag}", scripted_nodes, tag) for tag in tags]
    await asyncio.gather(*(harness.enter() for harness in benches))
    results = await asyncio.gather(
        *(run_case(harness) for run_case, harness in zip(CASES, benches, strict=True)),
        return_exceptions=True,
    )
    await asyncio.gather(*(harness.leave() for harness in benches))
    failed = {
        run_case.__name__: repr(error)[:2000]
        for run_case, error in zip(CASES, results, strict=True)
        if error is not None
    }
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
