"""What a scrape of the operator costs with 1,000 jobs and 1,000 nodes."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import pytest
from kubernetes.aio.client.configuration import Configuration
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from llmtrain_operator.config import parse
from llmtrain_operator.controller import Controller
from llmtrain_operator.kube.api import Item
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.metrics.registry import Metrics
from tests.support.operator_harness.harness import job_object
from tests.support.operator_harness.observed import PLACEMENT

pytestmark = [pytest.mark.perf, pytest.mark.timeout(300)]

COUNT, PER_LEAF, PODS_PER_JOB = 1_000, 16, 2
MOST_OF_PLAIN = 3.0
"""CPU time of a scrape, relative to a page of as many series whose values are set already (1.5, or
90 ms of a quiet core). The operator answers nothing else meanwhile."""
LABEL = "network.topology.nvidia.com"
TIME = "2026-01-01T00:00:00Z"


def _node(index: int) -> dict[str, Any]:
    labels = {
        f"{LABEL}/leaf": f"leaf-{index // PER_LEAF}",
        f"{LABEL}/spine": f"spine-{index // 256}",
    }
    return {
        "metadata": {"name": f"n{index}", "uid": f"node-{index}", "labels": labels},
        "status": {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": TIME}],
        },
    }


def _job(index: int) -> dict[str, Any]:
    """Return a job: half of them run on two nodes, half wait."""
    raw = job_object(f"job-{index}", f"team-{index % 20}")
    raw["metadata"] |= {"uid": f"job-{index}", "creationTimestamp": TIME, "generation": 1}
    runs = index < COUNT // PODS_PER_JOB
    nodes = [f"n{index * PODS_PER_JOB + i}" for i in range(PODS_PER_JOB)]
    placed = {
        "type": "Placed",
        "status": "True" if runs else "False",
        "reason": "Placed" if runs else "InsufficientGpus",
        "message": "text",
        "lastTransitionTime": TIME,
    }
    status: dict[str, Any] = {
        "phase": "Running" if runs else "Queued",
        "conditions": [placed],
        "plan": {
            "step": {"seconds": 1.0, "collectives": dict.fromkeys(("tp", "dp", "pp", "rep"), 0.1)}
        },
    }
    if runs:
        block = {"path": "", "nodes": nodes}
        status["placement"] = {**PLACEMENT, "gpusPerNode": 8, "blocks": [block]}
    return {**raw, "status": status}


def _pod(index: int) -> dict[str, Any]:
    job = f"job-{index // PODS_PER_JOB}"
    owner = {"controller": True, "uid": job}
    requests = {"limits": {"nvidia.com/gpu": "8"}}
    return {
        "metadata": {
            "name": f"pod-{index}",
            "namespace": f"team-{index // PODS_PER_JOB % 20}",
            "uid": f"pod-{index}",
            "labels": {"llmtrain.dev/job-uid": job, "llmtrain.dev/attempt": "0"},
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": f"n{index}", "containers": [{"resources": requests}]},
        "status": {"phase": "Running"},
    }


def _fill(controller: Controller) -> None:
    """Give the informers their objects as a list of the API server would."""
    informers = controller.informers
    made = ((informers.nodes, _node), (informers.jobs, _job), (informers.pods, _pod))
    for informer, make in made:
        for index in range(COUNT):
            raw = make(index)
            raw["metadata"]["resourceVersion"] = str(index + 1)
            informer._upsert(Item(raw))
    for each in informers:
        each.synced.set()


def _plain(series: int) -> CollectorRegistry:
    """Return a registry with as many series of ten gauges, whose values are set already."""
    registry = CollectorRegistry()
    names = ("namespace", "job", "node")
    gauges = [Gauge(f"plain_{each}", "Text.", names, registry=registry) for each in range(10)]
    for index in range(series):
        labels = f"team-{index % 20}", f"job-{index}", f"n{index}"
        gauges[index % len(gauges)].labels(*labels).set(index)
    return registry


def _cpu_seconds(registry: CollectorRegistry) -> float:
    start = time.process_time()
    generate_latest(registry)
    return time.process_time() - start


async def test_a_scrape_of_a_large_cluster() -> None:
    configuration = Configuration(host="http://127.0.0.1:9")
    metrics = Metrics()
    cluster = KubeClient(configuration, metrics.requests)
    controller = Controller(parse([]), cluster, metrics, lambda _name: None)
    _fill(controller)
    page = generate_latest(metrics.registry)
    series = sum(not line.startswith(b"#") for line in page.splitlines())
    assert page.count(b"llmtrain_operator_job_phase{") == COUNT
    assert b'llmtrain_operator_nodes{state="used"} 1000.0' in page
    plain = _plain(series)
    runs = [(_cpu_seconds(metrics.registry), _cpu_seconds(plain)) for _ in range(9)]
    ours, theirs = (median(run[which] for run in runs) for which in (0, 1))
    print(
        f"\n{series} series, {len(page) / 1e3:.0f} KB: {ours * 1e3:.0f} ms of CPU,"
        f" {ours / theirs:.2f} of plain ones"
    )
    await cluster.close()
    assert ours < MOST_OF_PLAIN * theirs
