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

`Congestion` keeps the loads of one assignment and follows it block by block: placing or lifting a
block costs its few edges, not the whole job. Bytes are whole numbers, so loads stay exact whatever
the order of changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

from llmtrain_core.layout import Dimension
from llmtrain_core.placement.graph import block_edges
from llmtrain_core.placement.tree import Path, Tree, tree_of
from llmtrain_core.placement.types import Cost, Request
from llmtrain_core.topology.inventory import Snapshot

NOWHERE = -1
"""The cell of a block that is not placed yet."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where blocks can sit: cells, nearest domains whose nodes are all alike, and their links.

    Links are numbered: domain d has link 2 d out and 2 d + 1 in.
    """

    tree: Tree
    cells: tuple[Path, ...]
    """Path of every cell, from far to near, without the node; no two are equal."""
    domains: tuple[Path, ...]
    chains: tuple[tuple[int, ...], ...]
    """Domains of every cell from far to near, as indices of `domains`."""
    nvlink: tuple[int, ...]
    """Domain of every cell that is one NVLink domain; -1 where NVLink ends at the node."""

    @property
    def wide(self) -> bool:
        """Whether some NVLink domain spans nodes."""
        return any(domain >= 0 for domain in self.nvlink)


def ground_of(tree: Tree, cells: Sequence[Path]) -> Ground:
    """Number the domains of some cells."""
    index: dict[Path, int] = {}
    chains = []
    for cell in cells:
        prefixes = (cell[:depth] for depth in range(1, len(cell) + 1))
        chains.append(tuple(index.setdefault(prefix, len(index)) for prefix in prefixes))
    depth = tree.nvlink_depth
    nvlink = tuple(-1 if depth is None else chain[depth - 1] for chain in chains)
    return Ground(tree, tuple(cells), tuple(index), tuple(chains), nvlink)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The edges of a job between its blocks, ready to be added up."""

    kinds: tuple[Dimension, ...]
    weights: tuple[float, ...]
    """Exposed share by kind."""
    adjacent: tuple[tuple[tuple[int, int, int, int], ...], ...]
    """By block: (other block, kind, bytes to it, bytes from it)."""
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
        tuple(map(tuple, inside)),
        request.gpus_per_node,
    )


class Congestion:
    """Loads of all links under one assignment of blocks to cells. Times are weighted seconds."""

    def __init__(self, traffic: Traffic, ground: Ground):
        self.traffic = traffic
        self.ground = ground
        self.cells = [NOWHERE] * traffic.blocks
        self.wide = ground.wide
        tree, links = ground.tree, 2 * len(ground.domains)
        self._nic = links
        """First of the links of blocks, if NVLink domains span nodes: NICs out and in, NVLink out
        and in, of every block."""
        rates = [tree.uplinks[domain] for domain in ground.domains for _ in range(2)]
        nvlink = tree.links.nvlink * traffic.gpus_per_node
        if self.wide:
            rates += [tree.nic, tree.nic, nvlink, nvlink] * traffic.blocks
        self.base = [self._least(kind, nvlink) for kind in range(len(traffic.kinds))]
        """Seconds of a kind that no placement avoids."""
        self.inverse = [[weight / rate for rate in rates] for weight in traffic.weights]
        self.load = [[0] * len(rates) for _ in traffic.kinds]
        self.time = [[0.0] * (len(rates) + 1) for _ in traffic.kinds]
        for kind, base in enumerate(self.base):
            self.time[kind][-1] = base
        if self.wide:
            self._start_nvlink()
        self._routes: dict[tuple[int, int], tuple[int, ...]] = {}

    def _least(self, kind: int, nvlink: float) -> float:
        """Return the seconds of NVLink inside blocks, and of NICs where NVLink ends at the node."""
        traffic, weight = self.traffic, self.traffic.weights[kind]
        least = max(traffic.inside[kind]) / nvlink
        if not self.wide:
            for edges in traffic.adjacent:
                out = sum(edge[2] for edge in edges if edge[1] == kind)
                into = sum(edge[3] for edge in edges if edge[1] == kind)
                least = max(least, out / self.ground.tree.nic, into / self.ground.tree.nic)
        return weight * least

    def _start_nvlink(self) -> None:
        """Load every node's NVLink, both ways, with what never leaves its block."""
        for kind, inside in enumerate(self.traffic.inside):
            for block, nbytes in enumerate(inside):
                for link in (self._nic + 4 * block + 2, self._nic + 4 * block + 3):
                    self.load[kind][link] = nbytes
                    self.time[kind][link] = nbytes * self.inverse[kind][link]

    def route(self, start: int, end: int) -> tuple[int, ...]:
        """Return the uplinks between two cells in one direction: out of start, into end."""
        found = self._routes.get((start, end))
        if found is None:
            here, there = self.ground.chains[start], self.ground.chains[end]
            out = [2 * domain for domain in here if domain not in there]
            into = [2 * domain + 1 for domain in there if domain not in here]
            found = self._routes[start, end] = (*out, *into)
        return found

    def put(self, block: int, cell: int) -> None:
        """Place a block that is nowhere yet."""
        self._shift(block, cell, 1)
        self.cells[block] = cell

    def lift(self, block: int) -> int:
        """Take a block away; return the cell where it was."""
        cell = self.cells[block]
        self.cells[block] = NOWHERE
        self._shift(block, cell, -1)
        return cell

    def put_all(self, cells: Sequence[int]) -> None:
        """Start anew with a whole assignment."""
        for block, cell in enumerate(self.cells):
            if cell != cells[block] and cell != NOWHERE:
                self.lift(block)
        for block, cell in enumerate(cells):
            if self.cells[block] != cell:
                self.put(block, cell)

    def seconds(self) -> float:
        """Return the cost of the present assignment."""
        return sum(map(max, self.time))

    def uplink_bytes(self) -> float:
        """Return the exposed bytes over the most loaded uplink of every kind, added up."""
        links = 2 * len(self.ground.domains)
        weighted = zip(self.traffic.weights, self.load, strict=True)
        return sum(weight * max(load[:links], default=0) for weight, load in weighted)

    def squares(self) -> float:
        """Return the sum of the squared times of all links, to tell equal costs apart."""
        return sum(sum(map(mul, times, times)) for times in self.time)

    def _shift(self, block: int, cell: int, sign: int) -> None:
        cells, load, time, inverse = self.cells, self.load, self.time, self.inverse
        if self.wide:
            self._shift_nodes(block, cell, sign)
        for other, kind, out, into in self.traffic.adjacent[block]:
            there = cells[other]
            if there == cell or there < 0 or (self.wide and self._near(cell, there)):
                continue
            loads, times, factors = load[kind], time[kind], inverse[kind]
            if out:
                for link in self.route(cell, there):
                    loads[link] += sign * out
                    times[link] = loads[link] * factors[link]
            if into:
                for link in self.route(there, cell):
                    loads[link] += sign * into
                    times[link] = loads[link] * factors[link]

    def _near(self, cell: int, there: int) -> bool:
        domain = self.ground.nvlink[cell]
        return domain >= 0 and domain == self.ground.nvlink[there]

    def _shift_nodes(self, block: int, cell: int, sign: int) -> None:
        """Load the NICs or the NVLink of both ends of every edge of a block."""
        for other, kind, out, into in self.traffic.adjacent[block]:
            there = self.cells[other]
            if there < 0:
                continue
            first = self._nic + (2 if self._near(cell, there) else 0)
            here, far = first + 4 * block, first + 4 * other
            pairs = ((here, out), (far + 1, out), (here + 1, into), (far, into))
            for link, nbytes in pairs:
                self.load[kind][link] += sign * nbytes
                self.time[kind][link] = self.load[kind][link] * self.inverse[kind][link]


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
    return dict(zip(congestion.traffic.kinds, map(max, congestion.time), strict=True))
