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

from llmtrain_core.layout import GroupLabel, Layout

LinkPath = tuple[str, ...]
"""Domains from far to near; see above."""


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
    depth = len(nodes[0]) if nvlink_depth is None else nvlink_depth
    for label in labels:
        ranks = layout.group(label, copies_per_rack)
        if ranks.size == 1:
            continue
        known: dict[tuple[LinkPath, ...], frozenset[LinkPath]] = {}
        for members in ranks.members(layout.world_size):
            paths = tuple(
                (*nodes[rank // gpus_per_node], f"gpu{rank % gpus_per_node}")
                if own_interfaces
                else nodes[rank // gpus_per_node]
                for rank in members
            )
            if paths not in known:
                known[paths] = crossed_links(paths, depth)
            yield Group(label, members[0], known[paths])
