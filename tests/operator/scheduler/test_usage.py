"""Which jobs use GPUs, whatever labels say, and the messages about free nodes. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_core.placement import Request
from llmtrain_core.queueing import Assignment
from llmtrain_core.topology.inventory import Usage
from llmtrain_core.validation.check import Job, check
from llmtrain_operator.cache.job import JobView
from llmtrain_operator.cache.placement_status import placement_status
from llmtrain_operator.cache.records import foreign_pod, is_followed
from llmtrain_operator.scheduler.usage import node_resources
from tests.support.operator_harness.observed import PLACEMENT, pod
from tests.support.operator_harness.scheduling import (
    GPU,
    cluster,
    decide,
    in_use,
    nodes,
    record,
    refusal,
    total,
    waiting_job,
)

pytestmark = pytest.mark.unit


def test_a_pod_of_another_namespace_is_not_the_jobs_own() -> None:
    job = record("uid")
    assert pod(0).belongs_to(job)
    assert not pod(0, namespace="other").belongs_to(job)
    assert not pod(0, owner="").belongs_to(job)


@pytest.mark.parametrize("changes", [{"owner": ""}, {"owner": "nobody"}, {"namespace": "other"}])
def test_a_label_alone_takes_no_gpus(changes: dict[str, str]) -> None:
    stray = pod(0, "Pending", bound=False, **changes)
    assert total(in_use([record("uid")], [stray], {})) == {}
    bound = replace(stray, bound=True)
    assert total(in_use([record("uid")], [bound], {})) == {("n0", stray.uid): 2}
    # It does not hide behind the promise of the job that it names, either.
    placed = record("uid", {"placement": PLACEMENT})
    held = total(in_use([placed], [bound], {}))
    assert held == {("n0", "uid"): 2, ("n1", "uid"): 2, ("n0", stray.uid): 2}


def test_pods_that_are_not_bound_hold_nothing() -> None:
    for changes in ({}, {"gated": True}, {"node": "n7"}):
        waiting = pod(0, "Pending", bound=False, **changes)
        assert total(in_use([record("uid")], [waiting])) == {}


def test_an_offer_and_the_stored_placement_take_the_same() -> None:
    limits = {"cpu": 4, "example.com/fpga": "2", "example.com/shared": "1k"}
    raw = record(
        "a",
        workers={"nodes": 2, "gpusPerNode": 2, "resources": {"limits": limits}},
        network={"rdma": {"resource": "rdma/hca", "count": 3}},
    ).raw["spec"]
    job = check("a", raw)
    assert isinstance(job, Job)
    request = Request.of(job)
    devices = {"example.com/fpga": 2, "example.com/shared": 1000, "rdma/hca": 3}
    assert request.extra == {"cpu": 4000, "memory": 2**30, **devices}
    here = {"placement": {"gpusPerNode": 2}}
    found = node_resources(JobView({}, raw, here))
    assert found == {GPU: 2, **request.extra, "pods": 1} == request.needs
    invalid = {"workers": {"resources": {"limits": {"a/b": "x"}}}}
    here = {"placement": {"gpusPerNode": 1}}
    assert node_resources(JobView({}, invalid, here)) == {GPU: 1, "memory": 2**30, "pods": 1}


def test_a_team_with_an_operator_of_its_own_counts_the_pods_of_the_others() -> None:
    def raw(namespace: str, **labels: str) -> dict[str, object]:
        limits = {"limits": {GPU: "2"}}
        return {
            "metadata": {"uid": "p", "namespace": namespace, "labels": labels},
            "spec": {"nodeName": "n0", "containers": [{"resources": limits}]},
        }

    ours = {"llmtrain.dev/job-uid": "uid"}
    for namespace, labels, followed in (
        ("team", ours, True),
        ("team", {}, False),
        ("other", ours, False),
        ("other", {}, False),
    ):
        assert is_followed(raw(namespace, **labels), "team") is followed
    assert is_followed(raw("other", **ours), None)
    found = foreign_pod(raw("other", **ours))
    assert found is not None and found.resources == ((GPU, 2), ("pods", 1))


def test_nodes_without_a_label_are_reported_where_they_matter() -> None:
    bare = replace(nodes(4)[3], labels={"pool": "all"})
    elsewhere = replace(bare, name="x0", labels={"pool": "other"})
    world = cluster((*nodes(3), bare, elsewhere), ())
    [offer] = decide(
        [waiting_job("job-0", 1, workers={"nodeSelector": {"pool": "all"}})], world
    ).values()
    assert isinstance(offer, Assignment)
    said = (
        "; 1 node with no label network.topology.nvidia.com/spine (n3):"
        " each is treated as a separate spine"
    )
    assert said in placement_status(offer).explanation
    [decision] = decide([waiting_job("job-0", 9)], world).values()
    assert "; 2 nodes with no label" in refusal(decision).message
    [offer] = decide([waiting_job("job-0", 1)], cluster(nodes(4), ())).values()
    assert isinstance(offer, Assignment) and "label" not in placement_status(offer).explanation


def test_jobs_of_others_are_counted_and_not_named() -> None:
    secret = waiting_job("secret-0", 4)
    secret = replace(secret, namespace="other")
    world = cluster(nodes(4), (Usage("n0", GPU, 8),))
    alone = refusal(decide([secret, waiting_job("small-1", 1)], world)["small-1"])
    assert "reserved for jobs ahead: 1 of other namespaces;" in alone.message
    assert "secret" not in alone.message
