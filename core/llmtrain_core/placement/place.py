"""Leaf-first gang placement.

The nearest domain that holds the whole gang wins (best fit: the one with the least room left over);
where none does, the search goes one level farther and fills the domains there with the most room
first, so that the gang spans the fewest. Nodes keep the natural order of their path, so consecutive
rank blocks sit in the same leaf and a ring crosses each leaf's uplink once per direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from llmtrain_core.api.conditions import Reason
from llmtrain_core.layout import DIMENSIONS, Layout
from llmtrain_core.placement.types import PlacedNode, Placement, Request, Unplaceable
from llmtrain_core.topology.inventory import Node, Snapshot, tolerates

Path = tuple[str, ...]


def place(request: Request, snapshot: Snapshot) -> Placement | Unplaceable:
    """Choose a node for every block of ranks, or say why there is no room.

    Deterministic: the same request and snapshot give the same answer, whatever the order of nodes.
    """
    unknown = _unknown_level(request, snapshot)
    if unknown is not None:
        return unknown
    usable, refused = _usable(request, snapshot)
    paths = sorted((snapshot.path(node) for node in usable), key=_natural)
    chosen = _choose(request, snapshot, paths)
    if chosen is None:
        return _explain_no(request, snapshot, paths, refused)
    return describe(request.layout, request.gpus_per_node, snapshot, chosen)


def eligible(request: Request, snapshot: Snapshot) -> frozenset[str]:
    """Names of the nodes that could hold a block if nothing ran on them."""
    empty = replace(snapshot, used={})
    return frozenset(node.name for node in _usable(request, empty)[0])


def describe(
    layout: Layout, gpus_per_node: int, snapshot: Snapshot, paths: Sequence[Path]
) -> Placement:
    """Turn node paths in order of rank block into a placement with its figures."""
    names = [level.name for level in snapshot.levels]
    blocks = [
        tuple(range(index * gpus_per_node, (index + 1) * gpus_per_node))
        for index in range(len(paths))
    ]
    domains = {name: len({path[: depth + 1] for path in paths}) for depth, name in enumerate(names)}
    nodes_of = _nodes_of_groups(layout, gpus_per_node)
    crossings = {
        name: _crossings(nodes_of, [path[: depth + 1] for path in paths])
        for depth, name in enumerate(names)
    }
    return Placement(
        nodes=tuple(
            PlacedNode(path[-1], ranks, dict(zip(names, path, strict=True)))
            for path, ranks in zip(paths, blocks, strict=True)
        ),
        domains=domains,
        crossings=crossings,
        explanation=_sentence(layout, domains, crossings),
    )


def _unknown_level(request: Request, snapshot: Snapshot) -> Unplaceable | None:
    names = [level.name for level in snapshot.levels]
    for field, level in (("require", request.require), ("prefer", request.prefer)):
        if level is not None and level not in names:
            message = (
                f"spec.topology.{field}: the fabric has no level {level!r}; use one of "
                + ", ".join(names)
            )
            return Unplaceable(Reason.UNKNOWN_LEVEL, message, {}, {})
    return None


def _usable(request: Request, snapshot: Snapshot) -> tuple[list[Node], dict[str, int]]:
    usable: list[Node] = []
    refused: dict[str, int] = {}
    for node in snapshot.nodes:
        reason = _refusal(request, snapshot, node)
        if reason is None:
            usable.append(node)
        else:
            refused[reason] = refused.get(reason, 0) + 1
    return usable, refused


def _refusal(request: Request, snapshot: Snapshot, node: Node) -> str | None:
    """Why one node cannot hold a block; None when it can.

    The state of the node comes before its taints, which only repeat it (a cordoned node is tainted
    as unschedulable).
    """
    wanted = {request.gpu_resource: request.gpus_per_node, **request.extra}
    if any(node.labels.get(key) != value for key, value in request.node_selector.items()):
        return "node selector does not match"
    if node.name in request.excluded:
        return "excluded by the job"
    if not node.ready:
        return "not ready"
    if node.cordoned:
        return "cordoned"
    if not tolerates(node, request.tolerations):
        return "taint not tolerated"
    for resource, amount in wanted.items():
        if node.allocatable.get(resource, 0) < amount:
            return f"has fewer than {amount} {resource}"
    for resource, amount in wanted.items():
        if snapshot.free(node, resource) < amount:
            return f"{resource} in use"
    return None


def _choose(request: Request, snapshot: Snapshot, paths: Sequence[Path]) -> list[Path] | None:
    """Pick node paths: the nearest level with a domain that holds the gang, best fit there."""
    names = [level.name for level in snapshot.levels]
    farthest = 0 if request.require is None else names.index(request.require) + 1
    for depth in range(len(names), farthest - 1, -1):
        fitting = [
            members
            for members in _by_prefix(paths, depth).values()
            if len(members) >= request.nodes
        ]
        if fitting:
            best = min(fitting, key=lambda members: (len(members), _natural(members[0])))
            return _fill(best, request.nodes, depth + 1, len(names))
    return None


def _fill(members: Sequence[Path], count: int, depth: int, levels: int) -> list[Path]:
    """Take `count` nodes of one domain, touching as few of its sub-domains as possible.

    Sub-domains with the most room go first; the last one is the tightest that still fits, and the
    choice inside it is made the same way one level nearer.
    """
    if count == len(members) or depth >= levels:
        return list(members[:count])
    chosen: list[Path] = []
    rest = sorted(_by_prefix(members, depth).values(), key=lambda m: (-len(m), _natural(m[0])))
    while len(chosen) < count:
        missing = count - len(chosen)
        last = [m for m in rest if len(m) >= missing]
        domain = min(last, key=lambda m: (len(m), _natural(m[0]))) if last else rest[0]
        rest.remove(domain)
        chosen += _fill(domain, min(missing, len(domain)), depth + 1, levels)
    return sorted(chosen, key=_natural)


def _by_prefix(paths: Iterable[Path], depth: int) -> dict[Path, list[Path]]:
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        groups.setdefault(path[:depth], []).append(path)
    return groups


def _natural(path: Path) -> tuple[list[list[tuple[int, int, str]]], Path]:
    """Sort key under which node-2 comes before node-10; the path parts node-1 from node-01."""
    return [
        [
            (0, int(piece), "") if piece.isdecimal() else (1, 0, piece)
            for piece in re.split(r"(\d+)", part)
            if piece
        ]
        for part in path
    ], path


def _nodes_of_groups(layout: Layout, gpus_per_node: int) -> dict[str, list[set[int]]]:
    """Return the node blocks that each group of each kind spans."""
    return {
        kind: [{rank // gpus_per_node for rank in group} for group in layout.groups(kind)]
        for kind in DIMENSIONS
        if layout.degree(kind) > 1
    }


def _crossings(nodes_of: Mapping[str, list[set[int]]], domains: Sequence[Path]) -> dict[str, int]:
    """Count the groups of each kind whose ranks sit in more than one domain."""
    return {
        kind: sum(len({domains[node] for node in nodes}) > 1 for nodes in groups)
        for kind, groups in nodes_of.items()
    }


def _sentence(
    layout: Layout, domains: Mapping[str, int], crossings: Mapping[str, Mapping[str, int]]
) -> str:
    near_to_far = list(reversed(list(domains)))
    used = ", ".join(_count(domains[name], name) for name in near_to_far)
    parts = [f"{layout.world_size} ranks ({layout}) on {used}"]
    for name in near_to_far:
        crossing = [f"{count} {kind}" for kind, count in crossings[name].items() if count]
        if crossing:
            parts.append(f"groups across {name} domains: " + ", ".join(crossing))
    return "; ".join(parts)


def _count(count: int, level: str) -> str:
    noun = "node" if level == "node" else f"{level} domain"
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _explain_no(
    request: Request, snapshot: Snapshot, paths: Sequence[Path], refused: Mapping[str, int]
) -> Unplaceable:
    names = [level.name for level in snapshot.levels]
    free = {
        name: {
            "/".join(prefix): len(members)
            for prefix, members in _by_prefix(paths, depth + 1).items()
        }
        for depth, name in enumerate(names[:-1])
    }
    block = f"{request.gpus_per_node} {request.gpu_resource}"
    have, want = len(paths), request.nodes
    ever = have + sum(count for cause, count in refused.items() if cause.endswith("in use"))
    if have >= want and request.require is not None:
        reason = Reason.DOMAIN_TOO_SMALL
        domains = _by_prefix(paths, names.index(request.require) + 1).values()
        largest = max((len(members) for members in domains), default=0)
        text = (
            f"needs {want} nodes with {block} free in one {request.require};"
            f" the {request.require} with most room has {largest}, {have} are free in all"
        )
    elif not snapshot.nodes or not ever:
        reason = Reason.NO_MATCHING_NODES
        text = f"needs {want} nodes with {block}; no node of the cluster qualifies"
    else:
        reason = Reason.INSUFFICIENT_GPUS if ever >= want else Reason.INSUFFICIENT_NODES
        text = f"needs {want} nodes with {block} free; {have} of {len(snapshot.nodes)} have them"
    counts = [f"{name}: {_top(domains)}" for name, domains in free.items() if domains]
    left = [f"{count} {cause}" for cause, count in sorted(refused.items())]
    message = "; ".join([text, *(["free by " + ", by ".join(counts)] if counts else []),
                         *(["left out: " + ", ".join(left)] if left else [])])  # fmt: skip
    return Unplaceable(reason, message, free, dict(refused))


def _top(domains: Mapping[str, int], limit: int = 4) -> str:
    """Show the domains with most room; a cluster of hundreds must not fill the message."""
    ranked = sorted(domains.items(), key=lambda item: (-item[1], item[0]))
    shown = " ".join(f"{name.rsplit('/', 1)[-1]}={count}" for name, count in ranked[:limit])
    return shown + (f" and {len(ranked) - limit} more" if len(ranked) > limit else "")
