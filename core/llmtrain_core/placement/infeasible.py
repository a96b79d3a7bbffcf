"""Explain why a job does not fit, level by level, and which nodes it waits for."""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain_core.api.conditions import Reason
from llmtrain_core.placement.blockers import Blockers, blockers_of
from llmtrain_core.placement.capacity import CapacityTree
from llmtrain_core.placement.filter import IN_USE, WITHHELD, FilterResult, lack_text
from llmtrain_core.placement.tree import Tree
from llmtrain_core.placement.types import Request, Unplaceable
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.topology.resources import amount_text

MAX_NAMES = 6
MAX_DOMAINS = 4
"""Names that a message shows at most, so that large clusters do not fill it."""


def unknown_level(request: Request, snapshot: Snapshot) -> Unplaceable | None:
    """Return the error for a level that the fabric does not have, or None."""
    names = [level.name for level in snapshot.levels]
    asked = {
        "require": request.require,
        "prefer": request.prefer,
        "tensorWithin": request.tensor_within,
    }
    for field, level in asked.items():
        if level is not None and level not in names:
            message = (
                f"spec.topology.{field}: the fabric has no level {level!r}; use one of "
                + ", ".join(names)
            )
            return Unplaceable(Reason.UNKNOWN_LEVEL, message, {}, {})
    return None


def explain_infeasible(
    request: Request, snapshot: Snapshot, tree: Tree, filtered: FilterResult, capacity: CapacityTree
) -> Unplaceable:
    """Return what is short, and which nodes would have to become free."""
    names = [level.name for level in tree.levels]
    free = {
        name: {"/".join(domain.path): domain.free for domain in capacity.at(depth + 1)}
        for depth, name in enumerate(names[:-1])
    }
    refused = filtered.counts()
    blockers = blockers_of(request, snapshot, tree, filtered)
    reason, text = _short(request, names, filtered, capacity, blockers)
    counts = [f"{name}: {_top(domains)}" for name, domains in free.items() if domains]
    left = [f"{count} {cause}" for cause, count in sorted(refused.items())]
    helps = "" if blockers is None else _blockers_text(blockers)
    parts = [
        text,
        *([helps] if helps else []),
        *(["free by " + ", by ".join(counts)] if counts else []),
        *(["left out: " + ", ".join(left)] if left else []),
    ]
    named = () if blockers is None else tuple(node for node, _ in blockers.nodes)
    return Unplaceable(reason, "; ".join(parts), free, refused, named)


def _short(
    request: Request,
    names: list[str],
    filtered: FilterResult,
    capacity: CapacityTree,
    blockers: Blockers | None,
) -> tuple[Reason, str]:
    """Return the reason and the text: one domain is too small, or GPUs or nodes are short."""
    want = request.nodes + request.spares
    nodes = f"{request.nodes} nodes" + (f" and {request.spares} spares" if request.spares else "")
    block = _block(request, filtered)
    have = capacity.root.free
    total = have + len(filtered.refused)
    busy = sum(
        causes[0].endswith(IN_USE) or causes[0] == WITHHELD for _, causes in filtered.refused
    )
    if have >= want and request.require is not None:
        depth = names.index(request.require) + 1
        within = [domain.fits for domain in capacity.at(depth)] if depth < len(names) else [1]
        largest = max(within, default=0)
        return Reason.DOMAIN_TOO_SMALL, (
            f"needs {nodes} with {block} free in one {request.require}"
            f"{_for_tensor_groups(request, capacity)}; {_largest(request, capacity, largest)},"
            f" {have} are free in total" + _for_spares(request, largest)
        )
    if have >= want:
        return Reason.DOMAIN_TOO_SMALL, (
            f"needs {nodes} with {block} free{_for_tensor_groups(request, capacity)};"
            f" {capacity.root.fits} fit"
        )
    if request.network is not None and request.network.network is None and request.network.excluded:
        return Reason.NETWORK_MISMATCH, (
            f"spec.network.profile: no node that could hold {block} has the network of the job"
        )
    if blockers is None and (short := _nodes_without_devices(request, filtered)):
        return Reason.INSUFFICIENT_DEVICES, (
            f"spec.workers.deviceClaims: needs {nodes} with {block}; {total - short} of {total}"
            " have them in their ResourceSlices"
        )
    if not have + busy:
        return Reason.NO_MATCHING_NODES, (
            f"needs {nodes} with {block}; no node of the cluster qualifies"
        )
    busy_only = blockers is not None and blockers.busy
    reason = Reason.INSUFFICIENT_GPUS if busy_only else Reason.INSUFFICIENT_NODES
    spares = _for_spares(request, have)
    return reason, f"needs {nodes} with {block} free; {have} of {total} have them{spares}"


def _nodes_without_devices(request: Request, filtered: FilterResult) -> int:
    """Return the number of nodes whose only fault is that they have too few devices to claim."""
    faults = {lack_text(name, request.needs[name], total=0) for name in request.claims}
    return sum(faults.issuperset(causes) for _, causes in filtered.refused)


def _for_tensor_groups(request: Request, capacity: CapacityTree) -> str:
    """Return where the nodes of a tensor group must be, if it has several."""
    if capacity.group == 1:
        return ""
    return f", {capacity.group} at a time in one {request.tensor_within} for each tensor group"


def _largest(request: Request, capacity: CapacityTree, fits: int) -> str:
    """Return what the largest domain of the required level holds: nodes, or tensor groups."""
    if capacity.group == 1:
        return f"the {request.require} with the most free nodes has {fits}"
    groups, wanted = fits // capacity.group, request.nodes // capacity.group
    most = f"more than {groups} of the {wanted} tensor groups" if groups else "a tensor group"
    return f"no {request.require} holds {most}"


def _block(request: Request, filtered: FilterResult) -> str:
    """Return what a node must have free: the GPUs, and whatever else some node lacks."""
    causes = {cause for _, found in filtered.refused for cause in found}
    lacked = {word for cause in causes for word in cause.split()}
    others = [f"{amount_text(n, a)} {n}" for n, a in request.extra.items() if n in lacked]
    return " and ".join([f"{request.gpus_per_node} {request.gpu_resource}", *others])


def _for_spares(request: Request, have: int) -> str:
    """Return a note if the nodes suffice for the job but not for its spares."""
    short = request.nodes + request.spares - have
    if not request.spares or have < request.nodes or short <= 0:
        return ""
    return f": enough for the job, {short} short for its spares (spec.topology.spares)"


def _blockers_text(blockers: Blockers) -> str:
    """Return the nodes that the job waits for, by cause."""
    by_cause: dict[str, list[str]] = {}
    for node, cause in blockers.nodes:
        by_cause.setdefault(cause, []).append(node)
    parts = []
    for cause, nodes in by_cause.items():
        more = len(nodes) - MAX_NAMES
        shown = " ".join(nodes[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
        parts.append(f"{shown} ({cause})")
    where = f" in {blockers.where}" if blockers.where else ""
    return f"it fits{where} when these nodes become available: " + ", ".join(parts)


def _top(domains: Mapping[str, int]) -> str:
    """Return the domains with the most free nodes."""
    ranked = sorted(domains.items(), key=lambda item: (-item[1], item[0]))
    shown = " ".join(f"{name.rsplit('/', 1)[-1]}={n}" for name, n in ranked[:MAX_DOMAINS])
    more = len(ranked) - MAX_DOMAINS
    return shown + (f" and {more} more" if more > 0 else "")
