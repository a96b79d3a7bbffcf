"""How long a collective takes on the links between its ranks.

A group of n ranks has g of them behind each fast domain (NVLink) and n / g domains. A ring moves (n
- 1) / n of the payload over the fast links; (n/g - 1) / (n/g) of it enters each domain, over the g
network interfaces of the group's own ranks there. The slower of the two sets the pace, since rings
are pipelined (Patarasuk and Yuan, 2009; nccl-tests, doc/PERFORMANCE.md). An all-reduce moves
everything twice. On a placement, the interfaces share uplinks: `oversubscription` divides their
rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, log2

from llmtrain_core.layout import KIND_LABELS, GroupKind, Layout
from llmtrain_core.plan.gradient_sync import EXACT_SYNC, SyncScheme
from llmtrain_core.plan.hardware import Accelerator
from llmtrain_core.plan.network.communication import Group, Operation
from llmtrain_core.topology.levels import Levels

LINK_LATENCY = 3.4e-6
NETWORK_LATENCY = 9.6e-6
"""Seconds per hop, protocol Simple (NCCL, src/graph/tuning.cc: NVLink and network)."""

_WHOLE: Mapping[GroupKind, GroupKind] = {"expert": "data", "expertData": "data"}
"""Groups that lie inside another: they cross where it does, if `crossings` do not count them."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where the ranks of a group sit."""

    ranks: int
    per_domain: int
    """Ranks behind one fast domain."""

    @property
    def domains(self) -> int:
        """Fast domains that the group touches."""
        return ceil(self.ranks / self.per_domain)


@dataclass(frozen=True, slots=True)
class Network:
    """The links of one kind of GPU under one layout, and what a placement does to them."""

    hardware: Accelerator
    layout: Layout
    link_efficiency: float
    nic_efficiency: float
    oversubscription: Mapping[Group, float] = field(default_factory=dict)
    """By what the rate of a group's interfaces is divided, where it crosses tight uplinks."""
    sync: SyncScheme = EXACT_SYNC
    """How copies are kept alike: which of them share a rack."""

    def span(self, group: Group) -> Span:
        """Return where a group's ranks sit when rank blocks fill domains in natural order."""
        ranks = self.layout.group(group, self.sync.replicas_per_rack)
        most = max(1, int(self.hardware.domain.value) // ranks.stride)
        return Span(ranks.size, min(ranks.size, most))

    def seconds(self, group: Group, operation: Operation, payload: float, calls: int = 1) -> float:
        """Return the time of `calls` collectives that carry `payload` bytes together."""
        span = self.span(group)
        if span.ranks == 1 or not payload:
            return 0.0
        fast = self.hardware.link.value * self.link_efficiency
        slow = self.hardware.nic.value * self.nic_efficiency / self._slowed(group)
        if operation in {"send", "recv"}:
            rate, latency = (slow, NETWORK_LATENCY) if span.domains > 1 else (fast, LINK_LATENCY)
            return payload / rate + calls * latency
        times = 2 if operation == "all_reduce" else 1
        inside = payload * (span.ranks - 1) / span.ranks / fast if span.per_domain > 1 else 0.0
        across = payload * (span.domains - 1) / span.domains / (slow * span.per_domain)
        if group == "ep":  # every rank through its own interface
            across *= span.per_domain
        hops = LINK_LATENCY * (span.per_domain - 1) + NETWORK_LATENCY * log2(span.domains)
        return times * (max(inside, across) + calls * hops)

    def _slowed(self, group: Group) -> float:
        """Return by what uplinks divide the rate; copies of one rack do not meet them."""
        if group == "rep-near":
            return 1.0
        return self.oversubscription.get("rep" if group == "rep-far" else group, 1.0)


def uplink_shares(crossings: Mapping[str, Mapping[str, int]], levels: Levels) -> dict[Group, float]:
    """Return by how much each group's interfaces are slowed by uplinks that its ranks cross.

    `crossings` are a placement's: groups that span several domains, by level and kind of group.

    A group that stays inside the domains of a level does not use that level's uplinks. One that
    crosses them shares what oversubscription left, in the worst case where all nodes do the same.
    """
    slowed: dict[Group, float] = {}
    for level in levels[:-1]:
        crossed = crossings.get(level.name, {})
        for kind, group in KIND_LABELS.items():
            if crossed.get(kind, crossed.get(_WHOLE.get(kind, kind), 0)):
                slowed[group] = slowed.get(group, 1.0) * level.oversubscription
    return slowed
