"""A node is lost by what the operator has seen of it, whatever other clocks show. Pure."""

from __future__ import annotations

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_operator.cache.records import NodeRecord
from llmtrain_operator.cache.unready_nodes import UnreadyNodes
from tests.support.operator_harness.observed import (
    ago,
    failed,
    make_observed,
    node,
    pod,
    reason,
    settle,
    status,
)

pytestmark = pytest.mark.unit

SKEWS = pytest.mark.parametrize("skew", [-120, 0, 120], ids="{:+d} s".format)
"""How many seconds the clock of the operator is ahead of those of the other machines."""


class Watched:
    """A node, as an operator with a clock of its own sees it."""

    def __init__(self, skew: float = 0):
        self.skew = skew
        self.time = 1000.0
        self.nodes = UnreadyNodes(lambda: self.time)
        self.record: NodeRecord | None = None

    def becomes(self, ready: bool) -> None:
        """A transition of the readiness, with a time of the cluster's clock."""
        new = node("n1", ready=ready, since=self.skew)
        self.nodes.change(self.record, new)
        self.record = new

    def lost(self) -> list[str]:
        """Reasons of the failures of a running job that has the node."""
        assert self.record is not None
        observed = make_observed(
            status(ConditionType.RUNNING),
            pods=(pod(0), pod(1)),
            nodes={"n0": node("n0"), "n1": self.record},
            unready_seconds={"n1": self.nodes.seconds("n1")},
        )
        actions, _ = settle(observed)
        return [failure["reason"] for failure in actions.status.get("failures", ())]


@SKEWS
def test_a_difference_of_clocks_loses_no_node(skew: int) -> None:
    watched = Watched(skew)
    watched.becomes(ready=True)
    watched.becomes(ready=False)
    watched.time += 29
    assert watched.lost() == []
    watched.time += 2
    assert watched.lost() == ["NodeLost"]


def test_each_transition_starts_the_time_again() -> None:
    watched = Watched()
    watched.becomes(ready=False)
    watched.time += 29
    watched.becomes(ready=True)
    assert watched.nodes.seconds("n1") == 0
    watched.becomes(ready=False)
    watched.time += 29
    # A list shows that it was ready meanwhile, by another time of the transition.
    missed = node("n1", ready=False, since=7)
    watched.nodes.change(watched.record, missed)
    watched.time += 1
    assert watched.nodes.seconds("n1") == 1
    watched.nodes.change(missed, node("n1", ready=False, since=7, cordoned=True))
    assert watched.nodes.seconds("n1") == 1, "a change of something else"
    watched.nodes.change(missed, None)
    assert watched.nodes.seconds("n1") == 0


@SKEWS
def test_a_difference_of_clocks_does_not_shorten_the_wait_for_the_first_cause(skew: int) -> None:
    lost_its_peer = failed(1, 200, finished=ago(skew))
    running, pods = status(ConditionType.RUNNING), (pod(0), lost_its_peer)
    waits, _ = settle(make_observed(running, pods=pods, seconds_since_failure=1.0))
    assert not waits.status.get("failures")
    assert waits.reconcile_after is not None and waits.reconcile_after <= 59
    over, _ = settle(make_observed(running, pods=pods, seconds_since_failure=61.0))
    assert reason(over, ConditionType.RESTARTING) == ("True", "GangRestart")
