"""Explain a placement: statistics and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from llmtrain_core.layout import KIND_LABELS, Layout
from llmtrain_core.placement.candidate import PlacementCandidate, limit_of
from llmtrain_core.placement.capacity import CapacityTree
from llmtrain_core.placement.cost import TIE, CostModel
from llmtrain_core.placement.traffic.graph import groups_of_blocks
from llmtrain_core.placement.tree import Path, natural
from llmtrain_core.placement.types import Alternative, PlacementCost, Request


def crossings_of(
    layout: Layout, gpus_per_node: int, names: Sequence[str], paths: Sequence[Path]
) -> dict[str, dict[str, int]]:
    """Count the groups of each kind whose ranks are in more than one domain, by level."""
    groups = {
        kind: groups_of_blocks(layout, gpus_per_node, label)
        for kind, label in KIND_LABELS.items()
        if layout.group(label).size > 1
    }
    found: dict[str, dict[str, int]] = {}
    for depth, name in enumerate(names):
        prefixes = [path[: depth + 1] for path in paths]
        found[name] = {
            str(kind): sum(
                times
                for blocks, times in members.items()
                if any(prefixes[block] != prefixes[blocks[0]] for block in blocks)
            )
            for kind, members in groups.items()
        }
    return found


def sentence(
    layout: Layout, domains: Mapping[str, int], crossings: Mapping[str, Mapping[str, int]]
) -> str:
    """Return one sentence: the domains of a job, and its groups that span several domains."""
    near_to_far = list(reversed(list(domains)))
    used = ", ".join(count_of(domains[name], name) for name in near_to_far)
    parts = [f"{layout.world_size} ranks ({layout}) on {used}"]
    for name in near_to_far:
        crossing = [f"{count} {kind}" for kind, count in crossings[name].items() if count]
        if crossing:
            parts.append(f"groups across {name} domains: " + ", ".join(crossing))
    return "; ".join(parts)


def count_of(count: int, level: str) -> str:
    """Format a number of domains of a level."""
    noun = "node" if level == "node" else f"{level} domain"
    return f"{count} {noun}" + ("" if count == 1 else "s")


def reasons_of(
    request: Request,
    cost_model: CostModel,
    capacity: CapacityTree,
    method: str,
    paths: Sequence[Path],
    cost: PlacementCost,
    max_depth: int,
) -> tuple[str, ...]:
    """Return the domain, the cost and the bottlenecks of the placement, as sentences."""
    names = [level.name for level in cost_model.tree.levels]
    ideal = "one nearest domain" if cost_model.tree.nvlink_depth is None else "unlimited uplinks"
    spread = len({path[:-1] for path in paths}) > 1
    return (
        *_extent(request, capacity, names, paths),
        *([f"order of ranks: {method}"] if spread else []),
        f"exposed communication: {seconds(cost.seconds)} per step,"
        f" {cost.slowdown:.2f} times that of {ideal}"
        + "".join(f"; {kind} {seconds(time)}" for kind, time in cost.by_group.items() if time),
        *_busiest_links(cost_model, names, paths),
        *(_tolerance(request) if spread else ()),
        *_notes(request, names, max_depth),
    )


def _extent(
    request: Request, capacity: CapacityTree, names: Sequence[str], paths: Sequence[Path]
) -> Iterator[str]:
    """Yield the domain that contains the job, and why no nearer one does."""
    shared = 0
    while shared < len(names) - 1 and len({path[: shared + 1] for path in paths}) == 1:
        shared += 1
    where = "/".join(paths[0][:shared])
    inside = f"inside {names[shared - 1]} {where}" if shared else "over the whole fabric"
    if shared == len(names) - 1:
        yield f"all nodes {inside}"
        return
    nearer = capacity.at(shared + 1)
    largest = max(domain.fits for domain in nearer)
    if largest < request.nodes:
        yield (
            f"{inside}: no {names[shared]} has {request.nodes} free nodes,"
            f" the largest has {largest}"
        )
    else:
        yield f"{inside}: several {names[shared]} domains have more uplinks than one"


def _busiest_links(
    cost_model: CostModel, names: Sequence[str], paths: Sequence[Path]
) -> Iterator[str]:
    """Yield the uplinks that are the bottleneck of a kind of group."""
    congestion = cost_model.congestion(paths)
    domains = congestion.link_index.domains
    for kind, times in enumerate(congestion.by_kind()):
        top = max(times)
        hottest = [domains[link] for link, t in enumerate(times[: len(domains)]) if t == top]
        if not hottest or top <= congestion.base[kind] * (1 + TIE):
            continue
        path = min(hottest, key=natural)
        yield (
            f"{cost_model.traffic.kinds[kind]} traffic is limited by the uplinks of"
            f" {names[len(path) - 1]} {'/'.join(path)}"
        )


def _tolerance(request: Request) -> Iterator[str]:
    if request.tolerated_seconds:
        yield (
            f"a gain of up to {seconds(request.tolerated_seconds)}"
            f" ({request.domain_tolerance:.3g} of a step) does not justify more domains"
        )


def _notes(request: Request, names: Sequence[str], max_depth: int) -> Iterator[str]:
    preferred = request.prefer
    if preferred is not None and names.index(preferred) + 1 > max_depth:
        yield f"no {preferred} is large enough for the job (spec.topology.prefer)"
    if request.volumes is None:
        yield "traffic volumes are typical values, because the model is not known"


def seconds(time: float) -> str:
    """Format a short time."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if time >= size:
            return f"{time / size:.3g} {unit}"
    return f"{time / 1e-6:.3g} us" if time else "0 s"


def alternative_to(
    found: Sequence[PlacementCandidate],
    names: Sequence[str],
    paths_of: Callable[[PlacementCandidate], Sequence[Path]],
    tolerated: float,
) -> Alternative | None:
    """Return the best candidate that another method found."""
    chosen = found[0]
    root = chosen.method.removesuffix(", improved")
    others = [c for c in found[1:] if c.method.removesuffix(", improved") != root]
    same = [c for c in found[1:] if c.seconds > chosen.seconds * (1 + TIE)]
    other = next(iter(others or same or found[1:]), None)
    if other is None:
        return None
    near, paths = [name for name in names if name != "node"], paths_of(other)
    domains = {name: len({path[: depth + 1] for path in paths}) for depth, name in enumerate(near)}
    limit = limit_of(found, tolerated)
    return Alternative(other.method, other.seconds, domains, _why(chosen, other, near, limit))


def _why(
    chosen: PlacementCandidate, other: PlacementCandidate, names: Sequence[str], limit: float
) -> str:
    slower = other.seconds > chosen.seconds * (1 + TIE)
    if other.seconds > limit or (slower and other.footprint == chosen.footprint):
        if not chosen.seconds:
            return f"it has {seconds(other.seconds)} of exposed communication per step"
        return f"communication takes {other.seconds / chosen.seconds:.2f} times as long"
    difference = chosen.seconds - other.seconds
    speed = "as fast"
    if abs(difference) > chosen.seconds * TIE:
        speed = f"{seconds(abs(difference))} {'faster' if difference > 0 else 'slower'} per step"
    return f"{speed}, but {_more_than(chosen, other, names)}"


def _more_than(chosen: PlacementCandidate, other: PlacementCandidate, names: Sequence[str]) -> str:
    """Return the first criterion after the cost in which the other candidate is worse."""
    best, footprint = chosen.footprint, other.footprint
    names = names[: len(best.domains)]  # those farther away than what folds into the node
    for name, used, others in zip(names, best.domains, footprint.domains, strict=True):
        if others[0] != used[0]:
            return f"on {count_of(others[0], name)} instead of {used[0]}"
        if others[1] != used[1]:
            return "the spares would be farther away"
    for name, mine, theirs in zip(names, best.broken, footprint.broken, strict=True):
        if theirs != mine:
            return f"takes nodes of {count_of(theirs, name)} that are free as a whole"
    if footprint.gpus_over != best.gpus_over:
        return f"leaves {footprint.gpus_over} GPUs of its nodes unused instead of {best.gpus_over}"
    more = other.uplink_bytes - chosen.uplink_bytes
    if more > chosen.uplink_bytes * TIE:
        return f"sends {more / 1e9:.3g} GB more over its busiest uplinks"
    for name, mine, theirs in zip(reversed(names), chosen.stranded, other.stranded, strict=True):
        if theirs != mine:
            return f"leaves {theirs} free nodes in its {name} domains instead of {mine}"
    return "comes later in natural order"
