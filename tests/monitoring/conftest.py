"""One live cluster for all tests that query it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.monitoring.live_cluster import LiveCluster, live_cluster


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    with live_cluster(tmp_path_factory.mktemp("live")) as cluster:
        yield cluster
