"""A cluster with the devices of a fake driver, and jobs that claim them, without an API server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.queueing import PendingJob, Unschedulable
from llmtrain_core.topology.inventory import Node
from llmtrain_operator.cache.attempt_record import AttemptRecord
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.informers import ChangeHandlers, Informers
from llmtrain_operator.cache.node_devices import NodeDevices
from llmtrain_operator.cache.records import JobRecord, NodeRecord
from llmtrain_operator.config import Config
from llmtrain_operator.kube.api import Item, KubeApi
from llmtrain_operator.kube.resources import POD_GROUPS
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.scheduler.cycle import decide
from llmtrain_operator.scheduler.snapshot import ClusterReader
from tests.support.devices.objects import GPU_CLASS, claims_of_workers
from tests.support.operator_harness.observed import PLACEMENT, status
from tests.support.operator_harness.scheduling import record

GPU = f"deviceclass.resource.kubernetes.io/{GPU_CLASS}"
PLUGIN = "nvidia.com/gpu"


class DeviceCluster:
    """A cluster of nodes n0, n1, ... whose devices a driver publishes, and its jobs."""

    def __init__(self, nodes: int = 2, allocatable: Mapping[str, int] = {}):
        self.checked = CheckedJobs(device_claims=True, compute_domains=True, pod_groups=True)
        self.informers = Informers(
            cast(KubeApi, None),
            None,
            True,
            ChangeHandlers(*[lambda *_: None] * 7),
            Metrics(),
            devices=NodeDevices(self.checked.demanded_devices),
            device_claims=True,
            pod_groups=True,
        )
        self.reader = ClusterReader(
            self.informers, self.checked, lambda *_: frozenset(), Config(device_claims=True)
        )
        self._version = 0
        for index in range(nodes):
            node = Node(f"n{index}", {}, dict(allocatable))
            self.informers.nodes._store(node.name, None, NodeRecord(node, ""))

    def put(self, *objects: Any) -> None:
        """Show objects to the informers of devices."""
        found = self.informers.device_informers
        assert found is not None
        kinds: dict[str, Any] = {
            "ResourceSlice": found.slices,
            "DeviceClass": found.classes,
            "ResourceClaim": found.claims,
        }
        for raw in objects:
            self._version += 1
            metadata = {"uid": raw["metadata"]["name"], "resourceVersion": str(self._version)}
            kinds[raw["kind"]]._upsert(Item({**raw, "metadata": {**metadata, **raw["metadata"]}}))

    def put_group(self, uid: str, job: str, attempt: int = 0) -> None:
        """Show the PodGroup of an attempt of a job."""
        found = AttemptRecord(POD_GROUPS, uid, "ns", f"{job}.{attempt}", job, attempt, False)
        self.informers.attempt_objects[POD_GROUPS]._store(uid, None, found)

    def gone(self, uid: str) -> None:
        found = self.informers.device_informers
        assert found is not None
        found.claims._remove(uid)

    def submit(self, name: str, claims: Any = None, **spec: Any) -> JobRecord:
        """Add a job of two nodes with two GPUs each, by claims unless they are empty."""
        workers = {"command": ["x"], **spec.pop("workers", {})}
        if claims is None or claims:
            workers["deviceClaims"] = claims or claims_of_workers()
        namespace = spec.pop("namespace", "ns")
        found = record(name, spec.pop("status", {}), namespace, workers=workers, **spec)
        self.informers.jobs._store(name, None, found)
        return found

    def queue(self) -> dict[str, PendingJob | Unschedulable]:
        return self.reader.pending_jobs()

    def allocatable(self, node: str) -> Mapping[str, int]:
        found = self.informers.node(node)
        assert found is not None
        return found.node.allocatable

    def decide(self) -> Mapping[str, Any]:
        pending = self.queue()
        return decide(pending, self.reader.cluster_state({})).pending


def refused(decision: object) -> tuple[str, str]:
    assert isinstance(decision, Unschedulable), decision
    return str(decision.reason), decision.message


def placed(**resources: int) -> dict[str, Any]:
    """Return the status of a job that holds n0 and n1."""
    placement = {**PLACEMENT, "blocks": [{"path": "", "nodes": ["n0", "n1"]}]}
    return status(ConditionType.RUNNING, placement={**placement, "resources": dict(resources)})
