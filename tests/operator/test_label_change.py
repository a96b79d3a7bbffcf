"""A node's topology label changes under a running job: what is written stays true. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from situations import PLACEMENT, node, pod, seen, settle, status

from llmtrain_operator.lifecycle.draft import C
from llmtrain_operator.records import NodeRecord

pytestmark = pytest.mark.unit

LEAF = "network.topology.nvidia.com/leaf"


def in_leaf(name: str, leaf: str) -> NodeRecord:
    record = node(name)
    return replace(record, node=replace(record.node, labels={LEAF: leaf}))


def test_a_running_job_keeps_the_placement_it_was_given() -> None:
    """The status says what was decided, on the labels of that time; nothing moves or restarts."""
    before = {name: in_leaf(name, "leaf-1") for name in ("n0", "n1")}
    plan, observed = settle(
        seen(status(C.PODS_READY, C.RUNNING), pods=(pod(0), pod(1)), nodes=before)
    )
    assert plan.status["placement"]["blocks"] == PLACEMENT["blocks"]
    after = replace(observed, nodes={**before, "n1": in_leaf("n1", "leaf-9")})
    changed, _ = settle(after)
    assert changed.status == plan.status
    assert not changed.create and not changed.delete and not changed.changed
