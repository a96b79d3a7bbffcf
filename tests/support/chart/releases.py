"""Releases of the chart in a control plane, by real Helm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain_chart.helm import Major, run_helm
from llmtrain_chart.paths import CHART
from llmtrain_devcluster.api import Api, ApiStatusError, resource_path
from tests.support.chart.manifests import CLUSTER_SCOPED, NAMESPACED

DEFINITIONS = CLUSTER_SCOPED["CustomResourceDefinition"]
CRDS = ("fabrics.llmtrain.dev", "llmtrainingjobs.llmtrain.dev")
KEPT = {f"{DEFINITIONS}/{name}" for name in CRDS}
RESOURCES = (
    *(
        path
        for path in (*CLUSTER_SCOPED.values(), *NAMESPACED.values())
        if "monitoring" not in path
    ),
    "secrets",
    "apps/v1/replicasets",
    "llmtrain.dev/v1alpha1/llmtrainingjobs",
)
"""Kinds of which the chart, Helm or a controller may create objects."""


class Releases:
    """Helm in one namespace of a control plane."""

    def __init__(self, api: Api, kubeconfig: Path, namespace: str, folder: Path):
        self.api = api
        self.namespace = namespace
        self._kubeconfig = kubeconfig
        self._folder = folder
        self._installed: set[tuple[str, str]] = set()

    async def helm(self, *arguments: str, major: Major = 4, namespace: str = "") -> str:
        """Run Helm; raise HelmError if it fails."""
        where = ("--namespace", namespace or self.namespace)
        env = {"KUBECONFIG": str(self._kubeconfig)}
        return await asyncio.to_thread(run_helm, [*arguments, *where], major, env)

    async def install(
        self,
        *options: str,
        release: str = "llmtrain",
        values: Mapping[str, Any] | None = None,
        major: Major = 4,
        namespace: str = "",
    ) -> str:
        self._installed.add((release, namespace or self.namespace))
        return await self.helm(
            "install",
            release,
            str(CHART),
            *self._values(values),
            *options,
            major=major,
            namespace=namespace,
        )

    async def upgrade(
        self, *options: str, values: Mapping[str, Any] | None = None, major: Major = 4
    ) -> str:
        return await self.helm(
            "upgrade", "llmtrain", str(CHART), *self._values(values), *options, major=major
        )

    async def uninstall(self, *options: str, release: str = "llmtrain", major: Major = 4) -> str:
        return await self.helm("uninstall", release, *options, major=major)

    def _values(self, values: Mapping[str, Any] | None) -> tuple[str, ...]:
        file = self._folder / "values.json"
        file.write_text(json.dumps(values or {}))
        return "--values", str(file)

    async def deployment(self, name: str = "llmtrain-operator") -> dict[str, Any]:
        return await self.api.get(NAMESPACED["Deployment"], name, self.namespace)

    async def inventory(self) -> set[str]:
        """Return all objects of the cluster, each as RESOURCE[/NAMESPACE]/NAME."""
        found = set()
        for resource in RESOURCES:
            for item in await self._list(resource):
                where = item["metadata"].get("namespace")
                found.add("/".join(filter(None, (resource, where, item["metadata"]["name"]))))
        return found

    async def _list(self, resource: str) -> list[dict[str, Any]]:
        while True:
            try:
                return await self.api.list(resource)
            except ApiStatusError as error:
                if error.status == 404:  # the definition of the kind is not installed
                    return []
                if error.status != 429:  # it is being installed
                    raise
            await asyncio.sleep(0.2)

    async def becomes(self, wanted: set[str], seconds: float = 90) -> None:
        """Wait until the cluster has exactly these objects."""
        deadline = time.monotonic() + seconds
        while (found := await self.inventory()) != wanted:
            assert time.monotonic() < deadline, {
                "more": sorted(found - wanted),
                "missing": sorted(wanted - found),
            }
            await asyncio.sleep(0.2)

    async def clear(self) -> None:
        """Uninstall what is left, and remove the definitions."""
        for release, namespace in self._installed:
            await self.helm("uninstall", release, "--ignore-not-found", namespace=namespace)
        for name in CRDS:
            with contextlib.suppress(ApiStatusError):
                await self.api.request("DELETE", resource_path(DEFINITIONS, None, name))
            await self.api.wait_for(DEFINITIONS, name, lambda found: found is None)
