"""A placed job counts what its pods request, with what admission adds, also while it has no pods.

A LimitRange sets requests, a RuntimeClass an overhead, and a webhook adds containers: the spec has
none of them. Between two attempts on the same nodes there is no pod to read them from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.api.defaults import MAX_RESOURCES
from llmtrain_core.topology.inventory import Node
from llmtrain_operator.cache.checked_jobs import CheckedJobs
from llmtrain_operator.cache.informers import ChangeHandlers, Informers
from llmtrain_operator.cache.placement_status import fixed_terms, placement_status
from llmtrain_operator.cache.records import JobRecord, NodeRecord
from llmtrain_operator.config import Config
from llmtrain_operator.kube.api import KubeApi
from llmtrain_operator.metrics.registry import Metrics
from llmtrain_operator.scheduler.snapshot import ClusterReader
from llmtrain_operator.scheduler.usage import placed_resources
from tests.support.operator_harness.observed import PLACEMENT, assignment, pod, status
from tests.support.operator_harness.scheduling import GPU, in_use, record

pytestmark = pytest.mark.unit

MEMORY = 2**35
ADDED = {GPU: 2, "memory": MEMORY, "pods": 1}


def placed(resources: dict[str, int] | None = ADDED) -> JobRecord:
    """Return a job on n0 and n1 whose pods are gone."""
    placement: dict[str, Any] = dict(PLACEMENT)
    if resources is not None:
        placement["resources"] = resources
    return record("job", status(ConditionType.RESTARTING, placement=placement))


def reader_of(job: JobRecord, memory: int, others: int) -> ClusterReader:
    """Return a cluster of one node, with memory of which pods of another job use a part."""
    informers = Informers(
        cast(KubeApi, None), None, False, ChangeHandlers(*[lambda *_: None] * 7), Metrics()
    )
    informers.jobs._store(job.uid, None, job)
    node = Node("n0", {}, {GPU: 2, "memory": memory})
    informers.nodes._store("n0", None, NodeRecord(node, ""))
    other = pod(0, job="other", owner="other", resources=(("memory", others),))
    informers.pods._store(other.uid, None, other)
    return ClusterReader(informers, CheckedJobs(), lambda *_: frozenset(), Config())


@pytest.mark.parametrize(
    ("resources", "others", "obstacles"),
    [
        (ADDED, MEMORY, ()),
        (ADDED, MEMORY + 1, ("memory in use",)),
        (None, MEMORY + 1, ()),  # placed by an earlier version
    ],
)
def test_a_restart_on_the_same_nodes_needs_what_admission_added(
    resources: dict[str, int] | None, others: int, obstacles: tuple[str, ...]
) -> None:
    job = placed(resources)
    reader = reader_of(job, 2 * MEMORY, others)
    node = reader._find_node("n0")
    assert node is not None
    assert reader.start_obstacles(job, node) == obstacles


class CountedStatus(dict[str, Any]):
    """A status, with the number of times that its network was read."""

    reads = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.reads += key == "network"
        return super().get(key, default)


def test_what_the_pods_of_a_gang_request_is_read_once_for_all_of_its_nodes() -> None:
    job = placed(ADDED)
    reader = reader_of(job, 2 * MEMORY, MEMORY)
    node = reader._find_node("n0")
    assert node is not None
    counted = CountedStatus(job.raw["status"])
    first = replace(job, raw={**job.raw, "status": counted})
    assert reader.start_obstacles(first, node) == ()
    once = counted.reads
    assert all(reader.start_obstacles(first, node) == () for _ in range(8))
    assert counted.reads == once
    more = {**job.raw["status"], "placement": {**job.raw["status"]["placement"]}}
    more["placement"]["resources"] = {**ADDED, "memory": MEMORY + 1}
    changed = replace(job, raw={**job.raw, "status": more})
    assert reader.start_obstacles(changed, node) == ("memory in use",)
    assert reader.start_obstacles(first, node) == ()


def test_the_nodes_of_a_job_without_pods_are_in_use_by_all_that_its_pods_request() -> None:
    found = {(use.node, use.resource): use.amount for use in in_use([placed()])}
    assert found["n0", "memory"] == found["n1", "memory"] == MEMORY
    found = {(use.node, use.resource): use.amount for use in in_use([placed(None)])}
    assert found["n0", "memory"] < MEMORY, "an earlier version placed it: the spec is all there is"


def test_the_placement_stores_what_the_scheduler_counted() -> None:
    offer = replace(assignment(0), resources=ADDED)
    stored = placement_status(offer).to_wire()
    assert stored["resources"] == ADDED
    assert fixed_terms(stored)["resources"] == ADDED, "also with another node"
    assert placed_resources(placed(stored["resources"]).view) == ADDED
    many = {f"example.com/{index}": 1 for index in range(MAX_RESOURCES + 1)}
    assert "resources" not in placement_status(replace(offer, resources=many)).to_wire()
