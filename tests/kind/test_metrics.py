"""Prometheus finds operator and pods as the monitors say, and the dashboards show a slow uplink."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from llmtrain_kind.cluster import WORKERS, KindCluster
from llmtrain_monitoring.scrape import scrape_config
from tests.support.kind.jobs import Team
from tests.support.kind.prometheus import Prometheus, deploy, undeploy
from tests.support.kind.release import SYSTEM, KindRelease
from tests.support.kind.slow_uplink import slow_uplink
from tests.support.kind.steps import step
from tests.support.monitoring.pictures import after, pictures, problems

pytestmark = [pytest.mark.kind, pytest.mark.timeout(1600)]

LONG = 1_000_000
MONITORS = "servicemonitors.monitoring.coreos.com,podmonitors.monitoring.coreos.com"
RULES = "prometheusrules.monitoring.coreos.com"
SLOW_MBITS = 3
"""Bandwidth of a congested uplink, over which the gradients of a step take half a second."""
PICTURE_SECONDS = 60
WITHOUT_DATA = {
    *("Activity", "Power", "Devices"),  # of the driver of a GPU
    # the job writes none
    *("Steps since the checkpoint", "Time of a checkpoint", "Step and newest checkpoint"),
    *("Network probe", "Probe by domain"),  # the job asks for none
}
"""Panels that a job on fake GPUs, without checkpoints, leaves empty."""
FABRIC = {
    "apiVersion": "llmtrain.dev/v1alpha1",
    "kind": "Fabric",
    "metadata": {"name": "default"},
    "spec": {
        "levels": [
            {"name": "leaf", "nodeLabel": "network.topology.nvidia.com/leaf"},
            {"name": "node", "nodeLabel": "kubernetes.io/hostname"},
        ],
        "nics": {"perNode": 1, "gbitsPerSecond": 1},
    },
}
"""An Ethernet network, as the plan is to expect it."""


@pytest.fixture(scope="module")
def prometheus(
    kind: KindCluster, release: KindRelease, prometheus_image: str
) -> Iterator[Prometheus]:
    """A server with the monitors and rules of the release."""
    with step("start Prometheus with the monitors and rules of the release"):
        monitors = kind.kubectl.get(MONITORS, "--all-namespaces")["items"]
        assert {monitor["kind"] for monitor in monitors} == {"ServiceMonitor", "PodMonitor"}
        groups = [
            group
            for rule in kind.kubectl.get(RULES, "--namespace", SYSTEM)["items"]
            for group in rule["spec"]["groups"]
        ]
        configs = [scrape_config(monitor) for monitor in monitors]
        server = deploy(kind.kubectl, prometheus_image, configs, groups)
    kind.kubectl.apply(FABRIC)
    yield server
    kind.kubectl("delete", "fabric", "default")
    undeploy(kind.kubectl)


def uplinks(prometheus: Prometheus, job: str) -> dict[str, float]:
    """Return measured over planned time of a job's collectives, by leaf domain."""
    ratio = f'llmtrain_leaf:collective_plan:ratio5m{{llmtrain_job="{job}",group="dp"}}'
    found = prometheus.wait_for(ratio, lambda found: len(found) == len(WORKERS), seconds=180)
    return {each["metric"]["level_leaf"]: float(each["value"][1]) for each in found}


def test_a_picture_shows_a_slow_uplink_by_name(
    kind: KindCluster, prometheus: Prometheus, team: Team
) -> None:
    with slow_uplink(kind, WORKERS[1], SLOW_MBITS):
        with step("a job trains over a slow uplink"):
            team.submit("congested", LONG)
            team.trains("congested")
            slow = uplinks(prometheus, "congested")
            time.sleep(PICTURE_SECONDS / 2)
        with step("draw the dashboards"), prometheus.url() as url:
            drawn = pictures("kind-slow-uplink", url, PICTURE_SECONDS)
    with step("a job trains after it"):
        team.submit("free", LONG)
        team.trains("free")
        fast = uplinks(prometheus, "free")
    assert set(slow) == set(fast) == {"rack-a", "rack-b"}
    assert min(slow.values()) > 3 * max(fast.values()), (slow, fast)
    for rack in slow:
        assert float(after(drawn["network"].text, "Congested uplinks", rack)) > 3
    found = {problem.removeprefix("no data: ").partition(":")[0] for problem in problems(drawn)}
    assert found <= WITHOUT_DATA, problems(drawn)


def test_the_monitors_find_operator_and_pods(prometheus: Prometheus, team: Team) -> None:
    with step("a job trains"):
        team.submit("measured", LONG)
        team.trains("measured")
    with step("every target is up"):
        found = prometheus.wait_for("up == 1", lambda found: len(found) == 3)
        assert {f["metric"].get("node") for f in found} == {None, *WORKERS}
        assert prometheus.query("up == 0") == []
    with step("series of the job have its labels"):
        (loss,) = prometheus.wait_for('llmtrain_loss{llmtrain_job="measured"}')
        assert loss["metric"]["namespace"] == team.namespace
        assert loss["metric"]["attempt"] == "0"
    with step("series of the operator have the namespace of the job"):
        name = f'{{__name__=~"llmtrain_operator_.*",job_name="",namespace="{team.namespace}"}}'
        assert prometheus.wait_for(name)
