"""A job that lies about its transfer times moves no job of others, and shows them nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_core.api.conditions import ConditionType, get_condition
from llmtrain_core.network.links import LinkPath
from llmtrain_core.network.slow_links import MAX_NAMED
from llmtrain_core.queueing import ClusterState
from llmtrain_operator.job_state.status_draft import StatusDraft
from llmtrain_operator.policies.network_degraded import set_network_degraded
from tests.support.operator_harness.observed import make_observed
from tests.support.operator_harness.scheduling import (
    cluster,
    placed,
    rack_nodes,
    thin_uplinks,
    waiting_job,
)
from tests.support.slow_links.monitored import LEVELS, MonitoredJobs, checked, job

pytestmark = pytest.mark.unit

NODES = rack_nodes(0, 1)
LIES: dict[str, list[LinkPath]] = {
    "an uplink": [("a",)],
    "a node": [("a", "a0")],
    "all uplinks": [("a",), ("b",), ("c",)],
    "every node": [(node.labels["rack"], node.name) for node in NODES],
}


async def after(lie: str, blocks: int = 4) -> MonitoredJobs:
    """Return what is known after reports of a liar and of an honest job of another namespace."""
    found, liar, honest = MonitoredJobs(), job("liar", "mallory"), job("honest", "bob")
    for _ in range(blocks):
        await found.report(liar, LIES[lie], 50.0)
        await found.report(honest)
    return found


def state_of(found: MonitoredJobs) -> ClusterState:
    usual = cluster(NODES, fabrics=thin_uplinks("rack", "rack"))
    return replace(usual, slow_links=found.monitor.slow_links())


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_moves_no_job_of_others(lie: str) -> None:
    found, truth = await after(lie), MonitoredJobs()
    for count in (1, 2, 4, 6):
        for namespace in ("bob", "carol"):
            pending = replace(waiting_job("job-1", count), namespace=namespace)
            assert placed(pending, state_of(found)) == placed(pending, state_of(truth))


@pytest.mark.parametrize("lie", ["an uplink", "a node"])
async def test_the_liar_moves_its_own_jobs(lie: str) -> None:
    """So the lies above are understood."""
    found, truth = await after(lie), MonitoredJobs()
    count = 4 if lie == "an uplink" else 1
    pending = replace(waiting_job("job-1", count), namespace="mallory")
    assert placed(pending, state_of(found)) != placed(pending, state_of(truth))


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_shows_no_condition_to_others(lie: str) -> None:
    found, honest = await after(lie), job("honest", "bob")
    links = found.links(honest)
    assert links.claim is None and links.known
    observed = replace(
        make_observed(dict(honest.raw["status"]), levels=LEVELS, links=links),
        checked=checked(honest),
    )
    draft = StatusDraft(observed)
    set_network_degraded(draft)
    shown = get_condition(draft.view.conditions, ConditionType.NETWORK_DEGRADED)
    assert shown is None


async def test_lies_make_a_bounded_number_of_series() -> None:
    found = MonitoredJobs()
    for number in range(4):
        for name in (f"liar-{number}", f"other-{number}"):
            liar = job(name, f"mallory-{number}")
            for _ in range(3):
                await found.report(liar, [LIES["every node"][number]], 50.0)
    ratios = found.monitor.domain_ratios()
    assert 0 < len(ratios) <= MAX_NAMED
    names = {node.name for node in NODES} | {"a", "b", "c"}
    assert {level for level, _ in ratios} <= {"rack", "node"}
    assert {domain for _, domain in ratios} <= names
