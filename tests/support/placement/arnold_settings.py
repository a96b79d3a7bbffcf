"""The three settings of Arnold's paper (arXiv:2509.15940), and the spread of placements in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.placement.traffic.volumes import GroupTraffic, TrafficVolumes
from llmtrain_core.topology.inventory import Node, Snapshot, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel
from tests.support.placement.baselines.arnold import Grid, arnold, split, spread
from tests.support.placement.baselines.kueue import kueue

NARROW, FULL = 7.0, 1.0
"""Oversubscription of a minipod: that of Llama 3's pods (arXiv:2407.21783), and of a fabric where
any placement is as fast as another. Arnold's is not published."""
DATA = 2 * 10**9
"""Bytes of a DP group of a 7B model in the paper."""
RATIOS = {"data": 0.015, "pipeline": 5.0}
"""Pipeline bytes for one data byte: the paper's 30 MB to 2 GB, and a job of many micro-batches."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Minipods, their nodes, and a job of 8-GPU nodes."""

    minipods: int
    nodes: int
    layout: Layout
    oversubscription: float = NARROW

    @property
    def grid(self) -> Grid:
        return Grid.of(self.layout, 8)

    def room(self, skew: float) -> list[int]:
        return split(self.nodes, self.minipods, skew)

    def cluster(self, skew: float) -> Snapshot:
        nodes = [
            Node(f"m{pod:02}-{index}", {"minipod": f"m{pod:02}"}, {"nvidia.com/gpu": 8})
            for pod, count in enumerate(self.room(skew))
            for index in range(count)
        ]
        return snapshot((FabricLevel("minipod", "minipod", self.oversubscription), NODE), nodes, [])

    def job(self, mostly: str) -> Request:
        traffic = {
            "data": GroupTraffic(DATA),
            "pipeline": GroupTraffic(round(DATA * RATIOS[mostly])),
        }
        layout = self.layout
        return Request(layout, layout.world_size // 8, 8, volumes=TrafficVolumes(traffic))  # type: ignore[arg-type]

    def arnold(self, mostly: str, skew: float) -> list[int]:
        """Return the minipod of every block after Arnold's program with this kind aligned."""
        groups = self.grid.rings if mostly == "data" else self.grid.domain_paths
        return arnold(groups, self.room(skew), alpha=0.3, work=0.3)

    def spread(self, minipods: Sequence[object]) -> tuple[int, int]:
        """Return the DP and the PP spread of a placement."""
        return spread(self.grid.rings, minipods), spread(self.grid.domain_paths, minipods)


SMALL = Setting(3, 18, Layout(tensor=4, data=12, pipeline=2))
MEDIUM = Setting(5, 438, Layout(tensor=4, data=24, pipeline=8))
LARGE = Setting(11, 1019, Layout(tensor=8, data=46, pipeline=8))
SKEWS = (0.0, 0.3, 0.6)


def ours(setting: Setting, mostly: str, skew: float) -> Placement:
    placement = place(setting.job(mostly), setting.cluster(skew))
    assert isinstance(placement, Placement)
    return placement


def our_spread(setting: Setting, mostly: str, skew: float) -> tuple[int, int]:
    nodes = ours(setting, mostly, skew).nodes
    return setting.spread([node.path["minipod"] for node in nodes])


def best_fit(setting: Setting, skew: float) -> tuple[int, int]:
    """Return the DP and PP spread of best-fit with rank = pod index."""
    paths = kueue(setting.job("data"), setting.cluster(skew), "minipod")
    assert paths is not None
    return setting.spread([path[0] for path in paths])
