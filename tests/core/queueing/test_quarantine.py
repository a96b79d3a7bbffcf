"""Whose word excludes a node, for whom, and how many nodes at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.queueing import Assignment, ClusterState, PendingJob, Unschedulable, decide
from llmtrain_core.queueing.messages import quarantine_message
from llmtrain_core.queueing.quarantine import (
    Exclusion,
    NodeFailure,
    NodeLists,
    Quarantine,
    quarantine,
)
from tests.support.examples import examples
from tests.support.queue_sim import Arrival, cluster_state, fabric

pytestmark = pytest.mark.unit

NOW = 1e6
NAMESPACES = ("a", "b", "c")


def late(job: str, node: str = "n0", ago: float = 10.0) -> NodeFailure:
    """What a job says about a node: its pod did not start there."""
    return NodeFailure(node, NOW - ago, job.split("/", maxsplit=1)[0], job, "StartupTimeout")


def lost(job: str, node: str = "n0", ago: float = 10.0) -> NodeFailure:
    return replace(late(job, node, ago), reason="NodeLost", own=True)


def kinds(count: int) -> dict[str, str]:
    return {f"n{index}": "gpu" for index in range(count)}


def out(found: Quarantine, namespace: str) -> set[str]:
    return set(found.of(namespace).excluded)


SPEAKERS: dict[str, tuple[list[NodeFailure], dict[str, bool | None]]] = {
    "one job": ([late("a/x")], {"a": None, "b": False}),
    "one job twice": ([late("a/x"), late("a/x", ago=60)], {"a": None, "b": False}),
    "two jobs of one namespace": ([late("a/x"), late("a/y")], {"a": True, "b": False}),
    "jobs of two namespaces": ([late("a/x"), late("b/x")], {"a": True, "b": True, "c": True}),
    "jobs that are hours apart": ([late("a/x"), late("b/x", ago=3700)], {"a": None, "c": False}),
    "a lost node": ([lost("a/x")], {"a": None, "b": None}),
    "a node that was lost twice": ([lost("a/x"), lost("a/x", ago=60)], {"a": True, "b": True}),
    "a lost node, and one job": ([lost("a/x"), late("b/x")], {"a": None, "b": True, "c": None}),
}


@pytest.mark.parametrize("case", SPEAKERS)
def test_whose_word_counts_for_whom(case: str) -> None:
    """True: excluded. None: used last. False: not affected."""
    failures, expected = SPEAKERS[case]
    found = quarantine(failures, NOW, kinds(1))
    for namespace, effect in expected.items():
        lists = found.of(namespace)
        assert bool(lists.excluded) is (effect is True), namespace
        assert bool(lists.suspects) is (effect is None), namespace


def test_many_jobs_of_one_namespace_count_once_for_others() -> None:
    failures = [late("b/x"), *(late(f"a/{index}") for index in range(9))]
    found = quarantine(failures, NOW, kinds(1))
    assert found.of("c").excluded["n0"].until == NOW - 10 + 600
    assert found.of("a").excluded["n0"].until > NOW + 3600


def test_any_number_of_failures_excludes_a_node_for_four_hours_at_most() -> None:
    failures = [lost(f"a/job-{index}") for index in range(1100)]
    found = quarantine(failures, NOW, kinds(1)).of("b").excluded["n0"]
    assert found.until == NOW - 10.0 + 4 * 3600.0


def test_a_failure_that_lies_in_the_future_counts_only_within_the_skew_of_clocks() -> None:
    failures = [lost("a/first", ago=-250.0), lost("a/second", ago=-200.0)]
    assert out(quarantine(failures, NOW, kinds(1)), "b") == {"n0"}
    failures = [lost("a/first", ago=-5000.0), lost("a/second", ago=-5000.0)]
    assert not quarantine(failures, NOW, kinds(1)).exists


def test_the_newest_exclusions_hold_and_the_oldest_end_for_good() -> None:
    failures = [
        lost("a/x", f"n{index}", ago=ago + more)
        for index, ago in enumerate((50, 40, 30))
        for more in (0, 1)
    ]
    assert out(quarantine(failures, NOW, kinds(20)), "b") == {"n1", "n2"}
    assert out(quarantine(failures, NOW, kinds(30)), "b") == {"n0", "n1", "n2"}
    assert out(quarantine(failures, NOW, kinds(9)), "b") == {"n2"}, "at least one node"
    assert out(quarantine(failures, NOW, kinds(20), max_percent=5.0), "b") == {"n2"}
    assert quarantine(failures, NOW, kinds(9)).of("b").suspects == {"n0", "n1"}
    # The one that ended early lasts longer by itself. It does not begin again.
    long = [lost("a/x", "n0", ago=50 + more) for more in range(9)]
    assert out(quarantine([*long, *failures], NOW + 580, kinds(9)), "b") == set()


def test_each_kind_of_node_has_its_own_limit() -> None:
    nodes = {f"cpu{index}": "" for index in range(30)} | {
        f"gpu{index}": "gpu" for index in range(4)
    }
    failures = [lost("a/x", f"gpu{index}", ago=ago) for index in range(4) for ago in (10, 11)]
    assert len(out(quarantine(failures, NOW, nodes), "a")) == 1


def test_a_node_that_is_gone_takes_no_place() -> None:
    failures = [lost("a/x", node, ago) for node in ("gone", "n0") for ago in (10, 11)]
    assert out(quarantine(failures, NOW, kinds(5)), "a") == {"n0"}


failure = st.builds(
    lambda node, ago, namespace, job, own: replace(
        late(f"{namespace}/j{job}", f"n{node}", float(ago)), own=own
    ),
    st.integers(0, 11),
    st.integers(0, 20_000),
    st.sampled_from(NAMESPACES),
    st.integers(0, 5),
    st.booleans(),
)


@examples(150)
@given(st.lists(failure, max_size=40), st.integers(1, 40), st.integers(1, 100))
def test_no_failures_exclude_more_than_the_limit(
    failures: list[NodeFailure], count: int, percent: int
) -> None:
    found = quarantine(failures, NOW, kinds(count), float(percent))
    for namespace in (*NAMESPACES, "silent"):
        lists = found.of(namespace)
        assert len(lists.excluded) <= max(1, count * percent // 100)
        assert not lists.suspects & lists.excluded.keys()
        for node, exclusion in lists.excluded.items():
            assert NOW < exclusion.until <= NOW + 4 * 3600 and exclusion.failures
            assert all(item.node == node for item in exclusion.failures)


@examples(150)
@given(st.lists(failure, max_size=40))
def test_what_one_namespace_says_changes_nothing_for_others(failures: list[NodeFailure]) -> None:
    said = [replace(f, own=False, namespace="a", job=f"a/{f.job}") for f in failures]
    found = quarantine(said, NOW, kinds(12))
    assert found.of("b") == found.of("silent") == NodeLists()


SEEN = fabric(3)


def state(found: Quarantine, spares: ClusterState | None = None) -> ClusterState:
    return replace(spares or cluster_state(SEEN, NOW, []), quarantine=found)


def waiting(namespace: str, nodes: int = 2) -> PendingJob:
    return replace(Arrival(f"{namespace}-job", nodes, 9).waiting(), namespace=namespace)


def nodes_of(decision: object) -> set[str]:
    assert isinstance(decision, Assignment), decision
    return set(decision.nodes)


def test_a_node_is_out_for_one_namespace_and_in_for_another() -> None:
    found = Quarantine(by_namespace={"a": NodeLists({"n000": Exclusion(NOW + 60)})})
    refused = decide([waiting("a", 3)], state(found))["a-job"]
    assert isinstance(refused, Unschedulable) and refused.reason == "NodesQuarantined"
    # In one cycle, the second job must not get the answer of the first for the same request.
    for names in ("ab", "ba"):
        queue = [replace(waiting(name, 3), created_at=float(i)) for i, name in enumerate(names)]
        decisions = decide(queue, state(found))
        assert isinstance(decisions["a-job"], Unschedulable)
        assert nodes_of(decisions["b-job"]) == {"n000", "n001", "n002"}
    suspect = Quarantine(by_namespace={"a": NodeLists(suspects=frozenset({"n000"}))})
    assert nodes_of(decide([waiting("a")], state(suspect))["a-job"]) == {"n001", "n002"}


def test_a_spare_of_another_job_comes_before_a_node_that_failed() -> None:
    spare = Arrival("other", 1, 9).running(["n001"], 0.0)
    cluster = replace(cluster_state(SEEN, NOW, []), spares=(spare,))
    suspects = Quarantine(NodeLists(suspects=frozenset({"n002"})))
    job = replace(waiting("a", 1), avoided_nodes=frozenset({"n000"}))
    assert nodes_of(decide([job], state(suspects, cluster))["a-job"]) == {"n001"}
    two = replace(job, request=waiting("a", 2).request)
    assert nodes_of(decide([two], state(suspects, cluster))["a-job"]) == {"n001", "n002"}


def test_who_waits_sees_the_evidence_and_only_jobs_of_its_namespace() -> None:
    failures = (late("a/x"), late("b/secret"), late("c/hidden"), late("c/other"))
    out = {"n0": Exclusion(60.0, failures=failures), "n1": Exclusion(70.0, failures=(lost("b/s"),))}
    text = quarantine_message("a", out, ["n0", "n1"])
    assert (
        "n0 until 1970-01-01T00:01:00Z (StartupTimeout of a/x, jobs of 2 other namespaces)" in text
    )
    assert text.endswith("n1 until 1970-01-01T00:01:10Z (NodeLost of a job of another namespace)")
    assert "secret" not in text and "hidden" not in text
    many = {"n0": Exclusion(60.0, failures=tuple(late(f"a/{index}") for index in range(5)))}
    assert "(StartupTimeout of a/0, a/1, a/2, 2 more)" in quarantine_message("a", many, ["n0"])
