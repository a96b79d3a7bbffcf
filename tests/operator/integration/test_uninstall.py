"""The finalizer of the operator is removed from jobs, also from those that change meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api.labels import FINALIZER
from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_operator.errors import ForbiddenError
from llmtrain_operator.kube.client import KubeClient, load_configuration
from llmtrain_operator.kube.resources import JOBS, Resource
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.uninstall import release_jobs
from tests.support.operator_harness.harness import job_object

pytestmark = pytest.mark.cluster

OTHER = "example.com/other"
PATH = "llmtrain.dev/v1alpha1/llmtrainingjobs"


class LateClient(KubeClient):
    """A client whose first patch comes after another change of the object."""

    changes = 1

    async def patch(self, resource: Resource, name: str, body: Any, *rest: Any, **more: Any) -> Any:
        if self.changes:
            self.changes -= 1
            change = {"metadata": {"labels": {"example.com/changed": "yes"}}}
            await super().patch(resource, name, change, *rest, **more)
        return await super().patch(resource, name, body, *rest, **more)


@pytest.fixture
async def client(installed: ControlPlane, tmp_path: Path) -> AsyncIterator[LateClient]:
    config = await load_configuration(str(installed.kubeconfig("admin", tmp_path / "kubeconfig")))
    found = LateClient(config, Metrics().requests)
    yield found
    await found.close()


async def create_job(api: Api, namespace: str, name: str, *finalizers: str) -> None:
    """Create a job that no operator manages."""
    job = job_object(name, namespace, managedBy="example.com/controller")
    job["metadata"]["finalizers"] = [*finalizers]
    await api.create(PATH, job, namespace)


async def test_only_the_finalizer_of_the_operator_is_removed(
    client: LateClient, api: Api, namespace: str
) -> None:
    await create_job(api, namespace, "first", OTHER, FINALIZER)
    await create_job(api, namespace, "second", FINALIZER)
    await create_job(api, namespace, "third", OTHER)
    assert await release_jobs(client, [namespace]) == 2
    assert client.changes == 0
    left = {j["metadata"]["name"]: j["metadata"].get("finalizers") for j in await api.list(PATH)}
    assert left.items() >= {"first": [OTHER], "second": None, "third": [OTHER]}.items()
    for name in ("first", "third"):
        await client.patch(JOBS, name, {"metadata": {"finalizers": None}}, namespace)


async def test_a_refused_request_is_repeated_and_then_an_error(
    installed: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain_operator.uninstall.RETRY_SECONDS", 0.01)
    file = installed.kubeconfig("unprivileged", tmp_path / "kubeconfig")
    requests = Metrics().requests
    cluster = KubeClient(await load_configuration(str(file)), requests)
    with pytest.raises(ForbiddenError):
        await release_jobs(cluster, [])
    await cluster.close()
    assert requests.labels("list", JOBS.plural, "403")._value.get() == 10
