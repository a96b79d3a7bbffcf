"""Which links a group crosses."""

import pytest

from llmtrain_core.layout import Layout
from llmtrain_core.network.links import crossed_links, job_groups

A1, A2, B1 = ("a", "a1"), ("a", "a2"), ("b", "b1")

pytestmark = pytest.mark.unit


def test_a_group_inside_a_domain_does_not_cross_its_uplink() -> None:
    assert crossed_links([A1, A2], 2) == {A1, A2}


def test_a_group_of_two_domains_crosses_both_uplinks_and_all_interfaces() -> None:
    assert crossed_links([A1, A1, A2, B1], 2) == {("a",), ("b",), A1, A2, B1}


def test_a_group_inside_a_node_crosses_no_link() -> None:
    assert crossed_links([A1, A1], 2) == frozenset()


def test_nvlink_carries_what_stays_in_its_domain() -> None:
    assert crossed_links([A1, A2], 1) == frozenset()
    assert ("a",) in crossed_links([A1, A2, B1], 1)


def test_with_own_interfaces_each_gpu_is_a_link() -> None:
    groups = list(job_groups(Layout(tensor=2, data=2), [A1, B1], 2, ["tp", "dp"]))
    own = list(job_groups(Layout(tensor=2, data=2), [A1, B1], 2, ["dp"], own_interfaces=True))
    assert [len(group.links) for group in groups] == [0, 0, 4, 4]
    assert own[1].links - groups[3].links == {(*A1, "gpu1"), (*B1, "gpu1")}


def test_groups_of_one_rank_are_left_out() -> None:
    groups = list(job_groups(Layout(data=4), [A1, A2], 2, ["tp", "dp", "pp"]))
    assert [(group.label, group.first_rank) for group in groups] == [("dp", 0)]
