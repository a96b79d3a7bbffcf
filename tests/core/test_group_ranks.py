"""Every group of ranks is the same in the trainer, in the plan and in the placement."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from llmtrain_core.layout import DIMENSIONS, GROUP_LABELS, KIND_LABELS, GroupLabel, Layout
from llmtrain_core.placement.place import describe
from llmtrain_core.plan.gradient_sync import SyncScheme
from llmtrain_core.plan.hardware import CATALOGUE
from llmtrain_core.plan.network.communication import group_sizes
from llmtrain_core.plan.network.link_speed import CollectiveCostModel
from llmtrain_core.plan.training_setup import TrainingSetup
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.topology.levels import FabricLevel

pytestmark = pytest.mark.unit

LEVELS = (FabricLevel("leaf", "l", 4.0), FabricLevel("node", "n"))
Groups = list[list[int]]


def layouts(ranks: int) -> Iterator[tuple[Layout, int]]:
    """Every layout of up to `ranks` ranks, with every number of replicas per rack."""
    for degrees in _degrees(len(DIMENSIONS), ranks):
        sizes = dict(zip(DIMENSIONS, degrees, strict=True))
        for expert in _divisors(sizes["context"] * sizes["data"]):
            for near in _divisors(sizes["replicate"]):
                yield Layout(**sizes, expert=expert), near


def _degrees(count: int, most: int) -> Iterator[tuple[int, ...]]:
    if not count:
        yield ()
        return
    for degree in range(1, most + 1):
        for rest in _degrees(count - 1, most // degree):
            yield (degree, *rest)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def expected(layout: Layout, near: int) -> dict[GroupLabel, Groups]:
    """The groups by coordinates: ranks that differ in the dimensions of the group only."""
    fsdp, replicas = _along(layout, "context", "data"), _along(layout, "replicate")
    expert, two_levels = layout.expert, 1 < near < layout.replicate
    return {
        "tp": _along(layout, "tensor"),
        "cp": _along(layout, "context"),
        "dp": fsdp,
        "ep": _runs(fsdp, expert),
        "edp": _strides(fsdp, expert) if expert > 1 else _alone(layout),
        "rep": replicas,
        "rep-near": _runs(replicas, near) if two_levels else _alone(layout),
        "rep-far": _strides(replicas, near) if two_levels else _alone(layout),
        "pp": _along(layout, "pipeline"),
    }


def _along(layout: Layout, *dimensions: str) -> Groups:
    found: dict[tuple[int, ...], list[int]] = {}
    for rank in range(layout.world_size):
        place = layout.coordinates(rank)
        key = tuple(place[d] for d in DIMENSIONS if d not in dimensions)
        found.setdefault(key, []).append(rank)
    return sorted(found.values())


def _runs(groups: Groups, size: int) -> Groups:
    return sorted(group[i : i + size] for group in groups for i in range(0, len(group), size))


def _strides(groups: Groups, step: int) -> Groups:
    return sorted(group[i::step] for group in groups for i in range(step))


def _alone(layout: Layout) -> Groups:
    return [[rank] for rank in range(layout.world_size)]


def test_the_plan_and_the_crossings_count_the_ranks_of_every_group() -> None:
    rng = random.Random(0)
    for layout, near in layouts(32):
        groups = expected(layout, near)
        sync = SyncScheme(replicas_per_rack=near)
        # only these two fields count; a real setup would need a model that every layout divides
        sizes = group_sizes(cast(TrainingSetup, SimpleNamespace(layout=layout, sync=sync)))
        network = CollectiveCostModel(CATALOGUE["H100"], layout, 1.0, 1.0, sync=sync)
        assert groups.keys() == sizes.keys() == set(GROUP_LABELS)
        for label, members in groups.items():
            ranks = layout.group(label, near).members(layout.world_size)
            assert [list(group) for group in ranks] == members
            assert sizes[label] == network.span(label).ranks == len(members[0])
        gpus = rng.choice([d for d in _divisors(layout.world_size) if d <= 8])
        leaves = [rng.choice("ab") for _ in range(layout.world_size // gpus)]
        _check_crossings(layout, groups, gpus, leaves)


def _check_crossings(
    layout: Layout, groups: dict[GroupLabel, Groups], gpus: int, leaves: list[str]
) -> None:
    paths = [(leaf, f"n{node:02}") for node, leaf in enumerate(leaves)]
    found = describe(layout, gpus, Snapshot(LEVELS, ()), paths).crossings
    for depth, level in enumerate(LEVELS):
        assert found[level.name] == {
            kind: sum(len({paths[rank // gpus][: depth + 1] for rank in group}) > 1 for group in g)
            for kind, g in ((kind, groups[label]) for kind, label in KIND_LABELS.items())
            if len(g[0]) > 1
        }


def test_the_trainer_creates_the_same_groups() -> None:
    rng = random.Random(0)
    for layout, near in layouts(16):
        rank = rng.randrange(layout.world_size)
        mine = {
            label: next(group for group in groups if rank in group)
            for label, groups in expected(layout, near).items()
            if len(groups[0]) > 1
        }
        assert _groups_of_trainer(layout, near, rank) == mine


def _groups_of_trainer(layout: Layout, near: int, rank: int) -> dict[GroupLabel, list[int]]:
    """The groups of one rank, by the label of its metrics; no other process is needed."""
    # Every worker of the unit tier imports this file, and one of them needs torch.
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from llmtrain_trainer.parallel.mesh import LABELS, Grid

    dist.init_process_group("fake", rank=rank, world_size=layout.world_size, store=FakeStore())
    try:
        grid = Grid.build(layout, "cpu", SyncScheme(replicas_per_rack=near))
        for name, group in grid.groups.items():
            assert grid.labels[group.group_name] == LABELS[name]
        return {
            LABELS[name]: sorted(dist.get_process_group_ranks(group))
            for name, group in grid.groups.items()
        }
    finally:
        dist.destroy_process_group()
