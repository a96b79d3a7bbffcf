"""Jobs are preempted while the operator is killed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import PodScript, named
from tests.support.operator_harness.harness import (
    QUICK_LEASE,
    OperatorHarness,
    OperatorProcess,
    condition,
    status_of,
)
from tests.support.operator_harness.queue_watch import QueueWatcher, Replay

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(420)
async def test_killed_while_gangs_stop_for_another(
    installed: ControlPlane, harness: OperatorHarness, api: Api, tmp_path: Path
) -> None:
    chance = random.Random(7)
    resource, name = "scheduling.k8s.io/v1/priorityclasses", f"vip-{harness.namespace}"
    await api.create(resource, {"metadata": {"name": name}, "value": 1000})
    await harness.add_nodes(*({} for _ in range(4)))
    harness.nodes.default = PodScript(exit_after=None, delete_after=0.3)
    slow = PodScript(exit_after=None, delete_after=2.0)
    harness.nodes.script(named("vip-.*-[23]"), slow)
    watcher = QueueWatcher(api, harness.namespace)
    watcher.start()
    operators = []
    for letter in "ab":
        (tmp_path / letter).mkdir()
        operators.append(OperatorProcess(installed, tmp_path / letter, *QUICK_LEASE))
    leader, heir = operators
    try:
        await asyncio.to_thread(leader.start)
        for low in ("one", "two"):
            await harness.submit(low)
            await harness.phase(low, "Running")
        four = {"workers": {"nodes": 4}, "parallelism": {"tensor": 2, "data": 4}}
        await harness.submit("vip", priorityClassName=name, **four)
        for _ in range(4):
            heir.spawn()
            await asyncio.sleep(chance.uniform(0.0, 1.2))
            leader.kill()
            leader, heir = heir, leader
            await asyncio.to_thread(leader.await_lead)
        vip = await harness.phase("vip", "Running")
        assert (status_of(vip).get("attempt", 0), status_of(vip).get("preemptions", 0)) == (0, 0)
        for low in ("one", "two"):
            job = await harness.phase(low, "Queued")
            assert status_of(job)["preemptions"] == 1 and status_of(job)["restarts"] == 0
            assert condition(job, "Running")["reason"] == "Preempted"
            assert f"preempted by {harness.namespace}/vip" in condition(job, "Running")["message"]
        await harness.delete("vip")
        for low in ("one", "two"):
            await harness.runs(low, attempt=1)
    finally:
        watcher.stop()
        await harness.clear()
        leader.stop()
        await api.delete(resource, name)
    account = Replay(2).run(watcher.revisions)
    assert account.violations == []
    assert {a.preempted_for for a in account.attempts if a.job != "vip"} == {"vip", ""}
