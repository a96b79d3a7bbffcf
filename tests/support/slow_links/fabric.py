"""Random fabrics and jobs, and the time of each group's ring on them.

All groups of one kind transfer at the same time. A ring runs in rank order and each of its edges
carries equally much. So a group takes the bytes of all rings over its most loaded link, over the
rate of that link: a group may not notice a slow uplink that is still faster than its interfaces.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmtrain_core.layout import GroupLabel, Layout
from llmtrain_core.network.links import Group, LinkPath, job_groups

NVLINK_RATE = 9.0
"""Rate of a GPU over NVLink, in units of the rate of a GPU to other nodes."""


@dataclass(frozen=True, slots=True)
class Fabric:
    """Nodes below leaf domains, which may be below further domains."""

    nodes: tuple[LinkPath, ...]
    gpus_per_node: int
    own_interfaces: bool
    oversubscription: tuple[float, ...]
    """Of each level above the node, from far to near."""

    def rate(self, link: LinkPath) -> float:
        """Return the rate of a healthy link, in units of the rate of a GPU to other nodes."""
        depth = len(self.nodes[0])
        if len(link) > depth:
            return 1.0
        rate = float(self.gpus_per_node)
        if len(link) < depth:
            rate *= sum(node[: len(link)] == link for node in self.nodes)
            for level in self.oversubscription[len(link) - 1 :]:
                rate /= level
        return rate


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A job on some nodes of a fabric."""

    name: str
    layout: Layout
    nodes: tuple[LinkPath, ...]
    labels: tuple[GroupLabel, ...]
    """Labels of the groups that are measured."""

    def groups(self, fabric: Fabric) -> list[Group]:
        """Return the measured groups."""
        return list(
            job_groups(
                self.layout,
                self.nodes,
                fabric.gpus_per_node,
                self.labels,
                own_interfaces=fabric.own_interfaces,
            )
        )

    def seconds(self, fabric: Fabric, slow: Mapping[LinkPath, float]) -> list[float]:
        """Return the transfer time of every group, with some links slower by a factor."""
        found: list[float] = []
        for label in self.labels:
            ranks = self.layout.group(label)
            if ranks.size == 1:
                continue
            rings = [
                [*self._hops(fabric, members)] for members in ranks.members(self.layout.world_size)
            ]
            load: dict[tuple[LinkPath, bool], int] = {}
            for ring in rings:
                for hop in ring:
                    for end in hop:
                        load[end] = load.get(end, 0) + 1
            times = {
                end: count * slow.get(end[0], 1.0) / fabric.rate(end[0])
                for end, count in load.items()
            }
            found += [
                max([1 / NVLINK_RATE, *(times[end] for hop in ring for end in hop)])
                for ring in rings
            ]
        return found

    def _hops(self, fabric: Fabric, members: range) -> Iterator[list[tuple[LinkPath, bool]]]:
        """Yield the links of each edge of a ring, and whether it leaves or enters them."""
        for sender, receiver in zip(members, [*members[1:], members[0]], strict=True):
            start, end = self._path(fabric, sender), self._path(fabric, receiver)
            if start[: len(self.nodes[0])] == end[: len(self.nodes[0])]:
                continue
            yield [
                *((start[:n], True) for n in range(1, len(start) + 1) if start[:n] != end[:n]),
                *((end[:n], False) for n in range(1, len(end) + 1) if start[:n] != end[:n]),
            ]

    def _path(self, fabric: Fabric, rank: int) -> LinkPath:
        node = self.nodes[rank // fabric.gpus_per_node]
        return (*node, f"gpu{rank % fabric.gpus_per_node}") if fabric.own_interfaces else node


def random_fabric(rng: random.Random) -> Fabric:
    """Return a fabric with one or two levels above the node."""
    spines = rng.choice((1, 1, 2, 3))
    racks, size = rng.randint(3, 8), rng.randint(3, 12)
    nodes = tuple(
        (*((f"spine{spine}",) if spines > 1 else ()), f"rack{spine}-{rack}", f"n{spine}-{rack}-{n}")
        for spine in range(spines)
        for rack in range(racks)
        for n in range(rng.randint(2, size))
    )
    levels = tuple(rng.choice((1.0, 1.0, 2.0, 4.0)) for _ in range(len(nodes[0]) - 1))
    return Fabric(nodes, rng.choice((2, 4, 8)), rng.random() < 0.4, levels)


def random_jobs(fabric: Fabric, rng: random.Random) -> list[SimulatedJob]:
    """Return one to three jobs on different nodes; each spans at least two leaf domains."""
    free = list(fabric.nodes)
    if rng.random() < 0.3:
        rng.shuffle(free)
    else:
        start = rng.randrange(len(free))
        free = free[start:] + free[:start]
        free = [node for node in free if rng.random() < 0.8]
    jobs: list[SimulatedJob] = []
    for number in range(rng.randint(1, 3)):
        layout = random_layout(fabric.gpus_per_node, len(free), rng)
        if layout is None:
            break
        count = layout.world_size // fabric.gpus_per_node
        nodes, free = free[:count], free[count:]
        probed: tuple[GroupLabel, ...] = ("pp",) if rng.random() < 0.5 else ()
        jobs.append(
            SimulatedJob(f"job{number}", layout, tuple(nodes), ("tp", "dp", "rep", *probed))
        )
    return jobs


def random_layout(gpus: int, most: int, rng: random.Random) -> Layout | None:
    """Return a layout of at least four nodes; None if there are too few."""
    choices = [
        Layout(tensor=tensor, data=data, replicate=replicate, pipeline=pipeline)
        for tensor in (1, 2, 4, 8)
        for data in (1, 2, 3, 4, 6, 8, 12, 16, 32)
        for replicate in (1, 2, 3, 4)
        for pipeline in (1, 2, 3, 4, 8)
        if tensor <= gpus
        and (world := tensor * data * replicate * pipeline) % gpus == 0
        and 4 <= world // gpus <= most
    ]
    return rng.choice(choices) if choices else None
