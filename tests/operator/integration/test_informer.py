"""The informer against a real API server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_operator.kube.client import KubeClient, load_configuration
from llmtrain_operator.kube.informer import Selection
from llmtrain_operator.kube.resources import CONFIG_MAPS
from llmtrain_operator.metrics.registry import Metrics
from tests.support.operator_harness.informers import RecordedInformer, short_delays  # noqa: F401

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("short_delays")]


async def test_against_a_real_server(
    control_plane: ControlPlane, api: Api, namespace: str, tmp_path: Path
) -> None:
    def config_map(name: str, job: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "labels": {"job": job}}, "data": {}}

    for name in "abc":
        await api.create("configmaps", config_map(name, "j1"), namespace)
    path = control_plane.kubeconfig("admin", tmp_path / "kubeconfig")
    cluster = KubeClient(await load_configuration(str(path)), Metrics().requests)
    follower = RecordedInformer(cluster, Selection(CONFIG_MAPS, namespace, labels="job"))
    task = asyncio.create_task(follower.informer.run())
    try:
        await follower.informer.synced.wait()
        assert follower.names() == set("abc")
        made = await api.create("configmaps", config_map("d", "j2"), namespace)
        await api.delete("configmaps", "a", namespace)
        await follower.until(lambda: follower.names() == set("bcd"))
        assert follower.informer.last_version >= int(made["metadata"]["resourceVersion"])
        assert follower.informer.by_index("job", "j2") == [("d", "j2")]
        # A version that the server cannot serve any more, or never had: it lists again.
        follower.informer._resume = "1"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.delete("configmaps", "b", namespace)
        task = asyncio.create_task(follower.informer.run())
        await follower.until(lambda: follower.names() == set("cd"))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await cluster.close()
