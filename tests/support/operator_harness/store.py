"""Objects that a controller reads and writes without a server."""

from __future__ import annotations

from typing import Any

from kubernetes.aio.client.configuration import Configuration

from llmtrain_operator.errors import AlreadyExistsError, NotFoundError
from llmtrain_operator.kube.api import Object
from llmtrain_operator.kube.client import KubeClient
from llmtrain_operator.kube.resources import Resource
from llmtrain_operator.metrics.registry import Metrics


class Store(KubeClient):
    """Objects by plural and name, and the writes so far."""

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
