"""At most a share of the nodes is avoided, whatever their agents say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.node_health import HealthFinding
from llmtrain_core.queueing.quarantine import NodeFailure, quarantine
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.node_limit import within_limit

pytestmark = pytest.mark.unit

NOW = 1_800_000_000.0
AVOID = HealthFinding("aks/GPUMissing", "condition GPUMissing=True")


def node(index: int, *found: HealthFinding, gpu: str = "nvidia.com/gpu") -> Node:
    return Node(f"n{index:02}", {}, {"cpu": 1000, gpu: 8}, health=found)


def avoided(nodes: tuple[Node, ...]) -> list[str]:
    return [n.name for n in nodes if n.avoided]


def test_a_report_about_all_nodes_idles_a_tenth_of_them() -> None:
    nodes = [node(index, AVOID) for index in range(40)]
    kept = within_limit(nodes, 10.0)
    assert len(avoided(kept)) == 4
    assert [n.name for n in kept] == [n.name for n in nodes]
    assert all(n.health and n.leaving is None for n in kept), "the findings are still known"
    assert len(avoided(within_limit(nodes[:3], 10.0))) == 1, "at least one"


def test_the_newest_findings_hold_and_those_that_jobs_leave_come_first() -> None:
    nodes = [node(i, replace(AVOID, since=f"2026-01-01T00:00:{i:02}Z")) for i in range(20)]
    assert avoided(within_limit(nodes, 10.0)) == ["n18", "n19"]
    nodes[3] = node(3, replace(AVOID, leave=True))
    kept = within_limit(nodes, 10.0)
    assert avoided(kept) == ["n03", "n19"]
    assert [n.name for n in kept if n.leaving] == ["n03"]


def test_each_kind_of_node_has_its_own_limit() -> None:
    plain = [node(index, gpu="cpu") for index in range(40)]
    kept = within_limit([*plain, *(node(40 + i, AVOID) for i in range(4))], 10.0)
    assert len(avoided(kept)) == 1


def test_what_kube_scheduler_refuses_anyway_is_not_bounded() -> None:
    hard = replace(AVOID, bounded=False, leave=True)
    nodes = [node(index, hard, AVOID) for index in range(20)]
    kept = within_limit(nodes, 10.0)
    assert len(avoided(kept)) == 20 and all(n.leaving == hard for n in kept)
    assert sum(n.health[1].in_force for n in kept) == 2


def failure(name: str, ago: float) -> NodeFailure:
    return NodeFailure(name, NOW - ago, "ns", "ns/job", "NodeLost", own=True)


@given(
    st.sets(st.integers(0, 29)),
    st.lists(st.tuples(st.integers(0, 29), st.floats(1, 5000))),
    st.sampled_from([1.0, 10.0, 50.0]),
)
def test_health_and_failures_together_exclude_no_more_than_the_limit(
    unwell: set[int], failed: list[tuple[int, float]], percent: float
) -> None:
    nodes = within_limit([node(i, *([AVOID] if i in unwell else [])) for i in range(30)], percent)
    failures = [failure(f"n{index:02}", ago) for index, ago in failed]
    kinds = {n.name: "" for n in nodes}
    out = quarantine(failures, NOW, kinds, percent, avoided=avoided(nodes)).of("ns").excluded
    assert not out.keys() & set(avoided(nodes))
    assert len(out) + len(avoided(nodes)) <= max(1, int(30 * percent / 100))


def test_nodes_beyond_the_limit_are_used_last() -> None:
    kinds = {f"n{index}": "" for index in range(9)}
    found = quarantine([failure("n1", 5), failure("n1", 6)], NOW, kinds, suspects=["n1", "n2"])
    assert found.of("ns").excluded.keys() == {"n1"} and found.of("other").suspects == {"n2"}
    assert quarantine([], NOW, kinds, suspects=["n2"]).of("ns").suspects == {"n2"}
