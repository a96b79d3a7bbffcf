"""Gangs that the API server would refuse get no nodes, reserve none and preempt no job. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from llmtrain_core.api.conditions import Reason
from llmtrain_core.queueing import Allocation, Assignment, ClusterState, PendingJob, Unschedulable
from llmtrain_core.queueing.quota import Charge, PodCharge, charge_of
from llmtrain_core.topology.inventory import Usage
from llmtrain_operator.errors import ForbiddenError, UnavailableError
from llmtrain_operator.scheduler import admission
from llmtrain_operator.scheduler.admission import Admission, Pending
from llmtrain_operator.scheduler.cycle import Decisions, decide
from tests.support.operator_harness.scheduling import GPU, cluster, nodes, waiting_job

pytestmark = pytest.mark.unit

POD = {"spec": {"containers": [{"resources": {"limits": {GPU: "8"}}}]}}
QUEUED = Unschedulable(Reason.WAITING_BEHIND, "waits")


def quota(pods: int, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "team"}, "spec": {"hard": {"pods": str(pods)}, **spec}}


class Asked:
    """An API server that answers as it is told, and counts what it is asked."""

    def __init__(self, quotas: Iterable[dict[str, Any]] = (), **answers: Any):
        self.quotas: Any = list(quotas)
        self.answers = answers
        self.tried: list[str] = []
        self.listed: list[str] = []
        self.promised: list[Charge] = []
        self.asked_promised = 0
        self.generation = 1
        self.triggers = 0
        self.admission = Admission(
            self.try_pod,
            self.list_quotas,
            self.list_promised,
            lambda _: self.generation,
            self.trigger,
        )

    def trigger(self) -> None:
        self.triggers += 1

    def list_promised(self, _namespace: str) -> list[Charge]:
        self.asked_promised += 1
        return self.promised

    async def try_pod(self, uid: str) -> Any:
        self.tried.append(uid)
        answer = self.answers.get(uid, POD)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def list_quotas(self, namespace: str) -> Any:
        self.listed.append(namespace)
        if isinstance(self.quotas, Exception):
            raise self.quotas
        return self.quotas

    async def settle(self, queue: Pending) -> Pending:
        """Ask until no more requests run, as the cycles of the scheduler do."""
        for _ in range(20):
            found = self.admission.admit(queue)
            before = self.triggers
            for _ in range(20):
                await asyncio.sleep(0)
            if self.triggers == before:
                return found
        raise AssertionError("the admission does not settle")


def queue_of(*jobs: PendingJob) -> dict[str, PendingJob | Unschedulable]:
    return {job.uid: job for job in jobs}


async def decided(asked: Asked, queue: Pending, state: ClusterState) -> Decisions:
    admitted = await asked.settle(queue)
    return asked.admission.confirm(decide(admitted, state), admitted)


async def test_a_job_takes_part_only_after_one_of_its_pods_was_tried() -> None:
    asked = Asked()
    queue = queue_of(waiting_job("job-1", 2))
    assert asked.admission.admit(queue) == {}
    assert await asked.settle(queue) == queue
    assert asked.tried == ["job-1"] and asked.listed == ["ns"]
    asked.generation = 2
    assert asked.admission.admit(queue) == {}, "another spec is another pod"


async def test_a_quota_for_seven_of_eight_pods_reserves_no_node_and_preempts_nobody() -> None:
    asked = Asked([quota(7)])
    low = Allocation("low", "ns", 0, tuple(f"n{i}" for i in range(8)), {GPU: 8})
    usage = tuple(Usage(node, GPU, 8, "low") for node in low.nodes)
    state = cluster(nodes(8), usage, allocations=(low,))
    found = await decided(asked, queue_of(waiting_job("vip-1", 8, priority=9)), state)
    refused = found.pending["vip-1"]
    assert isinstance(refused, Unschedulable) and refused.reason == Reason.QUOTA_EXCEEDED
    assert "quota team: pods requested 8, used 0, limit 7" in refused.message
    assert found.preemptions == {}
    # The job behind it takes all nodes that are free: none is reserved for the head.
    both = queue_of(waiting_job("vip-1", 8, priority=9), waiting_job("job-2", 4))
    found = await decided(asked, both, cluster(nodes(4)))
    assert isinstance(found.pending["job-2"], Assignment)


async def test_a_quota_for_all_pods_lets_the_gang_start() -> None:
    asked = Asked([quota(8)])
    found = await decided(asked, queue_of(waiting_job("job-1", 8)), cluster(nodes(8)))
    assert isinstance(found.pending["job-1"], Assignment)


async def test_what_the_cluster_adds_to_a_pod_is_part_of_its_place() -> None:
    sidecar = {"resources": {"requests": {"cpu": "3"}}}
    spec = {"containers": [*POD["spec"]["containers"], sidecar], "overhead": {"cpu": "500m"}}
    for cpu in (3000, 4000):
        asked = Asked(**{"job-1": {"spec": spec}})
        offered = [replace(n, allocatable={**n.allocatable, "cpu": cpu}) for n in nodes(2)]
        found = await decided(asked, queue_of(waiting_job("job-1", 1)), cluster(offered))
        answer = found.pending["job-1"]
        if cpu == 3000:
            assert isinstance(answer, Unschedulable) and "3500m cpu" in answer.message
        else:
            assert isinstance(answer, Assignment) and answer.resources["cpu"] == 3500


async def test_two_jobs_that_fit_into_a_quota_only_one_by_one_do_not_start_together() -> None:
    asked = Asked([quota(5)])
    queue = queue_of(waiting_job("job-1", 4), waiting_job("job-2", 4))
    found = await decided(asked, queue, cluster(nodes(8)))
    started = [uid for uid, item in found.pending.items() if isinstance(item, Assignment)]
    assert started == ["job-1"]
    asked.promised = [(charge_of(POD["spec"]), 4)]
    found = await decided(asked, queue_of(waiting_job("job-2", 4)), cluster(nodes(8)))
    refused = found.pending["job-2"]
    assert isinstance(refused, Unschedulable) and "4 of pods to come" in refused.message


@pytest.mark.parametrize(("quotas", "times"), [([], 0), ([quota(100)], 1)], ids=["none", "one"])
async def test_pods_to_come_are_counted_once_for_all_gangs_that_get_nodes(
    quotas: list[dict[str, Any]], times: int
) -> None:
    asked = Asked(quotas)
    admitted = await asked.settle(queue_of(*(waiting_job(f"job-{i}", 2) for i in range(8))))
    asked.asked_promised = 0
    found = asked.admission.confirm(decide(admitted, cluster(nodes(16))), admitted)
    assert all(isinstance(each, Assignment) for each in found.pending.values())
    assert asked.asked_promised == times, "it reads all jobs of the namespace"


class CountedAmounts(dict[str, Fraction]):
    """What a pod is charged for, with the number of times that it was read."""

    reads = 0

    def items(self) -> Any:
        self.reads += 1
        return super().items()


async def test_pods_to_come_are_added_up_once_for_all_jobs_that_wait() -> None:
    asked = Asked([quota(100)])
    queue = queue_of(*(waiting_job(f"job-{i}", 2) for i in range(8)))
    await asked.settle(queue)
    amounts = CountedAmounts(pods=Fraction(1))
    asked.promised = [(PodCharge(amounts), 84)]
    assert await asked.settle(queue) == queue
    amounts.reads = 0
    admitted = asked.admission.admit(queue)
    assert all(isinstance(job, PendingJob) for job in admitted.values())
    assert amounts.reads == 1
    found = asked.admission.confirm(decide(admitted, cluster(nodes(16))), admitted)
    assert amounts.reads == 2
    assert all(isinstance(each, Assignment) for each in found.pending.values())
    asked.promised = [(PodCharge(amounts), 85)]
    found = asked.admission.confirm(decide(admitted, cluster(nodes(16))), admitted)
    refused = [each for each in found.pending.values() if isinstance(each, Unschedulable)]
    assert len(refused) == 1 and "used 0 + 99 of pods to come, limit 100" in refused[0].message


async def test_spare_nodes_count_against_the_quota() -> None:
    asked = Asked([quota(4)])
    job = waiting_job("job-1", 4, topology={"spares": 1})
    found = await decided(asked, queue_of(job), cluster(nodes(8)))
    refused = found.pending["job-1"]
    assert isinstance(refused, Unschedulable) and "pods requested 5" in refused.message


async def test_a_job_whose_pods_are_refused_waits_and_is_tried_again_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = Unschedulable(Reason.FORBIDDEN, "violates PodSecurity")
    asked = Asked(**{"job-1": refusal})
    queue = queue_of(waiting_job("job-1", 1))
    assert await asked.settle(queue) == {"job-1": refusal}
    now, start = admission.time.monotonic, admission.time.monotonic()
    for wait, count in ((4, 1), (6, 2), (14, 2), (17, 3), (36, 3), (40, 4)):
        monkeypatch.setattr(admission.time, "monotonic", lambda at=wait: start + at)
        assert await asked.settle(queue) == {"job-1": refusal}
        assert len(asked.tried) == count, wait
    monkeypatch.setattr(admission.time, "monotonic", now)


async def test_an_api_server_that_does_not_answer_is_asked_again() -> None:
    asked = Asked(**{"job-1": UnavailableError(503, "", "down")})
    found = await asked.settle(queue_of(waiting_job("job-1", 1)))
    refused = found["job-1"]
    assert isinstance(refused, Unschedulable) and refused.reason == Reason.QUEUED
    assert "could not be checked: 503" in refused.message


async def test_what_cannot_be_read_stops_no_other_job() -> None:
    asked = Asked(**{"job-1": {}, "job-2": POD})
    queue = queue_of(waiting_job("job-1", 1), waiting_job("job-2", 1))
    found = await asked.settle(queue)
    assert found["job-2"] is queue["job-2"]
    assert isinstance(found["job-1"], Unschedulable) and asked.tried.count("job-1") == 1
    asked = Asked([{"spec": None}])
    assert await asked.settle(queue_of(waiting_job("job-1", 1))) == {}
    assert len(asked.listed) == 1


async def test_without_the_right_to_list_quotas_only_a_pod_is_tried() -> None:
    asked = Asked()
    asked.quotas = ForbiddenError(403, "Forbidden", "no right")
    queue = queue_of(waiting_job("job-1", 1))
    assert await asked.settle(queue) == queue
    asked = Asked()
    asked.quotas = UnavailableError(503, "", "down")
    assert await asked.settle(queue) == {}


async def test_what_was_checked_long_ago_is_checked_again_before_a_gang_gets_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked([quota(8)])
    queue, state = queue_of(waiting_job("job-1", 8)), cluster(nodes(8))
    await asked.settle(queue)
    start = admission.time.monotonic()
    monkeypatch.setattr(admission.time, "monotonic", lambda: start + 60)
    asked.quotas = [quota(7)]
    admitted = asked.admission.admit(queue)
    assert asked.admission.confirm(decide(admitted, state), admitted).pending == {}
    found = await decided(asked, queue, state)
    assert isinstance(found.pending["job-1"], Unschedulable)
    assert len(asked.tried) == 2


async def test_namespaces_take_turns() -> None:
    asked = Asked()
    many = [waiting_job(f"many-{i}", 1) for i in range(40)]
    other = PendingJob("other", "other", "other", 0, 99.0, many[0].request)
    asked.admission.admit(queue_of(*many, other))
    for _ in range(3):
        await asyncio.sleep(0)
    assert "other" in asked.tried[:2]


async def test_what_sidecars_request_of_a_resource_of_the_network_counts_towards_a_quota() -> None:
    efa, pages = "vpc.amazonaws.com/efa", "hugepages-2Mi"
    beside = {"restartPolicy": "Always", "resources": {"limits": {pages: "1Gi"}}}
    spec = {**POD["spec"], "initContainers": [beside]}
    hard = {pages: "11Gi"}
    asked = Asked(
        [{"metadata": {"name": "team"}, "spec": {"hard": hard}}], **{"job-1": {"spec": spec}}
    )
    more = {efa: 32, pages: 2**40}
    offered = [replace(n, allocatable={**n.allocatable, **more}) for n in nodes(2)]
    job = waiting_job("job-1", 2)
    sidecars = {pages: 2**30}
    job = replace(job, request=replace(job.request, sidecars=sidecars, extra=sidecars))
    found = (await decided(asked, queue_of(job), cluster(offered))).pending["job-1"]
    assert isinstance(found, Unschedulable) and found.reason == Reason.QUOTA_EXCEEDED
    assert f"{pages} requested 12288Mi, used 0, limit 11264Mi" in found.message


async def test_devices_of_the_network_count_towards_a_quota_and_are_judged_before_nodes() -> None:
    efa = "vpc.amazonaws.com/efa"
    hard = {f"requests.{efa}": "63"}
    asked = Asked([{"metadata": {"name": "team"}, "spec": {"hard": hard}}])
    offered = [replace(n, allocatable={**n.allocatable, efa: 32}) for n in nodes(2)]
    queue, state = queue_of(waiting_job("job-1", 2)), cluster(offered)
    refused = (await decided(asked, queue, state)).pending["job-1"]
    assert isinstance(refused, Unschedulable) and refused.reason == Reason.QUOTA_EXCEEDED
    assert f"requests.{efa} requested 64, used 0, limit 63" in refused.message
    admitted = await asked.settle(queue)
    assert isinstance(admitted["job-1"], Unschedulable), "it does not try for nodes again and again"
    asked.generation = 2  # another spec may want another network
    assert isinstance((await asked.settle(queue))["job-1"], PendingJob)
