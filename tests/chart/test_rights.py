"""The operator uses every right that the chart grants to it, and needs no other.

The values that change rights make the cases. A run of each case uses all rights, also those for
faults. The fixtures of other tests check that no request of an operator is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from llmtrain_chart.helm import render
from llmtrain_core.api.device_claims import DeviceClaim
from llmtrain_core.api.labels import FINALIZER, JOB_UID
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.scripted_node.node import NodeSpec, PodScript, ScriptedNodes
from llmtrain_operator.manifests.device_claims import make_claim_template, make_compute_domain
from llmtrain_operator.manifests.names import JobIdentity
from tests.support.chart.manifests import CLUSTER_SCOPED, NAMESPACED, Object, documents, kinds
from tests.support.chart.released_operator import ACCOUNT, RELEASE_USERS, ReleasedOperators
from tests.support.chart.releases import Releases
from tests.support.chart.rendering import rendered_set
from tests.support.chart.value_sets import OPTIONAL_RIGHTS, VALUE_SETS
from tests.support.devices.driver import DOMAINS, TEMPLATES, fake_driver
from tests.support.devices.objects import (
    CHANNELS,
    CLASSES,
    PORTS,
    channel,
    claim_of_gang,
    claims_of_workers,
    gpus,
    ports,
)
from tests.support.operator_harness.harness import (
    DISRUPTION_BUDGETS,
    JOBS,
    SYSTEM,
    OperatorHarness,
    OperatorProcess,
    condition,
)
from tests.support.rights.audit import Right, granted, refused, used
from tests.support.rights.cutting_proxy import CuttingProxy

TEAM = "team"
OTHER = JobIdentity(TEAM, "other", "uid")
CASES: Mapping[str, Mapping[str, Any]] = {
    "cluster": {},
    "cluster, optional rights": {"config": OPTIONAL_RIGHTS},
    "namespaces": {"watchNamespaces": [TEAM]},
    "namespaces, optional rights": {"watchNamespaces": [TEAM], "config": OPTIONAL_RIGHTS},
    "namespaces, no foreign pods": {
        "watchNamespaces": [TEAM],
        "config": {"countForeignPods": False},
    },
}
"""Values of the chart, by what decides about the rights."""
LEASES, CLUSTER_ROLES = NAMESPACED["Lease"], CLUSTER_SCOPED["ClusterRole"]
POLICIES = NAMESPACED["NetworkPolicy"]
GROUPS = "scheduling.k8s.io/v1beta1/podgroups"
GATES = "--feature-gates=GenericWorkload=true,DRAWorkloadResourceClaims=true"
OPTIONS = Options(
    audit=True,
    apiserver_args=(
        GATES,
        "--runtime-config=scheduling.k8s.io/v1beta1=true",
        # Off by default, but on in some distributions: it makes owner references need a right.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
    ),
    controller_manager_args=(GATES,),
    scheduler_args=(GATES,),
)
ADMISSION_SECONDS = 150
"""Limit of the wait for the first pod of a release.

The plugin reads the kinds that exist every 30 s. If it does so between two releases, it forbids the
pods of the second one until the next time. The operator tries them after 0, 5, 15, 35 and 75 s.
"""
FINALIZERS = "llmtrainingjobs/finalizers"
"""An admission plugin asks for it, so no request of the audit log shows it."""


def test_the_cases_are_all_that_the_chart_grants() -> None:
    tested = {frozenset(rights_of(documents(render(values)))) for values in CASES.values()}
    for name, values in VALUE_SETS.items():
        found = rights_of(rendered_set(name))
        created = values.get("rbac", {}).get("create", True)
        assert (frozenset(found) in tested) == created, name
        assert not {"Job", "CronJob"} & kinds(rendered_set(name)), name


def rights_of(objects: list[Object]) -> set[Right]:
    """Return the rights of the pods of the operator's Deployments."""
    accounts = {
        found["spec"]["template"]["spec"]["serviceAccountName"]
        for found in objects
        if found["kind"] == "Deployment"
    }
    return {right for account in accounts for right in granted(objects, account)}


def test_the_test_of_a_release_has_no_account() -> None:
    for name in VALUE_SETS:
        for pod in (o for o in rendered_set(name) if o["kind"] == "Pod"):
            assert pod["spec"]["automountServiceAccountToken"] is False
            assert "serviceAccountName" not in pod["spec"]


def test_only_a_request_that_was_always_forbidden_counts_as_refused() -> None:
    def event(name: str, decision: str | None) -> Object:
        decided = {"annotations": {"authorization.k8s.io/decision": decision}} if decision else {}
        where = {"resource": name, "namespace": "team"}
        return {"verb": "get", "userAgent": "llmtrain-operator", "objectRef": where, **decided}

    later_allowed = [event("pods", "forbid"), event("pods", "allow")]
    # An overloaded server answers 429 before it decides.
    overloaded = [event("nodes", None), {**event("events", None), "annotations": None}]
    assert refused([*later_allowed, *overloaded]) == []
    assert refused([event("secrets", "forbid"), event("secrets", None)]) == ["get secrets in team"]


@pytest.fixture(scope="module")
def release_cluster() -> Iterator[ControlPlane]:
    with ControlPlane(OPTIONS, users=RELEASE_USERS) as cluster:
        yield cluster


@pytest.mark.cluster
@pytest.mark.parametrize("case", CASES)
async def test_all_rights_are_used(
    case: str,
    release_cluster: ControlPlane,
    release_nodes: ScriptedNodes,
    releases: Releases,
    operators: ReleasedOperators,
    team: str,
) -> None:
    rendered = documents(render(CASES[case]))
    wanted = rights_of(rendered)
    asked_by_admission = {right for right in wanted if right.resource.startswith(FINALIZERS)}
    before = len(release_cluster.requests(f"{ACCOUNT}operator"))
    await releases.install(values=CASES[case])
    harness = OperatorHarness(releases.api, team, release_nodes, "chart")
    async with CuttingProxy(release_cluster.port) as proxy:
        operator = await operators.start(operator_name(case), proxy.port)
        await releases.api.delete(LEASES, operator_name(case), SYSTEM)
        try:
            # Other names each time: the children of deleted jobs exist a little longer.
            number = list(CASES).index(case)
            await harness.nodes.add(NodeSpec(f"late-{number}", {"pool": "late"}, gpus=2))
            await pod_starts_late(harness, f"late-{number}")
            await job_restarts_and_is_deleted(harness, operator, proxy, f"first-{number}")
            await name_is_taken(harness, f"second-{number}")
            await finalizer_is_removed(harness, f"old-{number}")
            if CASES[case].get("config", {}).get("deviceClaims"):
                await devices_are_claimed(harness, f"device-{number}")
            await delay_is_explained(harness, f"late-{number}")
        except TimeoutError as error:
            error.add_note(operator.tail(100))
            raise
        requests = await requests_until_used(release_cluster, before, wanted - asked_by_admission)
        operator.kill()

    await releases.uninstall("--timeout=300s")
    await harness.clear()

    assert refused(requests) == []
    assert used(requests) | asked_by_admission == wanted
    kopf_writes = [
        (event["verb"], event["requestURI"])
        for event in requests
        if event["userAgent"].startswith("kopf/") and event["verb"] not in ("get", "list", "watch")
    ]
    assert kopf_writes == [], "every write is fenced by the lease"


async def requests_until_used(
    cluster: ControlPlane, start: int, wanted: set[Right]
) -> list[Object]:
    """Wait until the operator has used its rights, and return its requests from a number on."""
    deadline = time.monotonic() + 60
    while True:
        requests = cluster.requests(f"{ACCOUNT}operator")[start:]
        if wanted <= used(requests) or time.monotonic() > deadline:
            return requests
        await asyncio.sleep(0.5)


def operator_name(case: str) -> str:
    watched = CASES[case].get("watchNamespaces")
    return f"llmtrain-operator-{watched[0]}" if watched else "llmtrain-operator"


async def job_restarts_and_is_deleted(
    harness: OperatorHarness, operator: OperatorProcess, proxy: CuttingProxy, name: str
) -> None:
    """Let a job fail while the network fails, restart, succeed and be deleted after its TTL."""
    job = await harness.submit(name, runPolicy={"ttlSecondsAfterFinished": 1})
    await harness.runs(name, 0)
    await objects_are_restored(harness, name)
    proxy.cutting = True
    for index in range(2):
        harness.nodes.end(harness.namespace, f"{name}-0-{index}", 137)
    # The operator does not know whether its write was successful, so it reads the job.
    await operator.logs(f"job={job['metadata']['uid']} reconcile failed, next attempt", 60)
    proxy.cutting = False
    await harness.runs(name, 1)
    await harness.api.wait_for(
        DISRUPTION_BUDGETS, name, lambda found: found is not None, harness.namespace, seconds=60
    )
    # That of the earlier attempt is deleted, which the end of the job must not overtake.
    await harness.api.wait_for(
        "configmaps", f"{name}-job-0", lambda o: o is None, harness.namespace, seconds=60
    )
    for index in range(2):
        harness.nodes.end(harness.namespace, f"{name}-1-{index}", 0)
    await harness.gone(name)


async def objects_are_restored(harness: OperatorHarness, name: str) -> None:
    """Hide the objects of a running job from the watch of the operator."""
    hidden = {"metadata": {"labels": {JOB_UID: None}}}
    names = {"services": name, "configmaps": f"{name}-job-0", POLICIES: name}
    for resource, found in names.items():
        await harness.api.patch(resource, found, hidden, harness.namespace)
        await harness.api.wait_for(
            resource,
            found,
            lambda o: JOB_UID in (o or {})["metadata"]["labels"],
            harness.namespace,
            seconds=60,
        )


async def pod_starts_late(harness: OperatorHarness, name: str) -> None:
    """Submit a job whose pod does not start, and say why as the kubelet does."""
    harness.nodes.script(
        lambda pod: pod["spec"]["nodeName"] == name, PodScript(runs_after=600, exit_after=None)
    )
    await harness.submit(name, workers={"nodes": 1, "nodeSelector": {"pool": "late"}})
    pod = await harness.api.wait_for(
        "pods", f"{name}-0-0", bool, harness.namespace, seconds=ADMISSION_SECONDS
    )
    metadata = pod["metadata"]
    involved = {"kind": "Pod", **{key: metadata[key] for key in ("name", "namespace", "uid")}}
    event = {
        "metadata": {"name": f"{name}.1"},
        "involvedObject": involved,
        "type": "Warning",
        "reason": "FailedMount",
        "message": "the volume is attached to another node",
    }
    await harness.api.create("events", event, harness.namespace)


async def delay_is_explained(harness: OperatorHarness, name: str) -> None:
    text = f"pod {name}-0-0 on node {name}: FailedMount: the volume is attached"
    await harness.wait(name, lambda job: text in condition(job, "PodsReady").get("message", ""))


async def finalizer_is_removed(harness: OperatorHarness, name: str) -> None:
    """Submit a job that has the finalizer of an earlier version of the operator."""
    await harness.submit(name)
    await harness.phase(name, "Running")
    await harness.patch(name, {"metadata": {"finalizers": [FINALIZER]}})
    await harness.wait(name, lambda job: not (job or {})["metadata"].get("finalizers"))


async def name_is_taken(harness: OperatorHarness, name: str) -> None:
    """Submit a job whose first pod has the name of a pod that exists."""
    container = {"name": "main", "image": "example.com/x:1"}
    taken = {"metadata": {"name": f"{name}-0-0"}, "spec": {"containers": [container]}}
    await harness.api.create("pods", taken, harness.namespace)
    await harness.submit(name)
    await harness.reason(name, "Placed", "NameConflict")
    await harness.api.delete("pods", f"{name}-0-0", harness.namespace, grace_seconds=0)
    await harness.api.delete(JOBS, name, harness.namespace)
    await harness.gone(name)


async def devices_are_claimed(harness: OperatorHarness, name: str) -> None:
    """Submit a job with claims and a ComputeDomain, whose names are taken at first."""
    node = f"{name}-node"
    async with fake_driver(harness.api) as driver:
        await driver.install_compute_domains()
        await driver.publish(*CLASSES, CHANNELS, PORTS, gpus(node, 2), channel(node), ports(1))
        await harness.nodes.add(NodeSpec(node, {"pool": name}))
        taken = {
            TEMPLATES: make_claim_template(DeviceClaim.from_wire(claims_of_workers()[0]), OTHER),
            DOMAINS: make_compute_domain(OTHER, 0),
        }
        names = {TEMPLATES: f"{name}.devices", DOMAINS: f"{name}-0"}
        for resource, body in taken.items():
            body["metadata"] = {"name": names[resource]}
            await harness.api.create(resource, body, harness.namespace)
        claims = [*claims_of_workers(), claim_of_gang()]
        workers = {"nodes": 1, "nodeSelector": {"pool": name}, "deviceClaims": claims}
        async with driver.controlling(harness.namespace):
            await harness.submit(name, workers=workers, topology={"computeDomain": "auto"})
            for resource in taken:
                await says(harness, name, f"{resource.rsplit('/', 1)[1]} {names[resource]} ")
                await harness.api.delete(resource, names[resource], harness.namespace)
            await harness.runs(name, 0, seconds=120)
            harness.nodes.end(harness.namespace, f"{name}-0-0", 0)
            for resource, left in ((DOMAINS, f"{name}-0"), (GROUPS, f"{name}.0")):
                await harness.api.wait_for(
                    resource, left, lambda o: o is None, harness.namespace, seconds=120
                )
        await harness.delete(name)


async def says(harness: OperatorHarness, name: str, text: str) -> None:
    """Wait until the condition Placed of a job contains a text."""
    await harness.wait(name, lambda job: text in condition(job, "Placed").get("message", ""))


@pytest.mark.cluster
async def test_owner_references_need_the_right_to_finalizers(
    release_nodes: ScriptedNodes,
    releases: Releases,
    operators: ReleasedOperators,
    team: str,
) -> None:
    await releases.install()
    role = await releases.api.get(CLUSTER_ROLES, "llmtrain-operator")
    kept = [rule for rule in role["rules"] if rule["resources"] != [FINALIZERS]]
    assert len(kept) == len(role["rules"]) - 1
    await releases.api.patch(CLUSTER_ROLES, "llmtrain-operator", {"rules": kept})
    await operators.start()
    harness = OperatorHarness(releases.api, team, release_nodes, "chart")
    await harness.submit("first")
    text = "you can't set finalizers on"
    found = await harness.wait(
        "first", lambda job: text in condition(job, "Placed").get("message", ""), ADMISSION_SECONDS
    )
    assert condition(found, "Placed")["reason"] == "Forbidden"
    await harness.clear()
