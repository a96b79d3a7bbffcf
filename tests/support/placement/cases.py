"""Random clusters and jobs, each from a seed: the same seed is the same case everywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmtrain_core.layout import DIMENSION_LABELS, Layout
from llmtrain_core.placement import Request
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.topology.inventory import Node, Snapshot, Usage, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels

GPU = "nvidia.com/gpu"
MB = 10**6


@dataclass(frozen=True, slots=True)
class Case:
    """One question to the placement."""

    name: str
    request: Request
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Shape:
    """A fabric: levels above the node from far to near, and how many domains each splits into."""

    name: str
    oversubscription: tuple[float, ...]
    fan: tuple[tuple[int, int], ...]
    """Least and most children of a domain, by level; the last one counts nodes."""

    @property
    def levels(self) -> Levels:
        names = ("core", "spine", "leaf")[-len(self.oversubscription) :]
        return (
            *(FabricLevel(n, n[0], o) for n, o in zip(names, self.oversubscription, strict=True)),
            NODE,
        )

    def nodes(self, rng: random.Random) -> list[Node]:
        """Build the nodes: uneven domains, names whose string order is not their number's."""
        paths: list[tuple[str, ...]] = [()]
        for level, (least, most) in zip(self.levels, self.fan, strict=True):
            paths = [
                (*path, f"{path[-1] if path else ''}{level.name[0]}{index + 7}")
                for path in paths
                for index in range(rng.randint(least, most))
            ]
        labels = [level.node_label for level in self.levels[:-1]]
        return [Node(p[-1], dict(zip(labels, p, strict=False)), {GPU: 8}) for p in paths]


SMALL = (
    Shape("leaf 2:1", (2,), ((3, 4), (3, 7))),
    Shape("leaf 4:1", (4,), ((4, 5), (2, 6))),
    Shape("leaf 1:1, spine 7:1", (7, 1), ((2, 3), (2, 2), (3, 6))),
    Shape("leaf 2:1, spine 2:1", (2, 2), ((2, 3), (2, 3), (3, 4))),
    Shape("leaf 4:1, spine 2:1", (2, 4), ((2, 2), (3, 4), (2, 5))),
    Shape("leaf 8:1, spine 1:1", (1, 8), ((2, 2), (2, 3), (3, 5))),
    Shape("leaf 1:1, spine 2:1, core 4:1", (4, 2, 1), ((2, 2), (2, 2), (1, 2), (2, 5))),
    Shape("leaf 2:1, spine 1:1, core 8:1", (8, 1, 2), ((2, 3), (1, 2), (2, 2), (2, 4))),
)

LARGE = (
    Shape("leaf 2:1", (2,), ((8, 12), (6, 10))),
    Shape("leaf 1:1, spine 7:1", (7, 1), ((3, 4), (4, 5), (6, 10))),
    Shape("leaf 2:1, spine 2:1", (2, 2), ((3, 4), (3, 6), (5, 9))),
    Shape("leaf 4:1, spine 2:1", (2, 4), ((3, 4), (4, 6), (4, 8))),
    Shape("leaf 8:1, spine 1:1", (1, 8), ((3, 4), (4, 5), (4, 8))),
    Shape("leaf 2:1, spine 2:1, core 4:1", (4, 2, 2), ((2, 2), (2, 3), (3, 4), (4, 8))),
)

LAYOUTS = (
    (Layout(tensor=8, data=4), 8),
    (Layout(tensor=8, data=2, pipeline=2), 8),
    (Layout(tensor=8, data=3, pipeline=2), 8),
    (Layout(tensor=4, data=8, pipeline=2), 8),
    (Layout(tensor=8, pipeline=8), 8),
    (Layout(tensor=8, data=4, pipeline=2), 8),
    (Layout(tensor=8, data=2, pipeline=4), 8),
    (Layout(tensor=2, data=16, pipeline=2), 8),
    (Layout(tensor=8, data=2, replicate=2, pipeline=2), 8),
    (Layout(tensor=4, context=2, data=4, pipeline=2), 8),
    (Layout(tensor=8, context=2, data=2, pipeline=2), 8),
    (Layout(data=32), 4),
    (Layout(tensor=4, data=3, pipeline=3), 4),
    (Layout(tensor=8, data=3, pipeline=3), 8),
    (Layout(tensor=8, data=5, pipeline=2), 8),
    (Layout(tensor=8, data=4, pipeline=3), 8),
    (Layout(tensor=8, data=12), 8),
    (Layout(tensor=8, data=2, pipeline=7), 8),
    (Layout(tensor=8, data=4, pipeline=4), 8),
    (Layout(tensor=8, data=8, pipeline=2), 8),
)
"""Layouts of 4 to 16 nodes with GPUs per node."""

RATIOS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
"""Bytes over a pipeline boundary for one byte on an edge of a data ring."""


def volumes(layout: Layout, rng: random.Random, ratio: float) -> TrafficVolumes:
    """Draw the traffic of a job: data at 100 MB an edge, pipeline by the ratio."""
    data = 100 * MB
    wanted = {
        "tensor": GroupTraffic(20 * data),
        "context": GroupTraffic(rng.choice((data // 2, 2 * data))),
        "data": GroupTraffic(data, rng.choice((0.25, 0.5, 1.0))),
        "replicate": GroupTraffic(data // 4, rng.choice((0.25, 1.0))),
        "pipeline": GroupTraffic(round(ratio * data)),
    }
    looped = layout.pipeline > 2 and rng.random() < 0.25
    return TrafficVolumes(
        {k: volume for k, volume in wanted.items() if layout.group(DIMENSION_LABELS[k]).size > 1},  # type: ignore[arg-type, misc]
        round(ratio * data / 2) if looped else 0,
    )


def occupancy(
    nodes: Sequence[Node], share: float, rng: random.Random, levels: Levels
) -> list[Usage]:
    """Fill a share of the nodes: half of the time at random, else in runs as packed jobs leave."""
    names = [node.name for node in sorted(nodes, key=lambda n: snapshot(levels, [n], []).path(n))]
    count = round(share * len(names))
    if rng.random() < 0.5:
        return [Usage(name, GPU, 8) for name in rng.sample(names, count)]
    busy: set[str] = set()
    while len(busy) < count:
        start, length = rng.randrange(len(names)), rng.randint(1, 8)
        busy.update(names[start : start + min(length, count - len(busy))])
    return [Usage(name, GPU, rng.choice((8, 8, 8, 5))) for name in sorted(busy)]


def random_case(
    seed: int, shape: Shape, layout: Layout, gpus_per_node: int, share: float = 0.4
) -> Case:
    """Draw a cluster and a job that fits it; fewer nodes are busy where it would not."""
    rng = random.Random(seed)
    ratio = rng.choice(RATIOS)
    blocks = layout.world_size // gpus_per_node
    nodes = shape.nodes(rng)
    while len(nodes) < blocks:
        nodes = shape.nodes(rng)
    share = min(share, 1 - blocks / len(nodes))
    state = snapshot(shape.levels, nodes, occupancy(nodes, share, rng, shape.levels))
    request = Request(layout, blocks, gpus_per_node, volumes=volumes(layout, rng, ratio))
    return Case(f"seed {seed}, {shape.name}, {layout}, Vp/Vd {ratio}", request, state)


def small_case(seed: int) -> Case:
    """Return a job of 4 to 16 nodes, fabrics and layouts in turn."""
    return random_case(seed, SMALL[seed % len(SMALL)], *LAYOUTS[seed % len(LAYOUTS)])


def small_cases(count: int) -> list[Case]:
    return [small_case(seed) for seed in range(count)]


def hardened(case: Case, seed: int) -> Case:
    """Add what random cases lack: other jobs on uplinks, thin nodes, NVLink over several nodes."""
    rng = random.Random(seed)
    levels = case.snapshot.levels
    if seed % 2:
        levels = (*levels[:-2], replace(levels[-2], nvlink=True), levels[-1])
    levels = (*levels[:-1], replace(levels[-1], oversubscription=rng.choice((1.0, 2.0))))
    state = replace(case.snapshot, levels=levels)
    some = rng.sample(state.nodes, 4)
    shares = {state.path(node)[: rng.randint(1, len(levels) - 1)]: rng.random() for node in some}
    return replace(case, snapshot=replace(state, uplinks=shares))


def with_one_free_node_more(case: Case, seed: int) -> Case:
    """Free one of the nodes that are in use, or add one beside another if none is."""
    rng, state = random.Random(seed), case.snapshot
    busy = sorted({name for name, _ in state.used})
    if busy:
        freed = rng.choice(busy)
        used = {key: amount for key, amount in state.used.items() if key[0] != freed}
        return replace(case, snapshot=replace(state, used=used))
    new = replace(rng.choice(state.nodes), name="new")
    return replace(case, snapshot=replace(state, nodes=(*state.nodes, new)))
