"""A fake driver in a real cluster: its slices, and the controller of ComputeDomains.

The API server, kube-scheduler and the controllers of claims are real. Only what a driver does on
nodes is missing: no device is prepared.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from llmtrain_devcluster.api import Api, ApiStatusError
from tests.support.devices.objects import CHANNEL_CLASS, Object

GROUP = "resource.k8s.io/v1"
SLICES, CLASSES, CLAIMS, TEMPLATES = (
    f"{GROUP}/{plural}"
    for plural in ("resourceslices", "deviceclasses", "resourceclaims", "resourceclaimtemplates")
)
DOMAIN_GROUP, DOMAIN_PLURAL = "resource.nvidia.com", "computedomains"
DOMAINS = f"{DOMAIN_GROUP}/v1beta1/{DOMAIN_PLURAL}"
CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"
FINALIZER = "resource.nvidia.com/computeDomain"
_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def compute_domain_crd() -> Object:
    """Return a definition with the fields of the driver's that the operator writes."""
    template = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}},
    }
    channel = {
        "type": "object",
        "required": ["resourceClaimTemplate"],
        "properties": {
            "resourceClaimTemplate": template,
            "allocationMode": {"type": "string", "enum": ["All", "Single"]},
        },
    }
    spec = {
        "type": "object",
        "required": ["channel"],
        "properties": {"numNodes": {"type": "integer", "minimum": 0}, "channel": channel},
        "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "it is immutable"}],
    }
    schema = {"type": "object", "properties": {"spec": spec, "status": _OPEN}}
    version = {
        "name": "v1beta1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{DOMAIN_PLURAL}.{DOMAIN_GROUP}"},
        "spec": {
            "group": DOMAIN_GROUP,
            "scope": "Namespaced",
            "names": {
                "plural": DOMAIN_PLURAL,
                "singular": "computedomain",
                "kind": "ComputeDomain",
                "listKind": "ComputeDomainList",
            },
            "versions": [version],
        },
    }


class FakeDriver:
    """Publishes devices of nodes, and removes them at the end."""

    def __init__(self, api: Api):
        self._api = api
        self._published: list[str] = []

    async def publish(self, *objects: Object) -> None:
        """Create slices and classes. A class that exists stays."""
        for raw in objects:
            if raw["kind"] == "DeviceClass":
                with contextlib.suppress(ApiStatusError):
                    await self._api.create(CLASSES, raw)
            else:
                await self._api.create(SLICES, raw)
                self._published.append(raw["metadata"]["name"])

    async def withdraw(self) -> None:
        """Delete the slices."""
        for name in self._published:
            await self._api.delete(SLICES, name, missing_ok=True)

    async def claims(self, namespace: str) -> list[Object]:
        """Return the claims of a namespace that have devices."""
        found = await self._api.list(CLAIMS, namespace)
        return [each for each in found if (each.get("status") or {}).get("allocation")]

    async def released(self, namespace: str, seconds: float = 60.0) -> None:
        """Wait until no claim of a namespace has devices."""
        async with asyncio.timeout(seconds):
            while await self.claims(namespace):
                await asyncio.sleep(0.1)

    async def install_compute_domains(self) -> None:
        """Create the definition, and wait until it is served."""
        crd = compute_domain_crd()
        await self._api.apply(crd)
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(ApiStatusError):
                    await self._api.list(DOMAINS)
                    return
                await asyncio.sleep(0.1)

    async def remove_compute_domains(self) -> None:
        """Delete the definition, if it exists."""
        await self._api.delete(CRDS, f"{DOMAIN_PLURAL}.{DOMAIN_GROUP}", missing_ok=True)

    @contextlib.asynccontextmanager
    async def controlling(self, namespace: str) -> AsyncIterator[None]:
        """Do what the driver's controller does for the ComputeDomains of a namespace.

        It holds each with a finalizer, creates the template of its channel, and deletes it again.
        """
        task = asyncio.create_task(self._control(namespace))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _control(self, namespace: str) -> None:
        while True:
            await self._look(namespace, await self._api.list(DOMAINS, namespace))
            await asyncio.sleep(0.2)

    async def _look(self, namespace: str, domains: Iterable[Object]) -> None:
        for domain in domains:
            metadata = domain["metadata"]
            template = domain["spec"]["channel"]["resourceClaimTemplate"]["name"]
            if "deletionTimestamp" in metadata:
                await self._api.delete(TEMPLATES, template, namespace, missing_ok=True)
                finalizers: list[str] | None = None
            elif FINALIZER in metadata.get("finalizers", ()):
                continue
            else:
                await self._api.create(TEMPLATES, _channel_template(template), namespace)
                finalizers = [FINALIZER]
            patch = {"metadata": {"finalizers": finalizers}}
            await self._api.patch(DOMAINS, metadata["name"], patch, namespace)


def _channel_template(name: str) -> Object:
    exactly = {"deviceClassName": CHANNEL_CLASS, "allocationMode": "ExactCount", "count": 1}
    requests = [{"name": "channel", "exactly": exactly}]
    return {"metadata": {"name": name}, "spec": {"spec": {"devices": {"requests": requests}}}}


@contextlib.asynccontextmanager
async def fake_driver(api: Api) -> AsyncIterator[FakeDriver]:
    """A driver whose slices are gone at the end."""
    driver = FakeDriver(api)
    try:
        yield driver
    finally:
        await driver.withdraw()
