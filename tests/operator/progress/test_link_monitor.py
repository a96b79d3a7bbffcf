"""The slow links of each namespace, from the reports of its jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.network.links import LinkPath
from llmtrain_core.network.slow_links import CLEAR_AFTER, EXPIRE_SECONDS
from llmtrain_core.topology.levels import FabricLevel, Levels
from llmtrain_operator.progress import link_monitor
from llmtrain_operator.progress.link_monitor import JobLinks, ranks_of
from tests.support.slow_links.monitored import LEVELS, MonitoredJobs, checked, job

pytestmark = pytest.mark.unit

RACK_B, NODE_C1 = ("b",), ("c", "c1")


def links_of(found: JobLinks) -> tuple[LinkPath, ...]:
    return () if found.claim is None else found.claim.found.links


async def test_an_uplink_is_named_after_two_blocks_and_cleared_after_three() -> None:
    cluster, one = MonitoredJobs(), job("one")
    assert links_of(await cluster.report(one, [RACK_B])) == ()
    found = await cluster.report(one, [RACK_B])
    assert links_of(found) == (RACK_B,)
    assert cluster.named() == pytest.approx({RACK_B: 3.0}, rel=0.05)
    assert cluster.monitor.domain_ratios() == pytest.approx({("rack", "b"): 3.0}, rel=0.05)
    assert cluster.woken[-1] == "one"
    for _ in range(CLEAR_AFTER):
        assert links_of(cluster.links(one)) == (RACK_B,)
        await cluster.report(one)
    assert cluster.links(one) == JobLinks()
    assert cluster.named() == {} and cluster.monitor.domain_ratios() == {}


async def test_a_node_is_named() -> None:
    cluster, one = MonitoredJobs(), job("one")
    for _ in range(2):
        await cluster.report(one, [NODE_C1], 2.0)
    assert links_of(cluster.links(one)) == (NODE_C1,)
    assert cluster.monitor.domain_ratios() == pytest.approx({("node", "c1"): 2.0}, rel=0.05)


async def test_a_block_counts_once() -> None:
    cluster, one = MonitoredJobs(), job("one")
    await cluster.report(one, [RACK_B])
    for _ in range(3):
        cluster.blocks["one"] = 0
        await cluster.report(one, [RACK_B])
    assert cluster.named() == {}


async def test_each_namespace_has_its_own_links_until_two_agree() -> None:
    cluster, one, two = MonitoredJobs(), job("one"), job("two", "other")
    for _ in range(2):
        await cluster.report(one, [RACK_B])
        await cluster.report(two)
    assert set(cluster.named("ns")) == {RACK_B}
    assert cluster.named("other") == cluster.named("third") == {}
    assert links_of(cluster.links(two)) == ()
    for _ in range(2):
        await cluster.report(two, [RACK_B], 2.0)
    assert cluster.named("third") == pytest.approx({RACK_B: 2.0}, rel=0.05)


async def test_a_new_attempt_starts_without_reports() -> None:
    cluster, one = MonitoredJobs(), job("one")
    await cluster.report(one, [RACK_B])
    later = job("one", attempt=1)
    said = {"attempt": 0, "transfers": {"block": 99, "groups": []}}
    cluster.monitor.observe(later, checked(later), LEVELS, said)
    assert cluster.monitor._due == {}, "the report is one of the attempt before"
    assert links_of(await cluster.report(later)) == ()
    assert not cluster.links(later).known


async def test_a_new_process_does_not_know_the_links_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster, one = MonitoredJobs(), job("one")
    assert not cluster.links(one).known
    for number in range(1, CLEAR_AFTER + 1):
        assert (await cluster.report(one)).known == (number == CLEAR_AFTER)
    silent = MonitoredJobs()
    assert not silent.links(one).known
    later = link_monitor.time.time() + EXPIRE_SECONDS + 1
    monkeypatch.setattr(link_monitor.time, "time", lambda: later)
    assert silent.links(one).known


async def test_other_levels_drop_what_is_known() -> None:
    cluster, one = MonitoredJobs(), job("one")
    for _ in range(2):
        await cluster.report(one, [RACK_B])
    other: Levels = (FabricLevel("spine", "spine"), *LEVELS)
    await cluster.report(one, [RACK_B], levels=other)
    assert links_of(cluster.links(one, other)) == (RACK_B,), "its placement is not comparable"
    moved = job("two")
    moved.raw["status"]["placement"]["levels"].insert(0, {"level": "spine", "domains": 1})
    for block in moved.raw["status"]["placement"]["blocks"]:
        block["path"] = f"s/{block['path']}"
    said = {"transfers": {"block": 1, "groups": []}}
    cluster.monitor.observe(moved, checked(moved), other, said)
    assert cluster.named() == {} and links_of(cluster.links(one, other)) == ()
    cluster.monitor.close()


@pytest.mark.parametrize(
    "change",
    [
        {"workers": {"nodes": 3, "gpusPerNode": 2}, "parallelism": {"tensor": 2, "data": 3}},
        {"workers": {"nodes": 6, "gpusPerNode": 1}, "parallelism": {"tensor": 1, "data": 6}},
    ],
)
def test_a_spec_that_has_changed_since_the_placement_shows_nothing(change: dict[str, Any]) -> None:
    edited = job("one", **change)
    assert ranks_of(edited.view, checked(edited), LEVELS) is None


def test_groups_follow_the_racks_that_the_trainer_has_chosen() -> None:
    shape: dict[str, Any] = {
        "workers": {"nodes": 6, "gpusPerNode": 2},
        "parallelism": {"tensor": 2, "replicate": 6},
    }
    training = {"steps": 100, "globalBatchSize": 12, "microBatchSize": 1}

    def copies(said: Any, **more: Any) -> int:
        found = job("one", **shape, training={**training, **more})
        ranks = ranks_of(found.view, checked(found), LEVELS, said)
        assert ranks is not None
        return ranks.copies_per_rack

    def chosen(size: int) -> dict[str, Any]:
        setting = {"copiesPerRack": size}
        return {
            "communication": {"state": "Chosen", "setting": setting, "fromStep": 9, "trials": []}
        }

    autotune = {"communication": {"autotune": True}}
    assert copies(chosen(3), **autotune) == 3
    assert copies(chosen(4), **autotune) == 1, "six replicas have no racks of four"
    for other in (None, {}, {"communication": 7}, {"communication": {"state": "Chosen"}}):
        assert copies(other, **autotune) == 1
    assert copies(chosen(3), gradientSync={"copiesPerRack": 2}) == 2


async def test_hostile_reports_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, one, bad = MonitoredJobs(), job("one"), job("bad", "evil")
    for number, said in enumerate(({"dp": 1}, [[]] * 99, "x", None, [{"group": {}}] * 20)):
        report = {"transfers": {"block": number, "groups": said}}
        cluster.monitor.observe(bad, checked(bad), LEVELS, report)
    real = link_monitor.decide_claims

    def fails(*_: Any) -> Any:
        monkeypatch.setattr(link_monitor, "decide_claims", real)
        raise RuntimeError("by the test")

    monkeypatch.setattr(link_monitor, "decide_claims", fails)
    cluster.monitor.observe(bad, checked(bad), LEVELS, {"transfers": {"block": 9}})
    assert cluster.monitor._task is not None
    await cluster.monitor._task
    assert link_monitor.decide_claims is real, "the explanation failed"
    for _ in range(2):
        await cluster.report(one, [RACK_B])
    assert set(cluster.named()) == {RACK_B}


async def test_groups_of_a_namespace_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    one, more = job("one"), [job(f"more-{number}") for number in range(9)]
    monkeypatch.setattr(link_monitor, "MAX_OBSERVATIONS", 40)
    counted: list[int] = []
    real = link_monitor.decide_claims

    def count(claims: Any, evidence: Any, now: float) -> Any:
        counted.append(sum(len(each.observations) for each in evidence))
        return real(claims, evidence, now)

    monkeypatch.setattr(link_monitor, "decide_claims", count)
    cluster = MonitoredJobs()
    for each in (*more, one, one):
        await cluster.report(each, [RACK_B])
    assert max(counted) <= 40 and len(counted) == 11
    assert set(cluster.named()) == {RACK_B}


async def test_a_job_that_is_gone_or_without_nodes_is_forgotten() -> None:
    cluster, one = MonitoredJobs(), job("one")
    await cluster.report(one)
    assert "one" in cluster.monitor._jobs
    waiting = replace(one, raw={**one.raw, "status": {}})
    assert cluster.links(waiting) == JobLinks()
    assert "one" not in cluster.monitor._jobs
    await cluster.report(one)
    cluster.monitor.forget("one")
    assert "one" not in cluster.monitor._jobs and "one" not in cluster.monitor._first_seen
