"""Explain a placement: statistics and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from llmtrain_core.layout import KIND_LABELS, Layout
from llmtrain_core.placement.capacity import CapacityTree
from llmtrain_core.placement.cost import TIE, CostModel
from llmtrain_core.placement.search import PlacementCandidate
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
    return Alternative(other.method, other.seconds, domains, _why(chosen, other, near))


def _why(chosen: PlacementCandidate, other: PlacementCandidate, names: Sequence[str]) -> str:
    if other.seconds > chosen.seconds * (1 + TIE):
        if not chosen.seconds:
            return f"it has {seconds(other.seconds)} of exposed communication per step"
        return f"communication takes {other.seconds / chosen.seconds:.2f} times as long"
    best, score = chosen.score, other.score
    if score.uplink_bytes > best.uplink_bytes * (1 + TIE):
        more = score.uplink_bytes - best.uplink_bytes
        return f"as fast, but sends {more / 1e9:.3g} GB more over its busiest uplinks"
    if score.spares_outside != best.spares_outside:
        return "as fast, but the spares would be farther away"
    names = names[: len(best.domains)]  # those farther away than what folds into the node
    for name, mine, theirs in zip(names, best.domains, score.domains, strict=True):
        if theirs != mine:
            return f"as fast, but on {count_of(theirs, name)} instead of {mine}"
    if score.gpus_over != best.gpus_over:
        unused = f"{score.gpus_over} GPUs of its nodes unused instead of {best.gpus_over}"
        return f"as fast, but leaves {unused}"
    for name, mine, theirs in zip(reversed(names), best.stranded, score.stranded, strict=True):
        if theirs != mine:
            return (
                f"as fast, but leaves {theirs} free nodes in its {name} domains instead of {mine}"
            )
    return "as fast; the chosen one comes first in natural order"
