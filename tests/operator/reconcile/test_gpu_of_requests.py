"""The queue places a job by the GPU of the nodes, as `llmtrain place` does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_cli.commands.place import request_on
from llmtrain_cli.io.cluster_view import ClusterView
from llmtrain_core.placement import Request
from llmtrain_core.queueing import PendingJob
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.controller import Controller
from llmtrain_operator.kube.api import Item
from tests.support.operator_harness.job_world import JobWorld
from tests.support.operator_harness.store import Store

pytestmark = pytest.mark.unit


def put_node(controller: Controller, name: str, product: str) -> None:
    item = {
        "metadata": {
            "name": name,
            "uid": name,
            "resourceVersion": "1",
            "labels": {"nvidia.com/gpu.product": product},
        },
        "spec": {},
        "status": {"allocatable": {"nvidia.com/gpu": "2"}},
    }
    controller.informers.nodes._upsert(Item(item))


async def test_both_use_the_gpu_of_the_nodes(
    store: Store, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = JobWorld(controller, store, monkeypatch, {})
    job = check("job", world.job["spec"])
    assert isinstance(job, Job)

    def requests() -> tuple[Request, Request]:
        pending = controller._reader.pending_jobs()["uid"]
        assert isinstance(pending, PendingJob)
        nodes = tuple(controller.informers.all_nodes())
        found = request_on(ClusterView(Snapshot((), nodes), (), ()), job, {})
        return pending.request, replace(found, network=None)

    queued, shown = requests()
    assert queued == shown == Request.of(job), "no node is known"
    put_node(controller, "n0", "NVIDIA-A100-SXM4-40GB")
    queued, shown = requests()
    assert queued == shown != Request.of(job)
    put_node(controller, "n1", "NVIDIA-H200")
    queued, shown = requests()
    assert queued == shown == Request.of(job), "the nodes have several"
