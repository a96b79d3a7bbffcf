"""NetworkDegraded is set and cleared by slow links, beside changed topology labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType, get_condition
from llmtrain_core.network.links import LinkPath
from llmtrain_core.network.localise import SlowLink
from llmtrain_core.network.slow_links import MAX_ALIKE, Claim
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels
from llmtrain_operator.job_state.status_draft import Actions
from llmtrain_operator.manifests.names import JobIdentity
from llmtrain_operator.progress.link_monitor import JobLinks
from llmtrain_operator.reconcile.events import status_events
from tests.support.operator_harness.observed import (
    PLACEMENT,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
    text,
)

pytestmark = pytest.mark.unit

KIND = ConditionType.NETWORK_DEGRADED
LEAF = "network.topology.nvidia.com/leaf"
LEVELS: Levels = (FabricLevel("leaf", LEAF), NODE)
HELD = {
    **PLACEMENT,
    "levels": [{"level": "leaf", "domains": 1}, {"level": "node", "domains": 2}],
}
UPLINK, N1 = ("leaf-1",), ("leaf-1", "n1")
QUIET, UNKNOWN = JobLinks(), JobLinks(known=False)


def slow(*links: LinkPath, factor: float = 3.14) -> JobLinks:
    found = SlowLink(links, factor, 0.987, ("uid/dp/0", "uid/dp/1"), ("uid/dp/2",), ())
    return JobLinks(Claim(found, 0.0, 0.0, times=2, jobs=frozenset({"uid"})))


def decide(
    before: dict[str, Any], links: JobLinks, *, leaf: str = "leaf-1", levels: Levels = LEVELS
) -> Actions:
    """Return the actions for a job with this status, whose second node is in this leaf now."""
    nodes = {
        name: replace(record, node=replace(record.node, labels={LEAF: where}))
        for name, where in (("n0", "leaf-1"), ("n1", leaf))
        for record in (node(name),)
    }
    observed = make_observed(before, pods=(pod(0), pod(1)), nodes=nodes, levels=levels, links=links)
    return settle(observed)[0]


def running() -> dict[str, Any]:
    return status(ConditionType.PODS_READY, ConditionType.RUNNING, placement=HELD)


def after(*known: JobLinks) -> dict[str, Any]:
    before = running()
    for links in known:
        before = dict(decide(before, links).status)
    return before


def test_the_uplink_of_a_domain() -> None:
    actions = decide(running(), slow(UPLINK))
    assert reason(actions, KIND) == ("True", "CongestedUplink")
    said = text(actions, KIND)
    assert said.startswith(
        "transfers over the uplink of leaf leaf-1 take 3.1 times as long as usual"
    )
    assert "2 of 3 groups there are slower (confidence 99%)" in said
    assert actions.status["placement"] == HELD and actions.status["phase"] == "Running"
    assert not actions.create_pods and not actions.delete_pods


def test_a_node() -> None:
    actions = decide(running(), slow(N1))
    assert reason(actions, KIND) == ("True", "SlowNode")
    assert "transfers over node n1 take" in text(actions, KIND)


def test_links_that_the_same_groups_cross() -> None:
    actions = decide(running(), slow(UPLINK, N1))
    assert reason(actions, KIND) == ("True", "CongestedUplink")
    expected = "the uplink of leaf leaf-1 or node n1, which the same groups cross, take"
    assert expected in text(actions, KIND)
    assert "later placements of this namespace avoid it" in text(actions, KIND)
    many = [("leaf-1", f"n{number}") for number in range(MAX_ALIKE + 2)]
    actions = decide(running(), slow(*many))
    assert "node n7 or one of 2 others" in text(actions, KIND)
    assert "no placement changes" in text(actions, KIND)


def test_it_is_cleared_with_an_event_that_is_no_warning() -> None:
    before = after(slow(UPLINK))
    actions = decide(before, QUIET)
    assert reason(actions, KIND) == ("False", "TransfersAsUsual")
    raw = make_observed(before).view
    identity = JobIdentity("ns", "job", "uid")
    (event,) = status_events(identity, raw, raw.with_status(actions.status), "now")
    assert (event["reason"], event["type"]) == ("TransfersAsUsual", "Normal")
    unplaced = {key: value for key, value in before.items() if key != "placement"}
    assert reason(decide(unplaced, QUIET), KIND) == ("False", "NotPlaced")


def test_a_job_without_slow_links_has_no_condition() -> None:
    for links in (QUIET, UNKNOWN):
        found = decide(running(), links).status["conditions"]
        assert get_condition(found, KIND) is None


def test_a_new_process_keeps_the_condition_until_it_knows() -> None:
    before = after(slow(UPLINK))
    assert decide(before, UNKNOWN).status["conditions"] == before["conditions"]
    assert reason(decide(before, QUIET), KIND) == ("False", "TransfersAsUsual")


def test_labels_are_the_reason_before_links() -> None:
    actions = decide(running(), slow(UPLINK), leaf="leaf-9")
    assert reason(actions, KIND) == ("True", "TopologyChanged")
    assert "n1 in leaf-9" in text(actions, KIND)
    assert "; transfers over the uplink of leaf leaf-1" in text(actions, KIND)


def test_one_input_does_not_clear_what_the_other_shows() -> None:
    """The status of the condition changes twice: once it becomes true, once false."""
    seen: list[tuple[str, str]] = []
    before = running()
    for links, leaf in (
        (slow(UPLINK), "leaf-1"),
        (slow(UPLINK), "leaf-9"),
        (QUIET, "leaf-9"),
        (slow(N1), "leaf-9"),
        (slow(N1), "leaf-1"),
        (QUIET, "leaf-1"),
    ):
        actions = decide(before, links, leaf=leaf)
        before = dict(actions.status)
        seen.append(reason(actions, KIND))
    assert seen == [
        ("True", "CongestedUplink"),
        ("True", "TopologyChanged"),
        ("True", "TopologyChanged"),
        ("True", "TopologyChanged"),
        ("True", "SlowNode"),
        ("False", "TransfersAsUsual"),
    ]


def test_labels_that_cannot_be_compared_leave_the_condition_as_it_is() -> None:
    changed = dict(decide(running(), slow(UPLINK), leaf="leaf-9").status)
    for links in (slow(UPLINK), QUIET):
        kept = decide(changed, links, levels=(FabricLevel("rack", "rack"), NODE))
        assert kept.status["conditions"] == changed["conditions"]
