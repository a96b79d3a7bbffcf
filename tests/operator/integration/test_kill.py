"""SIGKILL at any instant is harmless: no pod is created twice, no rank runs twice, the job ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from llmtrain_devcluster.api import Api, Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.kubelet.pod_watch import follow
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.operator_harness.harness import (
    QUICK_LEASE,
    OperatorHarness,
    OperatorProcess,
    condition,
    status_of,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


class PodWatcher:
    """Watches the pods of a namespace and records every violation."""

    def __init__(self, api: Api, namespace: str):
        self._api = api
        self._namespace = namespace
        self._alive: dict[str, dict[str, str]] = {}
        self.made: dict[str, set[str]] = {}
        self.violations: list[str] = []

    async def run(self) -> None:
        async for kind, pod in follow(self._api, "pods", f"metadata.namespace={self._namespace}"):
            self._take(kind, pod)

    def _take(self, kind: str, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]
        labels = metadata["labels"]
        rank = f"{labels['llmtrain.dev/job-name']}/{labels['llmtrain.dev/node-index']}"
        self.made.setdefault(metadata["name"], set()).add(metadata["uid"])
        if len(self.made[metadata["name"]]) > 1:
            self.violations.append(f"{metadata['name']} was created twice")
        alive = self._alive.setdefault(rank, {})
        if kind == "DELETED" or pod["status"]["phase"] in ("Succeeded", "Failed"):
            alive.pop(metadata["uid"], None)
        else:
            alive[metadata["uid"]] = metadata["name"]
        if len(alive) > 1:
            self.violations.append(f"{rank} runs in {sorted(alive.values())}")


async def test_ten_kills(
    installed: ControlPlane, harness: OperatorHarness, api: Api, tmp_path: Path
) -> None:
    chance = random.Random(7)
    nodes = await harness.add_nodes({}, {}, {})
    harness.nodes.default = PodScript(exit_after=None, runs_after=0.5)
    watcher = PodWatcher(api, harness.namespace)
    watching = asyncio.create_task(watcher.run())
    operators = []
    for name in "ab":
        (tmp_path / name).mkdir()
        operators.append(OperatorProcess(installed, tmp_path / name, *QUICK_LEASE))
    leader, heir = operators
    spec = {
        "workers": {"nodes": 3},
        "parallelism": {"tensor": 2, "data": 3},
        "training": {"steps": 9, "globalBatchSize": 6, "microBatchSize": 1},
    }

    async def end_pods(attempt: int, *codes: int) -> None:
        """End the existing pods of an attempt."""
        for index, code in enumerate(codes):
            with contextlib.suppress(LookupError):
                harness.nodes.end(harness.namespace, f"hunted-{attempt}-{index}", code)

    def second_attempt_started(job: Object | None) -> bool:
        """Return True if the second attempt has started or ended."""
        status = status_of(job)
        return status.get("attempt") == 1 and status["phase"] in ("Running", "Succeeded")

    async def run_script(round_: int) -> None:
        if round_ == 0:
            await harness.submit("hunted", **spec)
        elif round_ == 5:
            await harness.runs("hunted", 0)
            await end_pods(0, 200, 137, 200)
        elif round_ == 8:
            attempt = int(status_of(await harness.job("hunted")).get("attempt", 0))
            if status_of(await harness.job("hunted"))["phase"] == "Running":
                await end_pods(attempt, 0, 0, 0)

    try:
        await asyncio.to_thread(leader.start)
        for round_ in range(10):
            # The next one starts up while this one leads, so that the test need not wait for it.
            heir.spawn()
            await run_script(round_)
            await asyncio.sleep(chance.uniform(0.0, 0.8))
            leader.kill()
            leader, heir = heir, leader
            await asyncio.to_thread(leader.await_lead)
        job = await harness.wait("hunted", second_attempt_started)
        if status_of(job)["phase"] == "Running":
            await end_pods(1, 0, 0, 0)
        job = await harness.phase("hunted", "Succeeded")
    finally:
        leader.stop()
        watching.cancel()
    assert watcher.violations == []
    attempts = int(status_of(job)["attempt"]) + 1
    assert attempts == 2 and status_of(job)["restarts"] == 1, status_of(job)
    assert sorted(watcher.made) == [f"hunted-{a}-{i}" for a in range(attempts) for i in range(3)]
    assert condition(job, "Succeeded")["status"] == "True"
    assert len(nodes) == 3


async def test_a_clean_exit_releases_the_lease(
    installed: ControlPlane, harness: OperatorHarness, tmp_path: Path
) -> None:
    first = OperatorProcess(installed, tmp_path, "--lease-duration=600", "--renew-deadline=500")
    await asyncio.to_thread(first.start)
    assert await asyncio.to_thread(first.stop) == 0
    lease = await harness.api.get(
        "coordination.k8s.io/v1/leases", "llmtrain-operator", "llmtrain-system"
    )
    assert lease["spec"]["holderIdentity"] == ""
    await asyncio.to_thread(first.start)  # it does not wait for the lease to run out
    assert first.ask(first.health_port, "/healthz") == 200
    await asyncio.to_thread(first.stop)
