"""One cluster with process nodes and the operator, for all jobs that want no other."""

import asyncio
from collections.abc import Iterator

import pytest

from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.demo.demo_cluster import OPERATOR, DemoCluster
from tests.support.rights.audit import refused


@pytest.fixture(scope="package")
def demo_cluster() -> Iterator[DemoCluster]:
    demo_cluster = DemoCluster.new(Options(audit=True))
    with demo_cluster.cluster:
        demo_cluster.start_nodes()
        asyncio.run(_install(demo_cluster))
        yield demo_cluster
        requests = demo_cluster.cluster.requests(OPERATOR)
        assert requests and refused(requests) == []


async def _install(demo_cluster: DemoCluster) -> None:
    async with demo_cluster.cluster.client() as api:
        await demo_cluster.install(api)
