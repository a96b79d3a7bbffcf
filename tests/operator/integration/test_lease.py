"""There is at most one leader, and a leader that was paused checks its lease before it writes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from llmtrain_operator.config import LeaseTiming
from llmtrain_operator.errors import LeaseLostError
from llmtrain_operator.kube.client import KubeClient, load_configuration
from llmtrain_operator.kube.leader_election import LeaderElector
from llmtrain_operator.kube.lease_thread import LeaseThread
from llmtrain_operator.kube.resources import CONFIG_MAPS, LEASES
from llmtrain_operator.metrics.registry import Metrics
from tests.support.operator_harness.harness import (
    LOST,
    SHORT_LEASE,
    OperatorHarness,
    OperatorProcess,
    is_renewal,
)

pytestmark = pytest.mark.cluster

TIMING = LeaseTiming(duration=4.5, renew_deadline=3.5, retry_period=0.4)


@pytest.fixture
async def cluster(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[KubeClient]:
    configuration = await load_configuration(
        str(control_plane.kubeconfig("admin", tmp_path / "kubeconfig"))
    )
    found = KubeClient(configuration, Metrics().requests)
    yield found
    await found.close()


def contender(cluster: KubeClient, namespace: str, name: str) -> LeaderElector:
    return LeaderElector(cluster, namespace, "only-one", name, TIMING)


async def test_two_contenders(cluster: KubeClient, namespace: str) -> None:
    first, second = (contender(cluster, namespace, name) for name in ("first", "second"))
    await first.acquire()
    lost = asyncio.Event()
    renewing = asyncio.create_task(first.renew_until_lost(lost.set))
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(2 * TIMING.duration)
    assert first.is_leader and not second.is_leader and not waiting.done()
    second_clashes = [second.fence, first.fence]
    with pytest.raises(LeaseLostError):
        second_clashes[0]()
    second_clashes[1]()
    renewing.cancel()
    await first.release()
    assert not first.is_leader
    async with asyncio.timeout(20):
        await waiting
    assert second.is_leader
    found = await cluster.get(LEASES, "only-one", namespace)
    assert found["spec"]["holderIdentity"] == "second"
    assert found["spec"]["leaseTransitions"] == 2


async def test_a_dead_leader_is_replaced_after_the_lease_duration(
    cluster: KubeClient, namespace: str
) -> None:
    first, second = (contender(cluster, namespace, name) for name in ("first", "second"))
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    overlap = False
    while not second.is_leader:
        await asyncio.sleep(0.02)
        overlap = overlap or (first.is_leader and second.is_leader)
    await waiting
    assert not overlap and not first.is_leader


async def test_a_lease_held_by_another_is_lost(
    cluster: KubeClient, api: Api, namespace: str
) -> None:
    lease = contender(cluster, namespace, "first")
    await lease.acquire()
    fenced = KubeClient(cluster._configuration, Metrics().requests, fence=lease.fence)
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "written"}}
    await fenced.create(CONFIG_MAPS, body, namespace)
    lost = asyncio.Event()
    renewing = asyncio.create_task(lease.renew_until_lost(lost.set))
    body = {"spec": {"holderIdentity": "thief", "renewTime": "2030-01-01T00:00:00.000000Z"}}
    await api.patch("coordination.k8s.io/v1/leases", "only-one", body, namespace)
    async with asyncio.timeout(20):
        await lost.wait()
    with pytest.raises(LeaseLostError):
        await fenced.delete(CONFIG_MAPS, "written", namespace)
    assert (await fenced.get(CONFIG_MAPS, "written", namespace))["metadata"]["name"] == "written"
    await renewing
    await fenced.close()


async def test_a_busy_event_loop_does_not_lose_the_lease(
    cluster: KubeClient, namespace: str
) -> None:
    client = KubeClient(cluster._configuration, Metrics().requests)
    lease = contender(client, namespace, "first")
    ends: list[str] = []
    thread = LeaseThread(lease, client, lambda: ends.append("lost"), ends.append)
    thread.start()
    await thread.acquire()
    # Blocks this event loop for longer than the leader may write without a renewal.
    time.sleep(TIMING.renew_deadline + 0.5)
    assert lease.is_leader and not ends
    await thread.stop()
    assert not lease.is_leader and not ends
    found = await cluster.get(LEASES, "only-one", namespace)
    assert found["spec"]["holderIdentity"] == ""


async def test_an_error_in_the_thread_of_the_lease_is_reported(
    cluster: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = KubeClient(cluster._configuration, Metrics().requests)
    lease = contender(client, namespace, "first")
    ended = threading.Event()
    thread = LeaseThread(lease, client, lambda: None, lambda _task: ended.set())
    thread.start()
    await thread.acquire()

    async def broken() -> bool:
        raise AttributeError("a defect")

    monkeypatch.setattr(lease, "_try_acquire_or_renew", broken)
    assert await asyncio.to_thread(ended.wait, 20)
    await thread.stop()


def written(cluster: ControlPlane) -> int:
    """Return all writes except rejected renewals: one may have been in flight at the pause."""
    return sum(
        e["responseStatus"]["code"] < 400 or not is_renewal(e) for e in cluster.writes("researcher")
    )


async def test_a_paused_leader_writes_nothing_when_it_resumes(
    installed: ControlPlane, harness: OperatorHarness, tmp_path: Path
) -> None:
    for kind, name, where in (
        ("ClusterRole", "llmtrain-operator", None),
        ("Role", "llmtrain-operator-lease", "llmtrain-system"),
    ):
        user = {"kind": "User", "name": "researcher", "apiGroup": "rbac.authorization.k8s.io"}
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding" if where is None else "RoleBinding",
            "metadata": {"name": "second-operator", **({"namespace": where} if where else {})},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [user],
        }
        await harness.api.apply(binding, where)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    stopped = OperatorProcess(installed, tmp_path / "a", *SHORT_LEASE, user="researcher")
    successor = OperatorProcess(installed, tmp_path / "b", *SHORT_LEASE, user=OPERATOR_USER)
    try:
        await asyncio.to_thread(stopped.start)
        os.kill(stopped.pid, signal.SIGSTOP)
        await asyncio.to_thread(successor.start)
        await harness.add_nodes({}, {})
        await harness.submit("handed")
        await harness.phase("handed", "Running", "Succeeded")
        before = written(installed)
        os.kill(stopped.pid, signal.SIGCONT)
        assert await asyncio.to_thread(stopped.wait, 10) == LOST
        assert written(installed) == before
        assert successor.alive() and successor.leads()
    finally:
        for process in (stopped, successor):
            if process.alive():
                process.kill()
