"""Queues of a real Kueue for one test, and jobs that wait in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from llmtrain_devcluster.api import ApiStatusError
from llmtrain_operator.manifests.gang_scheduling import KUEUE_QUEUE_NAME
from tests.support.operator_harness.harness import JOBS, OperatorHarness, job_object

Object = dict[str, Any]

API = "kueue.x-k8s.io/v1beta2"
FLAVORS, CLUSTER_QUEUES = f"{API}/resourceflavors", f"{API}/clusterqueues"
LOCAL_QUEUES, WORKLOADS = f"{API}/localqueues", f"{API}/workloads"
GPU = "nvidia.com/gpu"
PLENTY = "1000000"
QUEUE = "team-queue"


class Queues:
    """A ClusterQueue with a flavor of its own, and its LocalQueue in the harness' namespace."""

    def __init__(self, harness: OperatorHarness):
        self.harness = harness
        self.api = harness.api
        self.name = f"queue-{harness.tag}"
        self._made: list[tuple[str, str]] = []

    async def create(
        self, gpus: int, flavor_labels: dict[str, str] | None = None, **spec: Any
    ) -> None:
        """Create the queues with a quota of GPUs."""
        flavor = {"nodeLabels": flavor_labels} if flavor_labels else {}
        await self._create(FLAVORS, "ResourceFlavor", flavor)
        quotas = {GPU: str(gpus), "cpu": PLENTY, "memory": f"{PLENTY}Gi"}
        resources = [{"name": name, "nominalQuota": quota} for name, quota in quotas.items()]
        group = {
            "coveredResources": list(quotas),
            "flavors": [{"name": self.name, "resources": resources}],
        }
        await self._create(
            CLUSTER_QUEUES,
            "ClusterQueue",
            {"namespaceSelector": {}, "resourceGroups": [group], **spec},
        )
        await self.api.create(
            LOCAL_QUEUES,
            {
                "apiVersion": API,
                "kind": "LocalQueue",
                "metadata": {"name": QUEUE},
                "spec": {"clusterQueue": self.name},
            },
            self.harness.namespace,
        )

    async def _create(self, resource: str, kind: str, spec: Object) -> None:
        body = {"apiVersion": API, "kind": kind, "metadata": {"name": self.name}, "spec": spec}
        # Right after the start of Kueue, the API server may not have connected to the webhook.
        for _ in range(300):
            try:
                await self.api.create(resource, body)
                break
            except ApiStatusError as error:
                if error.status != 500:
                    raise
                await asyncio.sleep(0.2)
        self._made.insert(0, (resource, self.name))

    async def patch(self, **spec: Any) -> None:
        """Change the ClusterQueue."""
        await self.api.patch(CLUSTER_QUEUES, self.name, {"spec": spec})

    async def remove(self) -> None:
        for resource, name in self._made:
            await self.api.delete(resource, name, missing_ok=True)

    async def submit(
        self,
        name: str,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        **spec: Any,
    ) -> Object:
        """Create a job of 2 x 2 GPUs that names the queue."""
        workers = {"nodeSelector": {"harness": self.harness.tag}, **spec.pop("workers", {})}
        body = job_object(name, self.harness.namespace, workers=workers, **spec)
        body["metadata"]["labels"] = {KUEUE_QUEUE_NAME: QUEUE, **(labels or {})}
        body["metadata"]["annotations"] = annotations or {}
        return await self.api.create(JOBS, body, self.harness.namespace)

    async def workloads(self) -> dict[str, Object]:
        found = await self.api.list(WORKLOADS, self.harness.namespace)
        return {workload["metadata"]["name"]: workload for workload in found}

    async def become(
        self, until: Callable[[dict[str, Object]], bool], seconds: float = 60.0
    ) -> dict[str, Object]:
        """Wait until the Workloads of the namespace are as wanted."""
        deadline = time.monotonic() + seconds
        while not until(found := await self.workloads()):
            assert time.monotonic() < deadline, {n: w.get("status") for n, w in found.items()}
            await asyncio.sleep(0.1)
        return found


def holds(workload: Object, kind: str) -> bool:
    """Whether a condition of a Workload is true."""
    conditions = workload.get("status", {}).get("conditions") or ()
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def lacks_quota(workload: Object) -> bool:
    """Whether Kueue has tried to reserve quota for a Workload and found none."""
    conditions = workload.get("status", {}).get("conditions") or ()
    return any(c["type"] == "QuotaReserved" and c["status"] == "False" for c in conditions)
