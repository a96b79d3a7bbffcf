"""What following pods costs: CPU time of this process, the server being another one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from kubernetes.aio.client.configuration import Configuration

from llmtrain_operator.cache.records import PodRecord, pod_record
from llmtrain_operator.controller import tune_gc
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.informer import Informer, Selection
from llmtrain_operator.kube.resources import PODS
from llmtrain_operator.metrics.registry import Metrics
from tests.support.cpu_time import Laps
from tests.support.operator_harness import fake_api

pytestmark = pytest.mark.perf

FAKE = Path(fake_api.__file__)
PODS_COUNT, EVENTS, WATCHES = 2_000, 20_000, 3
THOUSAND, BOUND = 1_000, 10_000

SIZE = len(json.dumps(fake_api.big_pod(1, 1)))


async def test_events_per_cpu_second() -> None:
    server = subprocess.Popen(
        [sys.executable, str(FAKE), str(PODS_COUNT), str(EVENTS)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        await _measure(server.stdout.readline().strip())
    finally:
        server.kill()
        server.wait()


async def _measure(url: str) -> None:
    configuration = Configuration(host=url)
    cluster = KubeClient(configuration, Metrics().requests)
    metrics = Metrics()
    woken: set[str] = set()
    informer = Informer[PodRecord](
        "pods",
        cluster,
        Selection(PODS),
        pod_record,
        indexes={"job": lambda pod: pod.job, "node": lambda pod: pod.node or None},
        on_change=lambda _, new: woken.add(new.job) if new else None,
        observer=metrics,
    )
    tune_gc()
    laps, start = Laps(), time.perf_counter()
    task = asyncio.create_task(informer.run())
    await informer.synced.wait()
    listing = laps.lap()
    watching = []
    first = informer.last_version
    for number in range(1, WATCHES + 1):
        while informer.last_version < first + number * EVENTS:
            await asyncio.sleep(0.02)
        watching.append(laps.lap())
    wall = time.perf_counter() - start
    task.cancel()
    await cluster.close()
    rate = WATCHES * EVENTS / (listing + sum(watching))
    told = ", ".join(f"{EVENTS / seconds:,.0f}" for seconds in watching)
    print(
        f"\n{WATCHES * EVENTS} events of {SIZE} bytes, 2 relists of {PODS_COUNT}, {wall:.2f} s:"
        f" {rate:,.0f} events per second of a core, lists included; by watch: {told}"
        f"\nfirst list: {listing / PODS_COUNT * 1e6:.0f} us a pod"
    )
    assert len(woken) == PODS_COUNT // 8
    assert rate >= BOUND


def test_memory_per_thousand_pods() -> None:
    tracemalloc.start()
    records = [
        pod_record(json.loads(json.dumps(fake_api.big_pod(i, i)))) for i in range(2 * THOUSAND)
    ]
    size, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"\nmemory: {size // 1024 * THOUSAND // len(records)} KiB per 1,000 pods")
    assert size / len(records) < SIZE / 3
