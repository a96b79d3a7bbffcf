"""One cluster with process nodes for all tests here: `api` and `namespace` use it too."""

from collections.abc import AsyncIterator, Iterator

import pytest

from llmtrain_devcluster.control_plane.components import Options
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from llmtrain_devcluster.process_node.start import start_process_nodes
from tests.support.process_pods import BACKOFF_SECONDS, NODES


@pytest.fixture(scope="package")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane(Options()) as plane:
        start_process_nodes(plane, NODES, backoff_seconds=BACKOFF_SECONDS)
        yield plane


@pytest.fixture
async def control_plane(cluster: ControlPlane) -> AsyncIterator[ControlPlane]:
    yield cluster
