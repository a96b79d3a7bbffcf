"""The findings that have an effect follow the nodes as they come, change and go. Pure."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llmtrain_core.node_health import HealthTable, changed_rows, read_changes
from llmtrain_core.topology.node_limit import within_limit
from llmtrain_operator.cache.node_health import NodeHealth
from llmtrain_operator.cache.records import NodeRecord, node_record

pytestmark = pytest.mark.unit

READY = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def record(
    name: str, minute: int = -1, gpus: int = 8, table: HealthTable | None = None
) -> NodeRecord:
    """A node, and since which minute of an hour its GPU has been missing."""
    bad = {
        "type": "GPUMissing",
        "status": "True" if minute >= 0 else "False",
        "lastTransitionTime": f"2026-01-01T01:{max(0, minute):02}:00Z",
    }
    amounts = {"cpu": "8", "nvidia.com/gpu": str(gpus)}
    raw: dict[str, Any] = {
        "metadata": {"name": name},
        "status": {"conditions": [READY, bad], "allocatable": amounts, "capacity": amounts},
    }
    return node_record(raw) if table is None else node_record(raw, table)


def test_beyond_the_limit_the_oldest_finding_has_no_effect() -> None:
    health, names = NodeHealth(max_percent=10.0), [f"n{index:02}" for index in range(20)]
    for name in names:
        health.change(None, record(name))
    found = {name: record(name, minute) for minute, name in enumerate(names[:3])}
    for name, new in found.items():
        health.change(record(name), new)
    assert health.beyond == {"n00"}
    first, last = health.record(found["n00"]), health.record(found["n02"])
    assert not first.node.avoided and first.node.health and first.since == found["n00"].since
    assert last is found["n02"] and last.node.avoided
    health.change(found["n02"], None)
    assert health.beyond == {"n00"}, "19 nodes, of which one is avoided"


def test_the_result_is_that_of_all_nodes_at_once() -> None:
    rng, health = random.Random(4), NodeHealth(max_percent=20.0)
    known: dict[str, NodeRecord] = {}
    for _ in range(300):
        name = f"n{rng.randrange(25)}"
        gone = rng.random() < 0.2
        new = None if gone else record(name, rng.randrange(-20, 20), rng.choice([0, 8]))
        if new is None and name not in known:
            continue
        health.change(known.get(name), new)
        known.pop(name, None)
        if new is not None:
            known[name] = new
        expected = within_limit([found.node for found in known.values()], 20.0)
        assert [health.node(found.node) for found in known.values()] == [*expected]


def test_a_row_of_the_configuration_is_found() -> None:
    changes = read_changes([{"name": "aks/GPUMissing", "strength": "off"}])
    table = HealthTable(changed_rows(changes))
    assert record("n", 1).node.avoided and not record("n", 1, table=table).node.health
