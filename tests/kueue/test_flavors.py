"""Flavors with node labels, and a Kueue that is away for a while."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.kueue.process import Kueue
from tests.support.kueue.queues import Queues
from tests.support.operator_harness.harness import condition

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


async def test_pods_are_on_nodes_of_the_flavor(queues: Queues) -> None:
    pool = {"pool": f"pool-{queues.harness.tag}"}
    names = await queues.harness.add_nodes(pool, pool, start=4)
    await queues.create(gpus=4, flavor_labels=pool)
    await queues.submit("job", workers={"nodeSelector": {"harness": queues.harness.tag, **pool}})
    await queues.harness.runs("job", 0, seconds=60)
    pods = await queues.harness.pods()
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == sorted(names)
    assert all(pool.items() <= pod["spec"]["nodeSelector"].items() for pod in pods)


async def test_a_job_waits_while_kueue_is_away(queues: Queues, kueue: Kueue) -> None:
    await queues.create(gpus=8)
    await queues.submit("running")
    await queues.harness.runs("running", 0, seconds=60)
    await asyncio.to_thread(kueue.stop)
    try:
        await queues.submit("waiting")
        found = await queues.harness.reason("waiting", "Placed", "Forbidden")
        assert "failed calling webhook" in condition(found, "Placed")["message"]
    finally:
        await asyncio.to_thread(kueue.start)
    await queues.harness.runs("waiting", 0, seconds=90)
    await queues.harness.runs("running", 0)
