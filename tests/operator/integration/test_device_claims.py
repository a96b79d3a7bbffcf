"""Jobs get devices of a fake driver by claims: API server and kube-scheduler are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from llmtrain_devcluster.api import Api, Object
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import OPERATOR_USER
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.devices.driver import DOMAINS, TEMPLATES, FakeDriver, fake_driver
from tests.support.devices.objects import (
    CHANNELS,
    CLASSES,
    channel,
    claims_of_workers,
    gpus,
    nics,
)
from tests.support.operator_harness.harness import (
    OperatorHarness,
    condition,
)
from tests.support.operator_harness.install import install

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.usefixtures("operator")]

VALUES = {"config": {"deviceClaims": True, "computeDomains": True}}


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with llmtrain installed, and the operator's role for devices."""
    asyncio.run(install(control_plane, VALUES))
    yield control_plane


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    return ("--device-claims=yes", "--compute-domains=yes")


@pytest.fixture
async def driver(api: Api) -> AsyncIterator[FakeDriver]:
    async with fake_driver(api) as found:
        await found.publish(*CLASSES, CHANNELS)
        yield found


async def placed_because(harness: OperatorHarness, name: str, reason: str) -> Object:
    return await harness.wait(name, lambda job: condition(job, "Placed").get("reason") == reason)


def devices_of(claim: Object) -> set[str]:
    results = claim["status"]["allocation"]["devices"]["results"]
    return {f"{item['pool']}/{item['device']}" for item in results}


async def test_a_gang_gets_gpus_with_nics_next_to_them_and_gives_them_back(
    harness: OperatorHarness, driver: FakeDriver
) -> None:
    names = await harness.add_nodes({}, {}, gpus=0)
    for name in names:
        # Nothing but the constraint makes a pair: the NICs are in the opposite order.
        await driver.publish(gpus(name, 2), nics(name, [1, 0]))
    harness.nodes.default = PodScript(exit_after=None)
    claims = claims_of_workers(1, nics=1, per_pod=2, aligned=True)
    await harness.submit("job", workers={"deviceClaims": claims})
    await harness.runs("job", 0)
    found = [devices_of(claim) for claim in await driver.claims(harness.namespace)]
    pairs = [{f"{name}/gpu-{i}", f"{name}/nic-{1 - i}"} for name in names for i in range(2)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, pairs))
    for pod in await harness.pods():
        limits = pod["spec"]["containers"][0]["resources"].get("limits") or {}
        assert not any("/" in name for name in limits)
    for index in range(2):
        harness.nodes.end(harness.namespace, f"job-0-{index}", 0)
    await harness.phase("job", "Succeeded")
    await driver.released(harness.namespace)


async def test_a_gang_without_enough_slices_waits_and_starts_when_they_come(
    harness: OperatorHarness, driver: FakeDriver
) -> None:
    first, second = await harness.add_nodes({}, {}, gpus=0)
    await driver.publish(gpus(first, 2))
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("job", workers={"deviceClaims": claims_of_workers()})
    waiting = await placed_because(harness, "job", "InsufficientDevices")
    assert (
        "spec.workers.deviceClaims: needs 2 nodes with 2 "
        in condition(waiting, "Placed")["message"]
    )
    assert not await harness.pods() and not await driver.claims(harness.namespace)
    await driver.publish(gpus(second, 2))
    await harness.runs("job", 0)

    await harness.submit("next", workers={"deviceClaims": claims_of_workers()})
    await placed_because(harness, "next", "InsufficientGpus")
    for index in range(2):
        harness.nodes.end(harness.namespace, f"job-0-{index}", 0)
    await harness.runs("next", 0)


async def test_a_claim_of_somebody_else_takes_its_devices_from_jobs(
    harness: OperatorHarness, driver: FakeDriver
) -> None:
    names = await harness.add_nodes({}, {}, gpus=0)
    for each in names:
        await driver.publish(gpus(each, 2))
    name = names[0]
    requests = [{"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}]
    template = {"metadata": {"name": "own"}, "spec": {"spec": {"devices": {"requests": requests}}}}
    await harness.api.create(TEMPLATES, template, harness.namespace)
    harness.nodes.default = PodScript(exit_after=None)
    await harness.api.create("pods", pod_with_claim("other", name), harness.namespace)
    async with asyncio.timeout(60):
        while not await driver.claims(harness.namespace):
            await asyncio.sleep(0.1)
    await harness.submit("job", workers={"deviceClaims": claims_of_workers()})
    waiting = await placed_because(harness, "job", "InsufficientGpus")
    assert f"{name} (" in condition(waiting, "Placed")["message"]
    await harness.api.delete("pods", "other", harness.namespace, grace_seconds=0)
    await harness.runs("job", 0)


def pod_with_claim(name: str, node: str) -> Object:
    container = {
        "name": "main",
        "image": "example.com/x:1",
        "resources": {"claims": [{"name": "gpu"}]},
    }
    spec: Any = {
        "containers": [container],
        "nodeSelector": {"kubernetes.io/hostname": node},
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "own"}],
    }
    return {"metadata": {"name": name}, "spec": spec}


async def test_a_compute_domain_is_there_before_the_pods_and_gone_after_them(
    harness: OperatorHarness, driver: FakeDriver, control_plane: ControlPlane
) -> None:
    names = await harness.add_nodes({}, {}, gpus=0)
    for name in names:
        await driver.publish(gpus(name, 2), channel(name))
    harness.nodes.default = PodScript(exit_after=None)
    await driver.remove_compute_domains()
    fields = {"workers": {"deviceClaims": claims_of_workers()}}
    await harness.submit("job", topology={"computeDomain": "auto"}, **fields)
    refused = await placed_because(harness, "job", "NotServed")
    message = condition(refused, "Placed")["message"]
    assert message.startswith("spec.topology.computeDomain: ") and "install the DRA" in message
    assert not await harness.pods()

    await driver.install_compute_domains()
    try:
        async with driver.controlling(harness.namespace):
            await harness.runs("job", 0, seconds=120)
            (domain,) = await harness.api.list(DOMAINS, harness.namespace)
            assert domain["metadata"]["name"] == "job-0"
            created = created_in_order(control_plane, harness.namespace)
            assert created.index("computedomains/job-0") < created.index("pods/job-0-0")
            victim = (await harness.pods())[0]["metadata"]["name"]
            await harness.api.delete("pods", victim, harness.namespace, grace_seconds=0)
            await harness.runs("job", 1)
            await domains_are(harness, "job-1")  # each attempt has its own
            for index in range(2):
                harness.nodes.end(harness.namespace, f"job-1-{index}", 0)
            await harness.phase("job", "Succeeded")
            await domains_are(harness)
            await driver.released(harness.namespace)
    finally:
        await driver.remove_compute_domains()


async def domains_are(harness: OperatorHarness, *names: str) -> None:
    """Wait until these are the ComputeDomains. The operator looks for a new kind now and then."""
    async with asyncio.timeout(120):
        while [*names] != [
            found["metadata"]["name"]
            for found in await harness.api.list(DOMAINS, harness.namespace)
        ]:
            await asyncio.sleep(0.2)


def created_in_order(control_plane: ControlPlane, namespace: str) -> list[str]:
    """Return what the operator has created in a namespace, as plural/name, in order."""
    return [
        f"{event['objectRef']['resource']}/{event['objectRef'].get('name')}"
        for event in control_plane.requests(OPERATOR_USER)
        if event["verb"] == "create"
        and event["objectRef"].get("namespace") == namespace
        and "dryRun" not in event["requestURI"]
    ]
