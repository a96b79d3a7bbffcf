"""CPU time of what is done for a gang grows with its nodes, not with their square.

A scheduling cycle and a reconcile run in the event loop of the operator, which does nothing else
meanwhile.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import PendingJob
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.informers import ChangeHandlers, Informers
from llmtrain_operator.cache.records import NodeRecord
from llmtrain_operator.config import Config
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.manifests.pod import make_pod, make_pod_template, pod_of_node
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.reconcile.checklist import decide
from llmtrain_operator.scheduler.snapshot import ClusterReader
from tests.support.operator_harness.jobs import IDENTITY, checked_job
from tests.support.operator_harness.observed import make_observed, node, pod, status
from tests.support.operator_harness.scheduling import record

pytestmark = pytest.mark.perf

SMALL, LARGE = 1_000, 8_000
MAX_RATIO = 2.5 * LARGE / SMALL
"""Measured: 6 to 11 times, and 27 and more where all pairs of nodes were compared."""


def spec_of(size: int) -> dict[str, Any]:
    return {
        "workers": {"nodes": size, "gpusPerNode": 2},
        "parallelism": {"tensor": 2, "data": size},
        "training": {"steps": 100, "globalBatchSize": size, "microBatchSize": 1},
    }


def placed(size: int, *true: ConditionType, **more: Any) -> dict[str, Any]:
    """The status of a gang with the nodes n0, n1, ..., sixteen in a leaf."""
    names = [f"n{index}" for index in range(size)]
    placement = {
        "attempt": 0,
        "gpusPerNode": 2,
        "blocks": [
            {"path": f"leaf-{start // 16}", "nodes": names[start : start + 16]}
            for start in range(0, size, 16)
        ],
        "levels": [{"level": "node", "domains": size}],
        "explanation": "text",
    }
    return status(*true, placement=placement, placementSummary=f"{size} nodes", **more)


def nodes_of(size: int) -> dict[str, NodeRecord]:
    return {f"n{index}": node(f"n{index}") for index in range(size)}


def cycle(size: int) -> Callable[[], object]:
    """The input of a scheduling cycle beside a gang that runs and one that has ended."""
    handlers = ChangeHandlers(*[lambda *_: None] * 7)
    informers = Informers(cast(KubeApi, None), None, False, handlers, Metrics())
    running = record("uid", placed(size, ConditionType.RUNNING), **spec_of(size))
    informers.jobs._store(running.uid, None, running)
    waiting = record("waiting", **spec_of(size))
    informers.jobs._store(waiting.uid, None, waiting)
    for name, found in nodes_of(size).items():
        informers.nodes._store(name, None, found)
    for index in range(size):
        own = pod(index)
        informers.pods._store(own.uid, None, own)
    reader = ClusterReader(informers, CheckedJobs(), lambda *_: frozenset(), Config())

    def read() -> None:
        assert isinstance(reader.pending_jobs()["waiting"], PendingJob)
        state = reader.cluster_state({})
        assert len({used.node for used in state.usage}) == size and not state.expired

    return read


def reconcile(observed: Observed, wanted: Callable[[Any], bool]) -> Callable[[], object]:
    def run() -> None:
        assert wanted(decide(observed))

    return run


def starting(size: int) -> Callable[[], object]:
    found = make_observed(placed(size), spec=spec_of(size), nodes=nodes_of(size), pods=[])
    return reconcile(found, lambda actions: len(actions.create_pods) == size)


def running(size: int) -> Callable[[], object]:
    state = placed(size, ConditionType.RUNNING)
    pods = [pod(index) for index in range(size)]
    found = make_observed(state, spec=spec_of(size), nodes=nodes_of(size), pods=pods)
    return reconcile(found, lambda actions: actions.status["phase"] == "Running")


def restarting(size: int) -> Callable[[], object]:
    state = placed(size, ConditionType.RUNNING)
    lost = pod(size - 1, "Failed", reason="Evicted", disruption="EvictionByEvictionAPI")
    pods = [*(pod(index) for index in range(size - 1)), lost]
    found = make_observed(state, spec=spec_of(size), nodes=nodes_of(size), pods=pods)
    return reconcile(found, lambda actions: actions.status["restarts"] == 1)


def ending(size: int) -> Callable[[], object]:
    completed = {"attempt": 0, "indexes": f"0-{size - 2}"}
    state = placed(size, ConditionType.RUNNING, completedPods=completed)
    found = make_observed(state, spec=spec_of(size), nodes=nodes_of(size), pods=[pod(size - 1)])
    return reconcile(found, lambda actions: actions.status["phase"] == "Running")


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time without the garbage collector, whose cost depends on what other tests have left."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        work()
        return time.process_time() - start
    finally:
        gc.enable()


@pytest.mark.parametrize("make", [cycle, starting, running, restarting, ending])
def test_the_cost_grows_with_the_gang(make: Callable[[int], Callable[[], object]]) -> None:
    few, many = make(SMALL), make(LARGE)
    measured = [(cpu_seconds(few), cpu_seconds(many)) for _ in range(5)]
    small, large = (min(seconds) for seconds in zip(*measured, strict=True))
    print(
        f"\n{make.__name__}: {small * 1e3:.1f} ms, {large * 1e3:.1f} ms, {large / small:.1f} times"
    )
    assert large < MAX_RATIO * small


def test_a_pod_of_a_gang_costs_little_beside_its_template() -> None:
    job, nodes = checked_job(), [f"n{index}" for index in range(SMALL)]

    def alone() -> None:
        for index in range(SMALL):
            make_pod(job, IDENTITY, 0, index, nodes)

    def together() -> None:
        template = make_pod_template(job, IDENTITY, 0)
        for index in range(SMALL):
            pod_of_node(template, job, IDENTITY, 0, index, nodes[index], {})

    measured = [(cpu_seconds(alone), cpu_seconds(together)) for _ in range(5)]
    whole, shared = (min(seconds) for seconds in zip(*measured, strict=True))
    print(f"\n{whole * 1e6 / SMALL:.1f} us a pod alone, {shared * 1e6 / SMALL:.1f} us in a gang")
    assert shared < whole / 4  # measured: 0.08
