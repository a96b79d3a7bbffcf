"""Which findings about nodes have an effect, kept up to date with the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmtrain_core.node_health import (
    DEFAULT_TABLE,
    ExclusionLimit,
    HealthFinding,
    HealthTable,
    nodes_in_force,
)
from llmtrain_core.queueing.quarantine import MAX_EXCLUDED_PERCENT
from llmtrain_core.topology.inventory import Node
from llmtrain_core.topology.node_limit import devices_of, has_bounded_findings, without_effect
from llmtrain_operator.cache.job import Raw
from llmtrain_operator.cache.records import NodeRecord, node_record


class NodeHealth:
    """The limit on the nodes that jobs avoid: beyond it, findings have no effect."""

    def __init__(
        self, table: HealthTable = DEFAULT_TABLE, max_percent: float = MAX_EXCLUDED_PERCENT
    ):
        """At most `max_percent` of the nodes are avoided, of all and of each kind."""
        self._table = table
        self._max_percent = max_percent
        self._kinds: dict[str, frozenset[str]] = {}
        self._found: dict[str, Sequence[HealthFinding]] = {}
        self._beyond: frozenset[str] | None = frozenset()
        """Nodes whose findings have no effect; None if they must be computed."""

    def read(self, raw: Raw) -> NodeRecord:
        """Read a Node object, with what the table finds on it."""
        return node_record(raw, self._table)

    def change(self, old: NodeRecord | None, new: NodeRecord | None) -> None:
        """Follow a change of a node."""
        record = new or old
        assert record is not None
        name = record.node.name
        kind = None if new is None else devices_of(new.node)
        found = new.node.health if new is not None and has_bounded_findings(new.node) else ()
        if kind == self._kinds.get(name) and found == self._found.get(name, ()):
            return
        self._kinds.pop(name, None)
        self._found.pop(name, None)
        if kind is not None:
            self._kinds[name] = kind
        if found:
            self._found[name] = found
        self._beyond = None

    @property
    def beyond(self) -> frozenset[str]:
        """The nodes whose findings have no effect, because too many nodes have some."""
        if self._beyond is None:
            kept = frozenset[str]()
            if self._found:
                limit = ExclusionLimit(self._kinds, self._max_percent)
                kept = nodes_in_force(self._found, limit)
            self._beyond = frozenset(self._found.keys() - kept)
        return self._beyond

    def node(self, node: Node) -> Node:
        """Return a node with the findings that have an effect."""
        return without_effect(node) if node.health and node.name in self.beyond else node

    def record(self, record: NodeRecord) -> NodeRecord:
        """Return a record of a node with the findings that have an effect."""
        node = self.node(record.node)
        return record if node is record.node else replace(record, node=node)
