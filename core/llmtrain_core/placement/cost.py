"""What a placement costs: the communication time of one step under the most loaded link.

For every kind of group k and every link l

    time_k = max over l of load_kl / capacity_l        seconds of k's traffic if nothing else ran
    cost   = sum over k of exposed_k time_k

Loads are bytes of one step and direction. An edge between two blocks loads, unless both sit in one
NVLink domain: the sender's NICs (out), the receiver's NICs (in), and the uplink of every domain
that it leaves (out) or enters (in). Inside an NVLink domain it loads NVLink of both nodes (all GPUs
of a block together), as do the edges inside a block. The phases of the kinds follow one another:
tensor traffic of a layer is over before its gradients leave. The sum of maxima is a lower bound
that real transports reach to 85 to 92 % (measured on shaped links).

`Congestion` keeps the loads of one assignment. A set of blocks is a whole number with one bit for
every block, so what leaves a domain is counted by shifts for the whole set at once, and only for
the few domains that a change touches. Bytes are whole numbers: loads stay exact whatever the order
of changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import mul

from llmtrain_core.layout import Dimension
from llmtrain_core.placement.graph import Edges, block_edges
from llmtrain_core.placement.tree import Path, Tree, tree_of
from llmtrain_core.placement.types import Cost, Request
from llmtrain_core.topology.inventory import Snapshot

Blocks = int
"""A set of blocks: bit i stands for block i."""

NOWHERE = -1
"""The NVLink domain of a domain that lies in none."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where blocks can sit: cells, nearest domains whose nodes are all alike, and their links."""

    tree: Tree
    cells: tuple[Path, ...]
    """Path of every cell, from far to near, without the node; no two are equal."""
    domains: tuple[Path, ...]
    chains: tuple[tuple[int, ...], ...]
    """Domains of every cell from far to near, as indices of `domains`."""
    nvlink: tuple[int, ...]
    """NVLink domain, as an index of `domains`, that is or holds a domain; `NOWHERE` for none."""


def ground_of(tree: Tree, cells: Sequence[Path]) -> Ground:
    """Number the domains of some cells."""
    index: dict[Path, int] = {}
    chains = []
    for cell in cells:
        prefixes = (cell[:depth] for depth in range(1, len(cell) + 1))
        chains.append(tuple(index.setdefault(prefix, len(index)) for prefix in prefixes))
    depth = tree.nvlink_depth
    nvlink = tuple(
        NOWHERE if depth is None or len(path) < depth else index[path[:depth]] for path in index
    )
    return Ground(tree, tuple(cells), tuple(index), tuple(chains), nvlink)


@dataclass(frozen=True, slots=True)
class Flow:
    """Edges of one kind that carry equally much, all between blocks at one distance."""

    shift: int
    """Receiving block less sending block."""
    nbytes: int
    senders: Blocks
    receivers: Blocks


@dataclass(frozen=True, slots=True)
class Traffic:
    """The edges of a job between its blocks, ready to be added up."""

    kinds: tuple[Dimension, ...]
    weights: tuple[float, ...]
    """Exposed share by kind."""
    adjacent: tuple[tuple[tuple[int, int, int, int], ...], ...]
    """By block: (other block, kind, bytes to it, bytes from it)."""
    flows: tuple[tuple[Flow, ...], ...]
    """The same edges by kind, for whole sets of blocks at once."""
    inside: tuple[tuple[int, ...], ...]
    """Bytes that stay inside a block, by kind and block."""
    gpus_per_node: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.adjacent)


def traffic_of(request: Request) -> Traffic:
    """Add up the traffic of a request by pairs of blocks."""
    volumes = request.traffic
    edges = block_edges(request.layout, request.gpus_per_node, volumes)
    kinds = tuple(edges)
    pairs: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(request.nodes)]
    inside = [[0] * request.nodes for _ in kinds]
    for kind, name in enumerate(kinds):
        for (a, b), nbytes in edges[name].items():
            if a == b:
                inside[kind][a] += nbytes
                continue
            pairs[a].setdefault((b, kind), [0, 0])[0] += nbytes
            pairs[b].setdefault((a, kind), [0, 0])[1] += nbytes
    return Traffic(
        kinds,
        tuple(volumes.by_kind[name].exposed for name in kinds),
        tuple(
            tuple((other, kind, out, into) for (other, kind), (out, into) in sorted(p.items()))
            for p in pairs
        ),
        tuple(_flows(edges[name]) for name in kinds),
        tuple(map(tuple, inside)),
        request.gpus_per_node,
    )


def _flows(edges: Edges) -> tuple[Flow, ...]:
    """Group edges between blocks by distance and bytes: a ring has two distances, a chain two."""
    alike: dict[tuple[int, int], list[int]] = {}
    for (a, b), nbytes in edges.items():
        if a != b and nbytes:
            ends = alike.setdefault((b - a, nbytes), [0, 0])
            ends[0] |= 1 << a
            ends[1] |= 1 << b
    return tuple(Flow(*key, *ends) for key, ends in sorted(alike.items()))


class Congestion:
    """Loads of all links under one assignment of blocks to cells. Times are weighted seconds.

    What leaves a domain depends only on the set of blocks in it. So an assignment is one set for
    every domain, and what was counted for a set before is looked up.
    """

    def __init__(self, traffic: Traffic, ground: Ground):
        self.traffic = traffic
        self.ground = ground
        self.held: list[Blocks] = [0] * len(ground.domains)
        """Blocks in every domain."""
        self._rates = [ground.tree.uplinks[domain] for domain in ground.domains]
        self._nvlink = ground.tree.links.nvlink * traffic.gpus_per_node
        self._near = {
            near: (len(self._rates) + place, [d for d, v in enumerate(ground.nvlink) if v == near])
            for place, near in enumerate(sorted(set(ground.nvlink) - {NOWHERE}))
        }
        """By NVLink domain of several nodes: the link that stands for all links of its nodes, and
        the domains inside."""
        self.base = tuple(map(self._least, range(len(traffic.kinds))))
        """Seconds of a kind that no placement avoids."""
        nothing = (0.0,) * len(traffic.kinds)
        self.times = [nothing] * (len(self._rates) + len(self._near)) + [self.base]
        """Seconds by kind: of the uplinks of every domain, the busier direction; of the busiest
        nodes of every NVLink domain; and the least."""
        alike: dict[float, dict[Blocks, tuple[float, ...]]] = {}
        self._known = [alike.setdefault(rate, {}) for rate in self._rates]
        self._cuts: dict[Blocks, list[int]] = {}
        self._nodes: dict[Blocks, tuple[tuple[float, ...], float]] = {}
        self._routes: dict[tuple[int, int], tuple[int, ...]] = {}

    def _least(self, kind: int) -> float:
        """Return the seconds of NVLink inside blocks, and of NICs where NVLink ends at the node."""
        traffic, weight = self.traffic, self.traffic.weights[kind]
        least = max(traffic.inside[kind]) / self._nvlink
        if not self._near:
            for edges in traffic.adjacent:
                out = sum(edge[2] for edge in edges if edge[1] == kind)
                into = sum(edge[3] for edge in edges if edge[1] == kind)
                least = max(least, out / self.ground.tree.nic, into / self.ground.tree.nic)
        return weight * least

    @property
    def wide(self) -> bool:
        """Whether NVLink domains span nodes."""
        return bool(self._near)

    def put_all(self, cells: Sequence[int]) -> None:
        """Start anew with a whole assignment: the cell of every block."""
        self.held = [0] * len(self._rates)
        sitting: dict[int, Blocks] = {}
        for block, cell in enumerate(cells):
            sitting[cell] = sitting.get(cell, 0) | 1 << block
        for cell, blocks in sitting.items():
            for domain in self.ground.chains[cell]:
                self.held[domain] |= blocks
        self._weigh(range(len(self._rates)))

    def sitting(self, cell: int) -> Blocks:
        """Return the blocks in a cell."""
        return self.held[self.ground.chains[cell][-1]]

    def exchange(self, cell: int, other: int, blocks: Blocks) -> None:
        """Bring blocks that sit in one of two cells to the other one; twice changes nothing."""
        route = self.route(cell, other)
        for domain in route:
            self.held[domain] ^= blocks
        self._weigh(route)

    def promising(
        self, cell: int, other: int, choices: Iterable[Blocks], limit: float
    ) -> Iterator[Blocks]:
        """Yield the exchanges between two cells that may lower the cost or the squares.

        What the cells' own links take alone must not exceed `limit`; unless one of them is a
        hottest link, the cost cannot fall, so the squares must.
        """
        nvlink = self.ground.nvlink
        route = [(d, self.held[d]) for d in self.route(cell, other) if nvlink[d] in (NOWHERE, d)]
        near = [(self._near[d][0], held) for d, held in route if nvlink[d] == d]
        tops = [max(times) for times in self.by_kind()]
        links = [self.times[link] for link, _ in (*route, *near)]
        hot = bool(near) or any(
            t >= top > base
            for times in links
            for t, top, base in zip(times, tops, self.base, strict=True)
        )
        squares = sum(sum(map(mul, times, times)) for times in links)
        for blocks in choices:
            rows = [self._uplinks(domain, held ^ blocks) for domain, held in route]
            if near:
                rows += [self._node_times(held ^ blocks)[0] for _, held in near]
            elif not hot and sum(sum(map(mul, row, row)) for row in rows) >= squares:
                continue
            if sum(map(max, zip(self.base, *rows, strict=True))) <= limit:
                yield blocks

    def route(self, start: int, end: int) -> tuple[int, ...]:
        """Return the domains that hold one of two cells and not the other."""
        found = self._routes.get((start, end))
        if found is None:
            here, there = set(self.ground.chains[start]), set(self.ground.chains[end])
            found = self._routes[start, end] = tuple(sorted(here ^ there))
        return found

    def seconds(self) -> float:
        """Return the cost of the present assignment."""
        return float(sum(map(max, zip(*self.times, strict=True))))

    def by_kind(self) -> list[tuple[float, ...]]:
        """Return the seconds of all links, domains first, for every kind."""
        return list(zip(*self.times, strict=True))

    def uplink_bytes(self) -> float:
        """Return the exposed bytes over the most loaded uplink of every kind, added up."""
        busiest = (max(map(mul, times, self._rates), default=0.0) for times in self.by_kind())
        return float(sum(busiest))

    def squares(self) -> float:
        """Return the sum of the squared times of all links, to tell equal costs apart."""
        uplinks = sum(sum(map(mul, times, times)) for times in self.times)
        return uplinks + sum(self._node_times(self.held[near])[1] for near in self._near)

    @property
    def load(self) -> list[list[int]]:
        """Bytes by kind and uplink: of domain d, 2 d is the link out and 2 d + 1 the link in."""
        found = []
        for flows in self.traffic.flows:
            pairs = [crossing(flows, self.held[d], self._around(d)) for d in range(len(self.held))]
            found.append([nbytes for pair in pairs for nbytes in pair])
        return found

    def _around(self, domain: int) -> Blocks:
        """Return the blocks that a domain reaches without its uplinks: over NVLink, or inside."""
        near = self.ground.nvlink[domain]
        return self.held[domain if near == NOWHERE else near]

    def _weigh(self, domains: Sequence[int]) -> None:
        """Renew the times of domains whose blocks have changed."""
        for domain in domains:
            self.times[domain] = self._uplinks(domain, self.held[domain])
        if self._near:
            for near in {self.ground.nvlink[domain] for domain in domains} - {NOWHERE}:
                self._weigh_near(near)

    def _weigh_near(self, near: int) -> None:
        """Renew the times of the nodes of an NVLink domain, and of the uplinks inside it."""
        link, domains = self._near[near]
        around = self.held[near]
        self.times[link] = self._node_times(around)[0]
        for domain in domains:
            if domain != near:
                cut = self._cut(self.held[domain], around)
                self.times[domain] = self._seconds(cut, self._rates[domain])

    def _uplinks(self, domain: int, blocks: Blocks) -> tuple[float, ...]:
        """Return the seconds by kind of a domain's uplinks if it holds these blocks."""
        known = self._known[domain]
        found = known.get(blocks)
        if found is None:
            cut = self._cuts.get(blocks)
            if cut is None:
                cut = self._cuts[blocks] = self._cut(blocks, blocks)
            found = known[blocks] = self._seconds(cut, self._rates[domain])
        return found

    def _cut(self, blocks: Blocks, around: Blocks) -> list[int]:
        return [max(crossing(flows, blocks, around)) for flows in self.traffic.flows]

    def _seconds(self, nbytes: Sequence[int], rate: float) -> tuple[float, ...]:
        return tuple(w * n / rate for w, n in zip(self.traffic.weights, nbytes, strict=True))

    def _node_times(self, around: Blocks) -> tuple[tuple[float, ...], float]:
        """Return the seconds by kind of the busiest NICs or NVLink among nodes that NVLink joins.

        With it comes the sum of the squares of all of them.
        """
        if around in self._nodes:
            return self._nodes[around]
        nic, nvlink = self.ground.tree.nic, self._nvlink
        busiest, squares = [0.0] * len(self.traffic.kinds), 0.0
        for block, edges in enumerate(self.traffic.adjacent):
            if not around >> block & 1:
                continue
            far = [[0, 0] for _ in busiest]
            near = [[inside[block]] * 2 for inside in self.traffic.inside]
            for other, kind, out, into in edges:
                loads = (near if around >> other & 1 else far)[kind]
                loads[0] += out
                loads[1] += into
            for kind, weight in enumerate(self.traffic.weights):
                seconds = weight * max(max(far[kind]) / nic, max(near[kind]) / nvlink)
                busiest[kind] = max(busiest[kind], seconds)
                squares += seconds * seconds
        found = self._nodes[around] = tuple(busiest), squares
        return found


def crossing(flows: Sequence[Flow], blocks: Blocks, around: Blocks) -> tuple[int, int]:
    """Return the bytes from some blocks to all others but those around them, and back."""
    out = into = 0
    for flow in flows:
        sent, taken = blocks & flow.senders, blocks & flow.receivers
        if flow.shift > 0:
            to, since = sent << flow.shift, taken >> flow.shift
        else:
            to, since = sent >> -flow.shift, taken << -flow.shift
        out += flow.nbytes * (to & ~around).bit_count()
        into += flow.nbytes * (since & ~around).bit_count()
    return out, into


def cost_of(request: Request, snapshot: Snapshot, paths: Sequence[Path]) -> Cost:
    """Return the cost of node paths in order of rank block, and of an ideal network for them."""
    return Pricing(request, tree_of(snapshot)).cost(paths)


class Pricing:
    """The cost of any assignment of one request on one fabric."""

    def __init__(self, request: Request, tree: Tree):
        self.traffic = traffic_of(request)
        self.tree = tree

    def cost(self, paths: Sequence[Path]) -> Cost:
        """Return the cost of node paths in order of rank block."""
        cells = list(dict.fromkeys(path[:-1] for path in paths))
        index = {cell: number for number, cell in enumerate(cells)}
        congestion = Congestion(self.traffic, ground_of(self.tree, cells))
        congestion.put_all([index[path[:-1]] for path in paths])
        by_group = by_kind(congestion)
        return Cost(sum(by_group.values()), self.ideal(), by_group)

    def ideal(self) -> float:
        """Return the cost with all blocks in one nearest domain: only NICs and NVLink count.

        Where NVLink domains span nodes, blocks fill domains of the largest size in order.
        """
        depth = self.tree.nvlink_depth
        if depth is None:
            return sum(Congestion(self.traffic, ground_of(self.tree, [])).base)
        largest = max(
            (size for path, size in self.tree.sizes.items() if len(path) == depth), default=1
        )
        count = -(-self.traffic.blocks // largest)
        cells: list[Path] = [(f"domain {number}",) for number in range(count)]
        rates = dict.fromkeys(cells, float("inf"))
        levels = (self.tree.levels[depth - 1], self.tree.levels[-1])
        tree = Tree(levels, self.tree.links, rates, rates, dict.fromkeys(cells, largest))
        congestion = Congestion(self.traffic, ground_of(tree, cells))
        congestion.put_all([block // largest for block in range(self.traffic.blocks)])
        return congestion.seconds()


def by_kind(congestion: Congestion) -> Mapping[str, float]:
    """Return the exposed seconds of every kind of group."""
    return dict(zip(congestion.traffic.kinds, map(max, congestion.by_kind()), strict=True))
