"""Our placement against the restated peers, on one case after another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from statistics import mean

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.placement.cost import cost_of
from llmtrain_core.topology.inventory import Snapshot, snapshot
from tests.support.placement.baselines.kai import kai
from tests.support.placement.baselines.kueue import kueue
from tests.support.placement.baselines.volcano import volcano
from tests.support.placement.cases import LARGE, RATIOS, Case, occupancy, random_case, volumes
from tests.support.placement.free_nodes import Path, by_domain, depth_of, free_paths
from tests.support.placement.real_tree import real_levels, real_nodes

Baseline = Callable[[Request, Snapshot], "list[Path] | None"]


def _nearest(snapshot: Snapshot) -> str:
    return snapshot.levels[-2].name


BASELINES: Mapping[str, Baseline] = {
    "Kueue": lambda request, state: kueue(request, state, _nearest(state)),
    "Volcano hard": lambda request, state: volcano(request, state),
    "Volcano soft": lambda request, state: volcano(request, state, hard=False),
    "KAI": lambda request, state: kai(request, state, _nearest(state)),
}

LAYOUTS = (
    (Layout(tensor=8, data=8), 8),
    (Layout(tensor=8, data=8, pipeline=2), 8),
    (Layout(tensor=8, data=4, pipeline=4), 8),
    (Layout(tensor=4, data=16, pipeline=4), 8),
    (Layout(tensor=8, data=3, pipeline=8), 8),
    (Layout(tensor=8, data=4, pipeline=8), 8),
    (Layout(tensor=8, data=16, pipeline=2), 8),
    (Layout(tensor=8, context=2, data=6, pipeline=4), 8),
    (Layout(tensor=8, data=4, replicate=3, pipeline=4), 8),
    (Layout(tensor=4, data=12, pipeline=3), 4),
    (Layout(tensor=8, data=64), 8),
)
"""Layouts of 8 to 64 nodes with GPUs per node."""

REAL_LAYOUTS = (
    Layout(tensor=8, data=4, pipeline=4),
    Layout(tensor=8, data=6, pipeline=8),
    Layout(tensor=4, data=48, pipeline=4),
    Layout(tensor=8, data=32, pipeline=3),
    Layout(tensor=8, data=128),
    Layout(tensor=8, context=2, data=16, pipeline=4),
    Layout(tensor=8, data=24, pipeline=8),
)
"""Layouts of 16 to 192 nodes of 8 GPUs."""

REAL_FABRICS = ((7, 1), (4, 2), (2, 2), (2, 4))
"""Oversubscription of spine and leaf."""


def large_case(seed: int) -> Case:
    """Return a job of 8 to 64 nodes on a half-full cluster, fabrics and layouts in turn."""
    shape, layout = LARGE[seed % len(LARGE)], LAYOUTS[seed % len(LAYOUTS)]
    return random_case(seed, shape, *layout, share=0.5)


def synthetic_cases(count: int) -> Iterator[Case]:
    """Yield half-full clusters of some dozens to a few hundred nodes.

    Where one spine holds the job, every second one must stay in one.
    """
    for seed in range(count):
        shape, case = LARGE[seed % len(LARGE)], large_case(seed)
        if seed // len(LARGE) % 2 and len(shape.oversubscription) > 1 and fits(case, "spine"):
            case = replace(case, request=replace(case.request, require="spine"))
        yield replace(case, name=shape.name)


def fits(case: Case, level: str) -> bool:
    """Tell whether some domain of a level holds the job."""
    paths = free_paths(case.request, case.snapshot)
    domains = by_domain(paths, depth_of(case.snapshot, level))
    return max(map(len, domains.values()), default=0) >= case.request.nodes


def real_cases(count: int) -> Iterator[Case]:
    """Yield the real tree, half full, in turn with several layouts and oversubscriptions."""
    nodes = real_nodes()
    for seed in range(count):
        rng = random.Random(seed)
        spine, leaf = REAL_FABRICS[seed % len(REAL_FABRICS)]
        levels, layout = real_levels(spine, leaf), REAL_LAYOUTS[seed % len(REAL_LAYOUTS)]
        state = snapshot(levels, nodes, occupancy(nodes, 0.5, rng, levels))
        traffic = volumes(layout, rng, rng.choice(RATIOS))
        request = Request(layout, layout.world_size // 8, 8, volumes=traffic)
        yield Case(f"Lingjun, leaf {leaf}:1, spine {spine}:1", request, state)


def compare(case: Case) -> dict[str, float]:
    """Return every peer's cost over ours. Raises AssertionError where only we do not place it."""
    ours = place(case.request, case.snapshot)
    theirs = {name: peer(case.request, case.snapshot) for name, peer in BASELINES.items()}
    if not isinstance(ours, Placement):
        assert not any(theirs.values()), f"{case.name}: {ours.message}"
        return {}
    return {
        name: cost_of(case.request, case.snapshot, paths).seconds / ours.cost.seconds
        for name, paths in theirs.items()
        if paths is not None
    }


def table(ratios: Mapping[str, list[dict[str, float]]]) -> str:
    """Print mean, worst and least ratio of every peer by fabric; a ratio above 1 is our lead."""
    head = f"{'FABRIC':<34}{'CASES':>6}" + "".join(f"{name:>22}" for name in BASELINES)
    lines = [head, f"{'':<40}" + f"{'mean  worst  least':>22}" * len(BASELINES)]
    everything = [one for found in ratios.values() for one in found]
    for fabric, found in [*sorted(ratios.items()), ("all", everything)]:
        cells = ""
        for name in BASELINES:
            values = [one[name] for one in found if name in one]
            figures = f"{mean(values):.2f}  {max(values):5.2f}  {min(values):5.2f}"
            cells += f"{figures:>22}"
        lines.append(f"{fabric:<34}{len(found):>6}{cells}")
    return "\n".join(lines)
