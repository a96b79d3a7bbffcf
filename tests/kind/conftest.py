"""One kind cluster for all tests of this folder, with the chart installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from llmtrain_core.images import TRAINER
from llmtrain_images.build import build_operator, build_trainer
from llmtrain_images.docker_engine import DockerEngine
from llmtrain_kind.addons import add_gpus
from llmtrain_kind.cluster import WORKERS, KindCluster, kind_cluster
from llmtrain_kind.program_image import program_image
from llmtrain_monitoring.prometheus import SERVER, find
from tests.support.chart.monitoring_crds import MONITORING_CRDS
from tests.support.kind.first_release import build_first_operator
from tests.support.kind.jobs import Team
from tests.support.kind.release import RESTRICTED, SYSTEM, KindRelease, inventory
from tests.support.kind.report import report
from tests.support.kind.steps import step

GPUS = 2
LEAF, PRODUCT = "network.topology.nvidia.com/leaf", "nvidia.com/gpu.product"
GPU = "Tesla-V100-SXM2-16GB"
"""A GPU that the plan knows, so that there are planned times to compare with."""
VALUES = {
    "image": {"pullPolicy": "Never"},
    "config": {"progressSeconds": 1},
    "networkPolicy": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
}
RACKS = dict(zip(WORKERS, ("rack-a", "rack-b"), strict=True))
"""The leaf domain of each worker."""


@pytest.fixture(scope="session")
def prometheus_image(docker_engine: DockerEngine) -> str:
    return program_image(docker_engine, find(SERVER))


@pytest.fixture(scope="package")
def kind(
    docker_engine: DockerEngine,
    prometheus_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[KindCluster]:
    with step("build the images"):
        first = build_first_operator(docker_engine, tmp_path_factory.mktemp("first"))
        own = (build_operator(docker_engine), build_trainer(docker_engine))
        images = (*own, first, prometheus_image)
    with kind_cluster(docker_engine, images) as cluster:
        with step("prepare the cluster"):
            for worker in WORKERS:
                add_gpus(cluster.kubectl, worker, GPUS)
            for worker, rack in RACKS.items():
                cluster.kubectl("label", "node", worker, f"{LEAF}={rack}", f"{PRODUCT}={GPU}")
            cluster.kubectl.apply(*MONITORING_CRDS)
            system = {"name": SYSTEM, "labels": RESTRICTED}
            cluster.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": system})
        yield cluster
        cluster.guard.check()
        print(f"{cluster.guard.dropped()} packets tried to leave", file=sys.__stderr__)


@pytest.fixture(scope="package")
def before_install(kind: KindCluster) -> set[str]:
    """All objects of the cluster before the chart is installed."""
    return inventory(kind)


@pytest.fixture(scope="package")
def release(
    kind: KindCluster, before_install: set[str], tmp_path_factory: pytest.TempPathFactory
) -> KindRelease:
    """The release of the chart, installed."""
    release = KindRelease(kind, VALUES, tmp_path_factory.mktemp("release"))
    with step("helm install"):
        release.install()
    return release


@pytest.fixture
def team(kind: KindCluster, request: pytest.FixtureRequest) -> Iterator[Team]:
    """A namespace that enforces the restricted level; it is deleted at the end."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:50].strip("-")
    metadata = {"name": name, "labels": RESTRICTED}
    kind.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    yield Team(kind.kubectl, name, TRAINER)
    kind.kubectl("delete", "namespace", name, "--timeout=180s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    """Add the state of the cluster to the report of a failure, before fixtures clean up."""
    result: pytest.TestReport = yield
    cluster = getattr(item, "funcargs", {}).get("kind")
    if result.failed and call.when == "call" and cluster is not None:
        result.sections.append(("cluster", report(cluster)))
    return result
