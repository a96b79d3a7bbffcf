"""A controller without a server: objects that tests put into its caches, and recorded writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes.aio.client.configuration import Configuration

from llmtrain_core.api import labels
from llmtrain_operator.controller import Controller
from llmtrain_operator.errors import AlreadyExistsError, NotFoundError
from llmtrain_operator.kube.api import Item, Object
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.resources import Resource
from llmtrain_operator.metrics.registry import Metrics
from tests.support.operator_harness.harness import job_object


class Store(KubeClient):
    """Objects that are read and written without a server."""

    def __init__(self) -> None:
        configuration: Configuration = type.__call__(Configuration)
        configuration.host = "http://127.0.0.1:9"
        super().__init__(configuration, Metrics().requests)
        self.objects: dict[tuple[str, str], Object] = {}
        self.writes: list[tuple[str, str, Any]] = []

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        if (resource.plural, name) not in self.objects:
            raise NotFoundError(404, "NotFound", "not found")
        return self.objects[resource.plural, name]

    async def create(
        self, resource: Resource, body: Object, namespace: str | None = None, **_: Any
    ) -> Object:
        self.writes.append(("create", resource.plural, body))
        if (resource.plural, body["metadata"]["name"]) in self.objects:
            raise AlreadyExistsError(409, "AlreadyExists", "it exists")
        return body | {"metadata": {**body["metadata"], "resourceVersion": "1"}}

    async def patch(
        self, resource: Resource, name: str, body: Any, namespace: str | None = None, **_: Any
    ) -> Object:
        self.writes.append(("patch", resource.plural, body))
        return {"metadata": {"resourceVersion": "8"}}


def put_job(controller: Controller, uid: str, **metadata: Any) -> None:
    raw = job_object("job", "ns", suspend=True)
    raw["metadata"] |= {"uid": uid, "resourceVersion": "7", "generation": 1, **metadata}
    raw["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
    raw["status"] = {"phase": "Running"}
    controller.informers.jobs._upsert(Item(raw))


def put_pod(controller: Controller, uid: str, version: int, phase: str = "Running") -> None:
    metadata = {
        "name": "job-0-0",
        "namespace": "ns",
        "uid": f"pod-of-{uid}",
        "resourceVersion": str(version),
        "labels": {labels.JOB_UID: uid, labels.ATTEMPT: "0"},
        "ownerReferences": [{"controller": True, "uid": uid}],
    }
    spec = {"nodeName": "n0", "containers": []}
    raw = {"metadata": metadata, "spec": spec, "status": {"phase": phase}}
    controller.informers.pods._upsert(Item(raw))


def log_has(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in caplog.records)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)
