"""Streams of jobs that start and end: how many are refused, and how many whole leaves are left."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.placement.baselines.kueue import kueue
from tests.support.placement.cases import GPU, MB

EVENTS = 200
SPINES, LEAVES, NODES = 4, 8, 4
"""Spines, leaves of a spine, nodes of a leaf."""
LEVELS = (FabricLevel("spine", "s", 1.0), FabricLevel("leaf", "l", 2.0), NODE)
STEP_SECONDS = 1.0
MOST_BUSY = 0.8
"""Share of the nodes above which a job ends before another one arrives."""

LAYOUTS = (
    *(Layout(tensor=8, data=n) for n in (1, 2, 3, 4, 4)),
    Layout(tensor=8, data=2, replicate=2, pipeline=2),
    Layout(tensor=8, data=2, replicate=2, pipeline=2),
    Layout(tensor=8, data=2, replicate=2, pipeline=3),
    Layout(tensor=8, data=2, replicate=2, pipeline=4),
)
"""Layouts of 1 to 16 nodes of 8 GPUs."""

Policy = Callable[[Request, Snapshot], "list[str] | None"]


def ours(tolerance: float) -> Policy:
    """Return the placement with a tolerance."""

    def policy(request: Request, state: Snapshot) -> list[str] | None:
        found = place(replace(request, domain_tolerance=tolerance), state)
        return [node.name for node in found.nodes] if isinstance(found, Placement) else None

    return policy


def best_fit(request: Request, state: Snapshot) -> list[str] | None:
    """Return the nodes of Kueue's best fit."""
    paths = kueue(request, state, "leaf")
    return None if paths is None else [path[-1] for path in paths]


POLICIES: Mapping[str, Policy] = {
    "1 % of a step": ours(0.01),
    "cost alone": ours(0.0),
    "best fit": best_fit,
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a stream of jobs met."""

    required: int
    """Jobs with `require` that arrived."""
    refused: int
    """Those that did not fit."""
    others_refused: int
    whole_leaves: float
    """Leaves without a job after an event, on average."""


def run(seed: int, policy: Policy) -> Result:
    """Run a stream. The jobs that arrive and those that end do not depend on the policy."""
    rng = random.Random(seed)
    nodes = [
        Node(f"n{s}-{leaf}-{n}", {"s": f"s{s}", "l": f"l{leaf}"}, {GPU: 8})
        for s in range(SPINES)
        for leaf in range(LEAVES)
        for n in range(NODES)
    ]
    path = {node.name: snapshot(LEVELS, [node], []).path(node)[:-1] for node in nodes}
    running: dict[int, list[str]] = {}
    wanted: dict[int, int] = {}
    """Nodes of every job that has not ended, whether it got them or not."""
    required = refused = others = 0
    whole: list[int] = []
    for event in range(EVENTS):
        while sum(wanted.values()) > MOST_BUSY * len(nodes) or (wanted and rng.random() < 0.2):
            ended = rng.choice(sorted(wanted))
            del wanted[ended]
            running.pop(ended, None)
        request = _request(rng)
        wanted[event] = request.nodes
        busy = [name for names in running.values() for name in names]
        found = policy(request, snapshot(LEVELS, nodes, [Usage(name, GPU, 8) for name in busy]))
        required += request.require is not None
        if found is not None:
            running[event] = found
        elif request.require is not None:
            refused += 1
        else:
            others += 1
        taken = {path[name] for names in running.values() for name in names}
        whole.append(SPINES * LEAVES - len(taken))
    return Result(required, refused, others, mean(whole))


def _request(rng: random.Random) -> Request:
    """Draw a job: half of those that fit into a leaf require one."""
    layout = rng.choice(LAYOUTS)
    nodes = layout.world_size // 8
    traffic = TrafficVolumes(
        {
            "data": GroupTraffic(rng.choice((50, 100, 200)) * MB),
            "replicate": GroupTraffic(rng.choice((20, 50)) * MB),
            "pipeline": GroupTraffic(rng.choice((10, 20)) * MB),
        }
    )
    level = "leaf" if nodes <= NODES else "spine"
    require = level if rng.random() < 0.5 else None
    return Request(layout, nodes, 8, require=require, volumes=traffic, step_seconds=STEP_SECONDS)


def total(results: Sequence[Result]) -> Result:
    """Add up the results of several streams."""
    return Result(
        sum(r.required for r in results),
        sum(r.refused for r in results),
        sum(r.others_refused for r in results),
        mean(r.whole_leaves for r in results),
    )
