"""The links that the groups of a job cross, by the paths of its nodes.

A link is a prefix of a node's path. A shorter prefix stands for the uplinks of a domain, and the
whole path for the network interfaces of the node. Where each GPU has interfaces of its own, they
are one level below the node.

The members of a group exchange data over a ring or a tree, whose order the communication library
chooses. Any order crosses the uplinks of a domain if and only if the domain has some but not all of
the members, so the links do not depend on it. NVLink carries what stays inside a node or an NVLink
domain. The direction is not known: what leaves a domain also returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmtrain_core.layout import GROUP_LABELS, GroupLabel, GroupRanks, Layout

LinkPath = tuple[str, ...]
"""Domains from far to near; see above."""
GroupKey = tuple[GroupLabel, int]
"""Label and first rank of a group."""

MAX_REPORTED = 128
"""Groups of a label, over several nodes, whose times a job reports."""
MAX_INSIDE = 8
"""The same for groups inside a node."""


@dataclass(frozen=True, slots=True)
class Group:
    """A process group of a job and the links that it crosses."""

    label: GroupLabel
    first_rank: int
    links: frozenset[LinkPath]
    """Empty for a group inside a node or an NVLink domain."""


def crossed_links(members: Iterable[LinkPath], nvlink_depth: int) -> frozenset[LinkPath]:
    """Return the links that a group crosses.

    `members` are the paths of its ranks. Two ranks whose paths have the same first `nvlink_depth`
    names communicate over NVLink.
    """
    paths = set(members)
    everywhere = {path[:nvlink_depth] for path in paths}
    if len(everywhere) < 2:
        return frozenset()
    count: dict[LinkPath, int] = {}
    for path in paths:
        for depth in range(1, len(path) + 1):
            count[path[:depth]] = count.get(path[:depth], 0) + 1
    return frozenset(link for link, inside in count.items() if inside < len(paths))


def reported_groups(ranks: GroupRanks, world_size: int, gpus_per_node: int) -> list[range]:
    """Return the ranks of the groups of a label whose times a job reports, by first rank.

    Of more than `MAX_REPORTED` groups over several nodes these are evenly spaced ones, and likewise
    for those inside a node, which only serve as a control.
    """
    across: list[range] = []
    inside: list[range] = []
    for members in ranks.members(world_size) if ranks.size > 1 else ():
        within = members[0] // gpus_per_node == members[-1] // gpus_per_node
        (inside if within else across).append(members)
    chosen = [*_evenly_spaced(across, MAX_REPORTED), *_evenly_spaced(inside, MAX_INSIDE)]
    return sorted(chosen, key=lambda members: members[0])


def _evenly_spaced(groups: list[range], most: int) -> list[range]:
    count = min(most, len(groups))
    return [groups[index * len(groups) // count] for index in range(count)]


@dataclass(frozen=True, slots=True)
class JobRanks:
    """The ranks of a job on the nodes of its placement."""

    layout: Layout
    nodes: tuple[LinkPath, ...]
    """Paths of its nodes in order of rank block."""
    gpus_per_node: int
    nvlink_depth: int | None = None
    """Length of the path of an NVLink domain; None where NVLink ends at the node."""
    copies_per_rack: int = 1

    def reported_groups(self) -> dict[GroupKey, Group]:
        """Return the groups that a report of the job may name, with the links that they cross."""
        paths = _Paths(self.nodes, self.gpus_per_node, self.nvlink_depth)
        return {
            (label, members[0]): Group(label, members[0], paths.crossed(members))
            for label in GROUP_LABELS
            for members in reported_groups(
                self.layout.group(label, self.copies_per_rack),
                self.layout.world_size,
                self.gpus_per_node,
            )
        }


def job_groups(
    layout: Layout,
    nodes: Sequence[LinkPath],
    gpus_per_node: int,
    labels: Iterable[GroupLabel],
    *,
    nvlink_depth: int | None = None,
    own_interfaces: bool = False,
    copies_per_rack: int = 1,
) -> Iterator[Group]:
    """Yield the groups of a job with more than one rank.

    `nodes` are the paths of its nodes in order of rank block. `nvlink_depth` is the length of the
    path of an NVLink domain; None where NVLink ends at the node. With `own_interfaces` each GPU has
    network interfaces of its own.
    """
    paths = _Paths(nodes, gpus_per_node, nvlink_depth, own_interfaces=own_interfaces)
    for label in labels:
        ranks = layout.group(label, copies_per_rack)
        if ranks.size == 1:
            continue
        for members in ranks.members(layout.world_size):
            yield Group(label, members[0], paths.crossed(members))


class _Paths:
    """The paths of ranks, and the links that groups of them cross."""

    def __init__(
        self,
        nodes: Sequence[LinkPath],
        gpus_per_node: int,
        nvlink_depth: int | None,
        *,
        own_interfaces: bool = False,
    ):
        self._nodes, self._gpus_per_node = nodes, gpus_per_node
        self._nvlink_depth = len(nodes[0]) if nvlink_depth is None else nvlink_depth
        self._own_interfaces = own_interfaces
        self._known: dict[tuple[LinkPath, ...], frozenset[LinkPath]] = {}

    def crossed(self, members: Iterable[int]) -> frozenset[LinkPath]:
        """Return the links that a group of these ranks crosses."""
        paths = tuple(map(self._path, members))
        if paths not in self._known:
            self._known[paths] = crossed_links(paths, self._nvlink_depth)
        return self._known[paths]

    def _path(self, rank: int) -> LinkPath:
        node, gpu = divmod(rank, self._gpus_per_node)
        return (*self._nodes[node], f"gpu{gpu}") if self._own_interfaces else self._nodes[node]
