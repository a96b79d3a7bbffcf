"""The pods of a gang share a claim of their PodGroup: API server and kube-scheduler are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from llmtrain_devcluster.api import Api, Object
from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.fixtures import USERS
from llmtrain_devcluster.scripted_node.node import PodScript
from tests.support.devices.driver import FakeDriver, fake_driver
from tests.support.devices.objects import PORTS, claim_of_gang, ports
from tests.support.operator_harness.harness import OperatorHarness, condition
from tests.support.operator_harness.install import installed_in

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300), pytest.mark.usefixtures("operator")]

GROUPS = "scheduling.k8s.io/v1beta1/podgroups"
GATES = "--feature-gates=GenericWorkload=true,DRAWorkloadResourceClaims=true"
OPTIONS = Options(
    audit=True,
    apiserver_args=(GATES, "--runtime-config=scheduling.k8s.io/v1beta1=true"),
    controller_manager_args=(GATES,),
    scheduler_args=(GATES,),
)
WORKERS = {"deviceClaims": [claim_of_gang()]}


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """A control plane whose PodGroups have claims."""
    with ControlPlane(OPTIONS, users=USERS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    with installed_in(control_plane, {"config": {"podGroups": True, "deviceClaims": True}}):
        yield control_plane


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    return ("--pod-groups=yes", "--device-claims=yes")


@pytest.fixture
async def driver(api: Api) -> AsyncIterator[FakeDriver]:
    async with fake_driver(api) as found:
        await found.publish(PORTS, ports(1))
        yield found


async def groups_are(harness: OperatorHarness, *names: str) -> None:
    async with asyncio.timeout(120):
        while [*names] != [
            found["metadata"]["name"] for found in await harness.api.list(GROUPS, harness.namespace)
        ]:
            await asyncio.sleep(0.2)


async def only_claim(driver: FakeDriver, harness: OperatorHarness, group: str) -> Object:
    """Return the one claim of a namespace, which is reserved for a PodGroup."""
    (found,) = await driver.claims(harness.namespace)
    (user,) = found["status"]["reservedFor"]
    assert (user["resource"], user["name"]) == ("podgroups", group)
    return found


async def test_a_gang_has_one_claim_for_all_pods_and_gives_it_back_with_the_attempt(
    harness: OperatorHarness, driver: FakeDriver
) -> None:
    first, second = await harness.add_nodes({}, {}, gpus=4)
    harness.nodes.default = PodScript(exit_after=None)
    await harness.submit("job", workers=WORKERS)
    await harness.runs("job", 0)
    claim = await only_claim(driver, harness, "job.0")
    assert {pod["spec"]["nodeName"] for pod in await harness.pods()} == {first, second}
    names = {
        status["resourceClaimName"]
        for pod in await harness.pods()
        for status in pod["status"]["resourceClaimStatuses"]
    }
    assert names == {claim["metadata"]["name"]}

    # There are GPUs for both jobs, but one port.
    await harness.submit("next", workers=WORKERS)
    waiting = await harness.wait(
        "next", lambda job: condition(job, "Placed").get("reason") == "InsufficientDevices"
    )
    assert "once; 0 of 1 that all nodes reach" in condition(waiting, "Placed")["message"]

    victim = (await harness.pods("llmtrain.dev/job-name=job"))[0]["metadata"]["name"]
    await harness.api.delete("pods", victim, harness.namespace, grace_seconds=0)
    await harness.runs("job", 1)
    await groups_are(harness, "job.1")
    assert (await only_claim(driver, harness, "job.1"))["metadata"]["uid"] != claim["metadata"][
        "uid"
    ], "each attempt has its own"

    for index in range(2):
        harness.nodes.end(harness.namespace, f"job-1-{index}", 0)
    await harness.phase("job", "Succeeded")
    await harness.runs("next", 0)
    await only_claim(driver, harness, "next.0")
