"""Hypothesis strategies: small clusters with every kind of node, and gangs that may fit them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from llmtrain_core.api.job import Toleration
from llmtrain_core.layout import DIMENSION_LABELS, Layout
from llmtrain_core.placement import Request
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.topology.inventory import Node, Snapshot, Taint, Usage, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.placement.cases import GPU, MB

LEVEL_NAMES = ("spine", "leaf", "node")
TAINT = Taint("dedicated", "training", "NoSchedule")
TOLERATION = Toleration(key="dedicated", operator="Exists")

rates = st.sampled_from([1.0, 2.0, 4.0, 8.0])


@st.composite
def clusters(draw: st.DrawFn, most: int = 9) -> Snapshot:
    """Draw up to `most` nodes: odd labels, partial nodes, taints, nodes that are off."""
    levels = (FabricLevel("spine", "s", draw(rates)), FabricLevel("leaf", "l", draw(rates)), NODE)
    nodes, usage = [], []
    for index in range(draw(st.integers(0, most))):
        labels = {
            "s": draw(st.sampled_from(["s1", "s2", "s10"])),
            "l": draw(st.sampled_from(["l1", "l2", "s1", ""])),
            "pool": draw(st.sampled_from(["a", "a", "a", "b"])),
        }
        odd = draw(st.integers(0, 11))
        nodes.append(
            Node(
                f"n{index}",
                {k: v for k, v in labels.items() if v},
                {GPU: 8 if odd != 0 else 4, "rdma/hca": 1 if odd != 1 else 0},
                ready=odd != 2,
                cordoned=odd == 3,
                taints=(TAINT,) if odd in (4, 5) else (),
            )
        )
        if draw(st.integers(0, 3)) == 0:
            usage.append(Usage(f"n{index}", GPU, draw(st.sampled_from([1, 4, 5, 8]))))
    return snapshot(levels, nodes, usage)


@st.composite
def gangs(draw: st.DrawFn, most: int = 5) -> Request:
    """Draw a gang of up to `most` nodes with all its constraints."""
    nodes, gpus = draw(st.integers(1, most)), draw(st.sampled_from([4, 8]))
    layout = draw(layouts(nodes * gpus, gpus))
    wide = layout.tensor > gpus
    level = st.sampled_from([None, "spine", "leaf", "node"])
    return Request(
        layout,
        nodes,
        gpus,
        extra=draw(st.sampled_from([{}, {}, {"rdma/hca": 1}])),
        require=draw(st.sampled_from([None, None, "spine", "leaf", "node"])),
        prefer=draw(level),
        tensor_within=draw(st.sampled_from(LEVEL_NAMES)) if wide else draw(level),
        spares=draw(st.integers(0, 1)),
        node_selector=draw(st.sampled_from([{}, {}, {"pool": "a"}])),
        tolerations=draw(st.sampled_from([(), (TOLERATION,)])),
        excluded=draw(st.sampled_from([frozenset(), frozenset({"n0", "n3"})])),
        volumes=draw(volumes(layout)),
    )


@st.composite
def layouts(draw: st.DrawFn, world: int, gpus: int) -> Layout:
    """Draw degrees whose product is the world; tensor divides a node or fills whole ones."""
    tensors = [t for t in _divisors(world) if gpus % t == 0 or t % gpus == 0]
    tensor = draw(st.sampled_from(tensors))
    rest = world // tensor
    pipeline = draw(st.sampled_from(_divisors(rest)))
    rest //= pipeline
    context = draw(st.sampled_from(_divisors(rest)))
    rest //= context
    replicate = draw(st.sampled_from(_divisors(rest)))
    return Layout(tensor, context, rest // replicate, replicate, pipeline)


@st.composite
def volumes(draw: st.DrawFn, layout: Layout) -> TrafficVolumes:
    """Draw megabytes by kind, in proportions of 1 to 20."""
    kinds = ("tensor", "context", "data", "replicate", "pipeline")
    size = st.integers(1, 20)
    share = st.sampled_from([0.25, 0.5, 1.0])
    return TrafficVolumes(
        {
            kind: GroupTraffic(MB * draw(size), draw(share))
            for kind in kinds
            if layout.group(DIMENSION_LABELS[kind]).size > 1  # type: ignore[arg-type]
        },  # type: ignore[arg-type]
        MB * draw(st.sampled_from([0, 0, 3])),
    )


@dataclass(frozen=True, slots=True)
class Growth:
    """A cluster, and the same with one more free node."""

    before: Snapshot
    after: Snapshot


@st.composite
def growths(draw: st.DrawFn, most: int = 9) -> Growth:
    """Free a node, or add a new one to a leaf that exists or not."""
    state = draw(clusters(most))
    busy = sorted(name for name, _ in state.used)
    if busy and draw(st.booleans()):
        freed = draw(st.sampled_from(busy))
        used = {key: amount for key, amount in state.used.items() if key[0] != freed}
        return Growth(state, replace(state, used=used))
    labels = {
        "s": draw(st.sampled_from(["s1", "s2", "s3"])),
        "l": draw(st.sampled_from(["l1", "l2"])),
        "pool": "a",
    }
    new = Node("n99", labels, {GPU: 8, "rdma/hca": 1})
    return Growth(state, replace(state, nodes=(*state.nodes, new)))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
