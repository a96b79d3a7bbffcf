"""One cluster with process nodes and the operator, for all jobs that want no other."""

import asyncio
from collections.abc import Iterator

import pytest

from llmtrain_devcluster.demo.stage import Stage


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    stage = Stage.new()
    with stage.cluster:
        stage.start_nodes()
        asyncio.run(_install(stage))
        yield stage


async def _install(stage: Stage) -> None:
    async with stage.cluster.client() as api:
        await stage.install(api)
