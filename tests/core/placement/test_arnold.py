"""Spread over minipods, against Arnold's own program in the three settings of its paper.

Published (arXiv:2509.15940): settings (minipods, nodes | dp, tp, pp) = (3, 18 | 12, 4, 2),
(5, 438 | 24, 4, 8), (11, 1019 | 46, 8, 8), nodes of 8 GPUs; on more than 9,600 GPUs the largest DP
and PP spreads were cut 1.5 and 1.3 times against the scheduler in use. Which nodes of a minipod
were free is not published, nor the other scheduler's order of ranks, so the figures are derived:
the minipods' free nodes are even or skewed by 30 and 60 %; Arnold's program, solved here, gives the
spreads to reach for a job whose traffic is mostly data (data rings aligned) and mostly pipeline
(chains aligned), alpha 0.3 as the paper has it for a mixture of experts; and the cut is taken
against best-fit with rank = pod index, for the kind that is aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from judges.arnold import Grid, arnold, split, spread
from judges.kueue import kueue

from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.placement.volumes import Volume, Volumes
from llmtrain_core.topology.inventory import Node, Snapshot, snapshot
from llmtrain_core.topology.levels import NODE, FabricLevel

pytestmark = [pytest.mark.unit, pytest.mark.timeout(900)]

OVERSUBSCRIPTION = 7.0
"""Of a minipod: that of Llama 3's pods (arXiv:2407.21783); Arnold's is not published."""
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
        return snapshot((FabricLevel("minipod", "minipod", OVERSUBSCRIPTION), NODE), nodes, [])

    def job(self, mostly: str) -> Request:
        traffic = {"data": Volume(DATA), "pipeline": Volume(round(DATA * RATIOS[mostly]))}
        layout = self.layout
        return Request(layout, layout.world_size // 8, 8, volumes=Volumes(traffic))  # type: ignore[arg-type]

    def target(self, mostly: str, skew: float) -> tuple[int, int]:
        """Return the DP and PP spread of Arnold's program with this kind aligned."""
        grid = self.grid
        groups = grid.rings if mostly == "data" else grid.chains
        where = arnold(groups, self.room(skew), alpha=0.3, work=0.3)
        return spread(grid.rings, where), spread(grid.chains, where)


SMALL = Setting(3, 18, Layout(tensor=4, data=12, pipeline=2))
MEDIUM = Setting(5, 438, Layout(tensor=4, data=24, pipeline=8))
LARGE = Setting(11, 1019, Layout(tensor=8, data=46, pipeline=8))
SKEWS = (0.0, 0.3, 0.6)


def ours(setting: Setting, mostly: str, skew: float) -> tuple[int, int]:
    """Return the DP and PP spread of our placement."""
    placement = place(setting.job(mostly), setting.cluster(skew))
    assert isinstance(placement, Placement)
    where = [node.path["minipod"] for node in placement.nodes]
    return spread(setting.grid.rings, where), spread(setting.grid.chains, where)


OPEN = pytest.mark.xfail(
    strict=True,
    reason="open: the large data-heavy job spreads its DP groups over 2 minipods where 1 is enough;"
    " no uplink is slower than a NIC there, so the cost sees no difference",
)


def settings() -> list[Any]:
    """Return every setting, kind and skew; what is not reached yet is marked."""
    return [
        pytest.param(
            setting, mostly, skew, id=f"{nodes}-{mostly}-{skew}",
            marks=[OPEN] if setting is LARGE and mostly == "data" else [],
        )
        for nodes, setting in ((18, SMALL), (438, MEDIUM), (1019, LARGE))
        for mostly in sorted(RATIOS)
        for skew in SKEWS
    ]  # fmt: skip


@pytest.mark.parametrize(("setting", "mostly", "skew"), settings())
def test_spread_is_as_low_as_that_of_arnolds_program(
    setting: Setting, mostly: str, skew: float
) -> None:
    rings, chains = setting.target(mostly, skew)
    our_rings, our_chains = ours(setting, mostly, skew)
    assert our_rings <= rings
    assert our_chains <= chains


@OPEN
@pytest.mark.parametrize("skew", SKEWS)
def test_the_large_job_cuts_the_spread_of_best_fit_as_published(skew: float) -> None:
    """1.5 times for DP and 1.3 times for PP, each for the job that the kind dominates."""
    paths = kueue(LARGE.job("data"), LARGE.cluster(skew), "minipod")
    assert paths is not None
    pods = [path[0] for path in paths]
    grid = LARGE.grid
    assert spread(grid.rings, pods) / ours(LARGE, "data", skew)[0] >= 1.5
    assert spread(grid.chains, pods) / ours(LARGE, "pipeline", skew)[1] >= 1.3
