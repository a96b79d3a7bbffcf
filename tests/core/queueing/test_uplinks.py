"""Uplinks that others keep busy, and places that became better than where a job sits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain_core.queueing import decide
from llmtrain_core.queueing.relocation import find_relocation
from llmtrain_core.queueing.uplink_usage import uplink_usage
from llmtrain_core.topology.inventory import Snapshot, Usage
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.queue_sim import GPU, LEAF, Arrival, cluster_state, fabric, request, start

pytestmark = pytest.mark.unit
SPINE = FabricLevel("spine", "spine", oversubscription=8)


def two_tiers() -> Snapshot:
    """Two spines with two leaves of two nodes each; spine uplinks are thin."""
    flat = fabric(8, per_leaf=2)
    nodes = tuple(
        replace(node, labels={**node.labels, "spine": f"s{index // 4}"})
        for index, node in enumerate(flat.nodes)
    )
    return Snapshot((SPINE, replace(LEAF, oversubscription=4), NODE), nodes)


def test_a_job_inside_one_leaf_keeps_no_uplink_busy() -> None:
    assert uplink_usage(request(2), ["n000", "n001"], two_tiers()) == {}


def test_a_job_across_leaves_keeps_their_uplinks_busy() -> None:
    shares = uplink_usage(request(2), ["n000", "n002"], two_tiers())
    assert shares.keys() == {("s0", "l00"), ("s0", "l01")}
    assert all(0 < share <= 1 for share in shares.values())
    longer = uplink_usage(request(2), ["n000", "n002"], two_tiers(), step_seconds=1e6)
    assert all(longer[path] < shares[path] for path in shares)
    assert uplink_usage(request(2), ["n000", "gone"], two_tiers()) == {}


def spanning(*taken: int, uplinks: dict[tuple[str, ...], float]) -> set[str]:
    """Place a job that must leave its leaf; return the spine that it chose."""
    seen = replace(two_tiers(), uplinks=uplinks)
    usage = tuple(Usage(f"n{index:03}", GPU, 8) for index in taken)
    answer = start(
        decide(
            [Arrival("job", 2, 9).waiting()], replace(cluster_state(seen, 0.0, []), usage=usage)
        )["job"]
    ).placement
    return {node.path["spine"] for node in answer.nodes}


def test_a_busy_uplink_is_avoided_where_another_will_do() -> None:
    # One node is left in each leaf.
    busy = {("s0", "l00"): 0.8, ("s0", "l01"): 0.8}
    assert spanning(0, 2, 4, 6, uplinks={}) == {"s0"}
    assert spanning(0, 2, 4, 6, uplinks=busy) == {"s1"}


def test_jobs_of_one_round_do_not_meet_on_an_uplink() -> None:
    # Three nodes are left of each spine, at most two of them in one leaf.
    seen = two_tiers()
    usage = (Usage("n000", GPU, 8), Usage("n004", GPU, 8))
    jobs = [Arrival(f"job{index}", 3, 9).waiting() for index in range(2)]
    found = decide(jobs, replace(cluster_state(seen, 0.0, []), usage=usage))
    spines = [{n.path["spine"] for n in start(found[job.uid]).placement.nodes} for job in jobs]
    assert spines[0].isdisjoint(spines[1])


def test_a_better_place_is_seen_and_a_small_gain_is_not() -> None:
    seen = two_tiers()
    found = find_relocation(request(2), ["n000", "n004"], seen)
    assert found is not None and found.gain > 1.1
    assert len({node.path["leaf"] for node in found.placement.nodes}) == 1
    assert find_relocation(request(2), ["n000", "n001"], seen) is None
    full = replace(seen, used={(f"n{index:03}", GPU): 8 for index in (1, 2, 3, 5, 6, 7)})
    assert find_relocation(request(2), ["n000", "n004"], full) is None, "nothing else is free"
    assert find_relocation(request(2), ["n000", "gone"], seen) is None
