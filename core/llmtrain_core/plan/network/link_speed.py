"""Time of collectives on the links between their ranks.

A group of n ranks has g of them behind each fast domain (NVLink) and n / g domains. A ring moves (n
- 1) / n of the payload over the fast links; (n/g - 1) / (n/g) of it enters each domain, over the g
network interfaces of the group's own ranks there. The slower of the two is the time, because
rings are pipelined (Patarasuk and Yuan, 2009; nccl-tests, doc/PERFORMANCE.md). An all-reduce moves
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
from llmtrain_core.plan.network.communication import (
    POINT_TO_POINT,
    CommunicationVolumes,
    Group,
    Operation,
)
from llmtrain_core.topology.levels import Levels

CallSeconds = Mapping[tuple[Group, Operation], float]
"""Seconds of each kind of collective in one step."""

LINK_LATENCY = 3.4e-6
NETWORK_LATENCY = 9.6e-6
"""Seconds per hop, protocol Simple (NCCL, src/graph/tuning.cc: NVLink and network)."""

_WHOLE: Mapping[GroupKind, GroupKind] = {"expert": "data", "expertData": "data"}
"""Groups that lie inside another: they cross where it does, if `crossings` do not count them."""


@dataclass(frozen=True, slots=True)
class GroupSpan:
    """Distribution of the ranks of a group over NVLink domains."""

    ranks: int
    per_domain: int
    """Ranks in one NVLink domain."""

    @property
    def domains(self) -> int:
        """Number of NVLink domains of the group."""
        return ceil(self.ranks / self.per_domain)


@dataclass(frozen=True, slots=True)
class CollectiveCostModel:
    """Links of one GPU type in one layout, with the slowdown by a placement."""

    hardware: Accelerator
    layout: Layout
    link_efficiency: float
    nic_efficiency: float
    oversubscription: Mapping[Group, float] = field(default_factory=dict)
    """Divisor of the interface bandwidth of a group that crosses oversubscribed uplinks."""
    sync: SyncScheme = EXACT_SYNC
    """Synchronization of model replicas."""

    def span(self, group: Group) -> GroupSpan:
        """Return the distribution of a group if rank blocks fill domains in order."""
        ranks = self.layout.group(group, self.sync.replicas_per_rack)
        most = max(1, int(self.hardware.domain.value) // ranks.stride)
        return GroupSpan(ranks.size, min(ranks.size, most))

    def call_seconds(self, volumes: CommunicationVolumes) -> CallSeconds:
        """Return the time of each kind of collective."""
        return {
            (group, operation): self.seconds(group, operation, calls.nbytes, calls.count)
            for (group, operation), calls in volumes.items()
        }

    def seconds(self, group: Group, operation: Operation, payload: float, calls: int = 1) -> float:
        """Return the time of `calls` collectives that carry `payload` bytes together."""
        span = self.span(group)
        if span.ranks == 1 or not payload:
            return 0.0
        fast = self.hardware.link.value * self.link_efficiency
        slow = self.hardware.nic.value * self.nic_efficiency / self._slowed(group)
        if operation in POINT_TO_POINT:
            rate, latency = (slow, NETWORK_LATENCY) if span.domains > 1 else (fast, LINK_LATENCY)
            return payload / rate + calls * latency
        times = 2 if operation == "all_reduce" else 1
        inside = payload * (span.ranks - 1) / span.ranks / fast if span.per_domain > 1 else 0.0
        across = payload * (span.domains - 1) / span.domains / (slow * span.per_domain)
        if group == "ep":  # each rank uses its own interface
            across *= span.per_domain
        hops = LINK_LATENCY * (span.per_domain - 1) + NETWORK_LATENCY * log2(span.domains)
        return times * (max(inside, across) + calls * hops)

    def _slowed(self, group: Group) -> float:
        """Return the uplink slowdown of a group; replicas of one rack do not use uplinks."""
        if group == "rep-near":
            return 1.0
        return self.oversubscription.get("rep" if group == "rep-far" else group, 1.0)


def uplink_slowdowns(
    crossings: Mapping[str, Mapping[str, int]], levels: Levels
) -> dict[Group, float]:
    """Return the slowdown of each group by the uplinks that its ranks cross.

    `crossings` are the numbers of groups that span several domains, by level and kind of group.

    A group that stays inside the domains of a level does not use that level's uplinks. A group
    that crosses them is slowed by the oversubscription, the worst case in which all nodes do so.
    """
    slowed: dict[Group, float] = {}
    for level in levels[:-1]:
        crossed = crossings.get(level.name, {})
        for kind, group in KIND_LABELS.items():
            if crossed.get(kind, crossed.get(_WHOLE.get(kind, kind), 0)):
                slowed[group] = slowed.get(group, 1.0) * level.oversubscription
    return slowed
