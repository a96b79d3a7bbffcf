"""Which slow links count for whom, from when and until when."""

from dataclasses import replace

import pytest

from llmtrain_core.api.fabric import HOSTNAME
from llmtrain_core.layout import Layout
from llmtrain_core.network.links import LinkPath, job_groups
from llmtrain_core.network.localise import Localisation, Observation, SlowLink, localise
from llmtrain_core.network.slow_links import (
    CLEAR_AFTER,
    EXPIRE_SECONDS,
    MAX_ALIKE,
    Claim,
    JobEvidence,
    claim_of_job,
    decide_claims,
    next_claims,
    slow_links,
    slow_nodes,
    with_slow_links,
)
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.topology.inventory import Node, Snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel

pytestmark = pytest.mark.unit

A, B, C = ("rack-a",), ("rack-b",), ("rack-c",)
NODE_A1: LinkPath = ("rack-a", "node-a1")
NOTHING = Localisation()
GPU = "nvidia.com/gpu"


def found(*links: LinkPath, factor: float = 3.0) -> Localisation:
    return Localisation((SlowLink(links, factor, 0.99, ("g1", "g2"), (), ()),))


def claims_of(
    *decisions: Localisation, crossed: tuple[LinkPath, ...] = (A, B, C)
) -> tuple[Claim, ...]:
    claims: tuple[Claim, ...] = ()
    for number, decision in enumerate(decisions):
        claims = next_claims(claims, decision, crossed, 100.0 * number)
    return claims


def named(*decisions: Localisation) -> set[LinkPath]:
    now = 100.0 * len(decisions)
    return set(slow_links({"one": claims_of(*decisions)}, now).of("one"))


def test_a_link_is_named_from_the_second_decision() -> None:
    assert named(found(A)) == set()
    assert named(found(A), NOTHING, found(A)) == set()
    assert named(found(A), found(A)) == {A}


def test_a_link_is_cleared_after_several_decisions() -> None:
    slow = [found(A)] * 2
    assert named(*slow, *[NOTHING] * (CLEAR_AFTER - 1)) == {A}
    assert named(*slow, *[NOTHING] * (CLEAR_AFTER - 1), found(A), NOTHING) == {A}
    assert named(*slow, *[NOTHING] * CLEAR_AFTER) == set()


def test_a_link_that_no_group_crosses_any_more_expires() -> None:
    claims = claims_of(found(A), found(A))
    for _ in range(2 * CLEAR_AFTER):
        claims = next_claims(claims, NOTHING, [B], 200.0)
    assert set(slow_links({"one": claims}, 200.0).of("one")) == {A}
    late = 101.0 + EXPIRE_SECONDS
    assert slow_links({"one": claims}, late).of("one") == {}
    assert next_claims(claims, NOTHING, [B], late) == ()


def test_a_later_decision_may_narrow_the_answer() -> None:
    assert named(found(A, B), found(A)) == {A}


def test_an_answer_of_many_links_changes_no_placement() -> None:
    many = [("rack-a", f"node-{number}") for number in range(MAX_ALIKE + 1)]
    claims = claims_of(found(*many), found(*many))
    assert len(claims) == 1
    assert slow_links({"one": claims}, 200.0).of("one") == {}


def test_one_namespace_counts_for_itself() -> None:
    state = slow_links({"one": claims_of(found(A), found(A))}, 200.0)
    assert state.of("one") == {A: 3.0}
    assert state.of("other") == {}
    assert state.for_all == {}


def test_two_namespaces_count_for_all_where_they_agree() -> None:
    one = claims_of(*[found(A, B, factor=50.0)] * 2)
    two = claims_of(*[found(A, C, factor=2.0)] * 2)
    state = slow_links({"one": one, "two": two}, 200.0)
    assert state.of("other") == {A: 2.0}
    assert state.of("one") == {A: 50.0, B: 50.0}


def fabric() -> Snapshot:
    nodes = tuple(
        Node(name := f"node-{rack}{n}", {"rack": f"rack-{rack}", HOSTNAME: name}, {GPU: 2})
        for rack in "abc"
        for n in (1, 2)
    )
    return Snapshot((FabricLevel("rack", "rack", 4.0), NODE), nodes)


def placed(snapshot: Snapshot) -> Placement:
    request = Request(Layout(tensor=2, data=4), nodes=4, gpus_per_node=2)
    answer = place(request, snapshot)
    assert isinstance(answer, Placement)
    return answer


def lies(namespace: str, factor: float) -> list[Observation]:
    """Return the times of a job on all nodes which says that whatever leaves rack a is slow."""
    nodes = [fabric().path(node) for node in fabric().nodes]
    groups = [
        replace(group, first_rank=10 * start + group.first_rank)
        for start in range(len(nodes) - 1)
        for end in range(start + 1, len(nodes))
        for group in job_groups(Layout(data=2), [nodes[start], nodes[end]], 1, ["dp"])
    ]
    return [
        Observation(
            f"{namespace} {number}",
            f"{namespace}/job",
            group.label,
            group.links,
            factor if A in group.links else 0.0,
            0.02,
        )
        for number, group in enumerate(groups)
    ]


def test_a_job_that_lies_about_its_times_moves_no_job_of_others() -> None:
    decision = localise(lies("liar", 4.0))
    assert [each.links for each in decision.slow_links] == [(A,)]
    state = slow_links({"liar": claims_of(decision, decision)}, 200.0)
    honest = with_slow_links(fabric(), state.of("honest"))
    assert honest == fabric()
    assert slow_nodes(fabric(), state.of("honest")) == frozenset()
    assert placed(honest) == placed(fabric())
    own = with_slow_links(fabric(), state.of("liar"))
    assert own.uplinks[A] > 0.9
    racks = {node.path["rack"] for node in placed(own).nodes}
    assert racks == {"rack-b", "rack-c"}


def test_what_others_use_of_a_slow_uplink_counts_too() -> None:
    used = replace(fabric(), uplinks={A: 0.5})
    assert with_slow_links(used, {A: 2.0}).uplinks == {A: 0.75}


def test_a_slow_node_is_used_last_and_keeps_its_uplink() -> None:
    slow = {NODE_A1: 2.0, (*NODE_A1, "gpu0"): 2.0}
    assert slow_nodes(fabric(), slow) == {"node-a1"}
    assert with_slow_links(fabric(), slow).uplinks == {}


def evidence(namespace: str, factor: float, *, fresh: bool = True) -> JobEvidence:
    return JobEvidence(tuple(lies(namespace, factor)), fresh=fresh)


def test_only_a_new_block_names_or_clears_a_link() -> None:
    slow, quiet = evidence("one", 3.0), evidence("two", 0.0)
    first = decide_claims((), [slow, quiet], 100.0)
    assert [(claim.found.links, claim.times) for claim in first] == [((A,), 1)]
    again = decide_claims(first, [replace(slow, fresh=False), quiet], 110.0)
    assert again == first
    second = decide_claims(first, [slow, replace(quiet, fresh=False)], 200.0)
    assert claim_of_job(second, "one/job", 200.0) == second[0]
    assert claim_of_job(second, "two/job", 200.0) is None
    for _ in range(2 * CLEAR_AFTER):
        second = decide_claims(second, [replace(slow, fresh=False)], 300.0)
    assert claim_of_job(second, "one/job", 300.0) is not None
    for _ in range(CLEAR_AFTER):
        assert claim_of_job(second, "one/job", 400.0) is not None
        second = decide_claims(second, [evidence("one", 0.0)], 400.0)
    assert second == ()


def test_a_job_keeps_its_claim_while_the_link_is_slow() -> None:
    both = [evidence("one", 3.0), evidence("two", 3.0)]
    claims = decide_claims((), both, 100.0)
    claims = decide_claims(claims, [both[0], evidence("two", 0.0)], 200.0)
    assert claims[0].jobs == {"one/job", "two/job"}


def test_the_factor_of_a_named_link() -> None:
    one = claims_of(*[found(A, factor=5.0)] * 2)
    two = claims_of(*[found(A, factor=2.0)] * 2)
    other = claims_of(*[found(B, factor=9.0)] * 2)
    assert slow_links({"one": one}, 200.0).named() == {A: 5.0}
    assert slow_links({"one": one, "two": two, "x": other}, 200.0).named() == {A: 2.0, B: 9.0}
