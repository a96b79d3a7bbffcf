"""The cost of a placement: the communication time of one step on the most loaded links.

For every kind of group k and every link l

    time_k = max over l of load_kl / capacity_l        seconds of the traffic of k alone
    cost   = sum over k of exposed_k time_k

Loads are bytes of one step and direction. An edge between two blocks, unless both are in one NVLink
domain, loads the sender's NICs (out), the receiver's NICs (in), and the uplink of every domain that
it leaves (out) or enters (in). Inside an NVLink domain it loads NVLink of both nodes (all GPUs of a
block together), as do the edges inside a block. The phases of the kinds follow one another: tensor
traffic of a layer ends before its gradients are sent. The sum of maxima is a lower bound that real
transports reach to 85 to 92 % (measured on shaped links).

`Congestion` keeps the loads of one assignment and updates only the few domains that a change
affects. Bytes are integers, so loads stay exact for any order of changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import mul

from llmtrain_core.placement.traffic.flows import Blocks, Traffic, blocks_far, crossing, traffic_of
from llmtrain_core.placement.tree import Path, Tree, tree_of
from llmtrain_core.placement.types import PlacementCost, Request
from llmtrain_core.topology.inventory import Snapshot

NOWHERE = -1
"""The NVLink domain of a domain that is in none."""
BlocksByTraffic = dict[tuple[int, ...], Blocks]
"""Blocks by traffic: bytes out and in, and the part of these that uses their NICs."""
TIE = 1e-9
"""Relative difference below which two costs are the same."""


@dataclass(frozen=True, slots=True)
class LinkIndex:
    """Leaf domains, whose nodes are interchangeable, and the links of all domains above them."""

    tree: Tree
    leaves: tuple[Path, ...]
    """Path of every leaf domain, from far to near, without the node. Paths are unique."""
    domains: tuple[Path, ...]
    domain_paths: tuple[tuple[int, ...], ...]
    """Domains of every leaf domain from far to near, as indices of `domains`."""
    nvlink: tuple[int, ...]
    """NVLink domain, as an index of `domains`, that is or contains a domain; `NOWHERE` for none."""


def build_link_index(tree: Tree, leaves: Sequence[Path]) -> LinkIndex:
    """Number the domains of some leaf domains."""
    index: dict[Path, int] = {}
    domain_paths = []
    for leaf in leaves:
        prefixes = (leaf[:depth] for depth in range(1, len(leaf) + 1))
        domain_paths.append(tuple(index.setdefault(prefix, len(index)) for prefix in prefixes))
    depth = tree.nvlink_depth
    nvlink = tuple(
        NOWHERE if depth is None or len(path) < depth else index[path[:depth]] for path in index
    )
    return LinkIndex(tree, tuple(leaves), tuple(index), tuple(domain_paths), nvlink)


class Congestion:
    """Loads of all links under one assignment of blocks to leaf domains, in weighted seconds.

    The traffic that leaves a domain depends only on the set of blocks in it. So an assignment is
    one set of blocks for every domain, and the times of sets are cached.
    """

    def __init__(self, traffic: Traffic, link_index: LinkIndex):
        self.traffic = traffic
        self.link_index = link_index
        self.domain_blocks: list[Blocks] = [0] * len(link_index.domains)
        """Blocks in every domain."""
        self._rates = [link_index.tree.uplinks[domain] for domain in link_index.domains]
        self._nvlink = link_index.tree.links.nvlink_rate_per_gpu * traffic.gpus_per_node
        self._nvlink_domains = {
            domain: (
                len(self._rates) + place,
                [d for d, v in enumerate(link_index.nvlink) if v == domain],
            )
            for place, domain in enumerate(sorted(set(link_index.nvlink) - {NOWHERE}))
        }
        """By NVLink domain of several nodes: the link that represents all links of its nodes, and
        the domains inside."""
        self.base = self._minimum()
        """Minimum seconds by kind, which every placement has."""
        nothing = (0.0,) * len(traffic.kinds)
        self.times = [nothing] * (len(self._rates) + len(self._nvlink_domains)) + [self.base]
        """Seconds by kind: of the uplinks of every domain, in the busier direction; of the busiest
        nodes of every NVLink domain; and the minimum."""
        alike: dict[float, dict[Blocks, tuple[float, ...]]] = {}
        self._known = [alike.setdefault(rate, {}) for rate in self._rates]
        self._cuts: dict[Blocks, list[int]] = {}
        self._nodes: dict[Blocks, tuple[tuple[float, ...], float]] = {}
        self._separate_domains: dict[tuple[int, int], tuple[int, ...]] = {}
        self._busiest_times: tuple[float, ...] | None = None
        self._most = 2 * max(map(len, link_index.domain_paths), default=0) + 3
        self._leaders: list[list[tuple[float, int]]] | None = None
        """By kind: seconds and link of the busiest links, rising; more than an exchange affects."""

    def _minimum(self) -> tuple[float, ...]:
        """Return the seconds of NVLink inside blocks, and of NICs where NVLink ends at the node."""
        traffic, rate = self.traffic, self.link_index.tree.node_rate
        found = []
        for kind, weight in enumerate(traffic.weights):
            least = max(traffic.inside[kind]) / self._nvlink
            if not self._nvlink_domains:
                least = max(least, traffic.most_between_blocks[kind] / rate)
            found.append(weight * least)
        return tuple(found)

    @property
    def wide(self) -> bool:
        """Whether NVLink domains span nodes."""
        return bool(self._nvlink_domains)

    def assign_all(self, leaves: Sequence[int]) -> None:
        """Load a whole assignment: the leaf domain of every block."""
        domain_blocks = [0] * len(self._rates)
        blocks_in: dict[int, Blocks] = {}
        for block, leaf in enumerate(leaves):
            blocks_in[leaf] = blocks_in.get(leaf, 0) | 1 << block
        for leaf, blocks in blocks_in.items():
            for domain in self.link_index.domain_paths[leaf]:
                domain_blocks[domain] |= blocks
        changed = [
            d
            for d, pair in enumerate(zip(domain_blocks, self.domain_blocks, strict=True))
            if any(pair)
        ]
        self.domain_blocks = domain_blocks
        self._update_times(changed)

    def blocks_in(self, leaf: int) -> Blocks:
        """Return the blocks in a leaf domain."""
        return self.domain_blocks[self.link_index.domain_paths[leaf][-1]]

    def exchange(self, leaf: int, other: int, blocks: Blocks) -> None:
        """Move blocks of two leaf domains to the respective other one. Twice changes nothing."""
        domains = self.separate_domains(leaf, other)
        for domain in domains:
            self.domain_blocks[domain] ^= blocks
        self._update_times(domains)

    def improving_swaps(
        self, leaf: int, other: int, choices: Iterable[Blocks], limit: float
    ) -> Iterator[Blocks]:
        """Yield the exchanges between two leaf domains that cost less than `limit`.

        Exchanges of equal cost are included if the sum of squares falls. Domains inside an NVLink
        domain are ignored, so the caller must check the cost after an exchange.
        """
        nvlink = self.link_index.nvlink
        separate = [(d, self.domain_blocks[d]) for d in self.separate_domains(leaf, other)]
        uplinks = [(d, inside) for d, inside in separate if nvlink[d] in (NOWHERE, d)]
        whole = [(self._nvlink_domains[d][0], inside) for d, inside in uplinks if nvlink[d] == d]
        links = [*(domain for domain, _ in uplinks), *(link for link, _ in whole)]
        rest = self._without(links)
        squares = sum(sum(map(mul, self.times[link], self.times[link])) for link in links)
        squares += sum(self._node_times(inside)[1] for _, inside in whole)
        low, squares = limit * (1 - TIE), squares * (1 - TIE)
        for blocks in choices:
            rows = [self._uplinks(domain, inside ^ blocks) for domain, inside in uplinks]
            rows += [self._node_times(inside ^ blocks)[0] for _, inside in whole]
            seconds = sum(map(max, zip(rest, *rows, strict=True)))
            if seconds < low:
                yield blocks
            elif seconds <= limit * (1 + TIE):
                now = sum(sum(map(mul, row, row)) for row in rows)
                now += sum(self._node_times(inside ^ blocks)[1] for _, inside in whole)
                if now < squares:
                    yield blocks

    def _without(self, links: Sequence[int]) -> tuple[float, ...]:
        """Return the seconds by kind of the busiest link that is not in `links`."""
        if self._leaders is None:
            everything, most = range(len(self.times)), -self._most
            self._leaders = [
                [(times[link], link) for link in sorted(everything, key=times.__getitem__)[most:]]
                for times in self.by_kind()
            ]
        return tuple(
            next(time for time, link in reversed(leaders) if link not in links)
            for leaders in self._leaders
        )

    def separate_domains(self, start: int, end: int) -> tuple[int, ...]:
        """Return the domains that contain exactly one of two leaf domains."""
        found = self._separate_domains.get((start, end))
        if found is None:
            here, there = (
                set(self.link_index.domain_paths[start]),
                set(self.link_index.domain_paths[end]),
            )
            found = self._separate_domains[start, end] = tuple(sorted(here ^ there))
        return found

    def seconds(self) -> float:
        """Return the cost of the current assignment."""
        return float(sum(self.busiest_times()))

    def without_uplinks(self) -> float:
        """Return the cost of the current assignment with unlimited uplinks."""
        nodes = self.times[len(self._rates) :]
        return float(sum(map(max, zip(self.base, *nodes, strict=True))))

    def busiest_times(self) -> tuple[float, ...]:
        """Return the seconds of the busiest link of every kind."""
        if self._busiest_times is None:
            self._busiest_times = tuple(map(max, zip(*self.times, strict=True)))
        return self._busiest_times

    def by_kind(self) -> list[tuple[float, ...]]:
        """Return the seconds of all links, domains first, for every kind."""
        return list(zip(*self.times, strict=True))

    def uplink_bytes(self) -> float:
        """Return the exposed bytes over the most loaded uplink of every kind, added up."""
        busiest = (max(map(mul, times, self._rates), default=0.0) for times in self.by_kind())
        return float(sum(busiest))

    def sum_of_squares(self) -> float:
        """Return the sum of squared times of all links, to compare assignments of equal cost."""
        uplinks = sum(sum(map(mul, times, times)) for times in self.times)
        return uplinks + sum(
            self._node_times(self.domain_blocks[d])[1] for d in self._nvlink_domains
        )

    @property
    def load(self) -> list[list[int]]:
        """Bytes by kind and uplink: of domain d, 2 d is the link out and 2 d + 1 the link in."""
        found = []
        for flows in self.traffic.flows:
            pairs = [
                crossing(flows, self.domain_blocks[d], self._around(d))
                for d in range(len(self.domain_blocks))
            ]
            found.append([nbytes for pair in pairs for nbytes in pair])
        return found

    def _around(self, domain: int) -> Blocks:
        """Return the blocks that a domain reaches without its uplinks: inside, or over NVLink."""
        nvlink_domain = self.link_index.nvlink[domain]
        return self.domain_blocks[domain if nvlink_domain == NOWHERE else nvlink_domain]

    def _update_times(self, domains: Sequence[int]) -> None:
        """Update the times of domains whose blocks have changed."""
        self._busiest_times = self._leaders = None
        for domain in domains:
            self.times[domain] = self._uplinks(domain, self.domain_blocks[domain])
        if self._nvlink_domains:
            for nvlink_domain in {self.link_index.nvlink[domain] for domain in domains} - {NOWHERE}:
                self._update_nvlink_times(nvlink_domain)

    def _update_nvlink_times(self, nvlink_domain: int) -> None:
        """Update the times of the nodes of an NVLink domain, and of the uplinks inside it."""
        link, domains = self._nvlink_domains[nvlink_domain]
        around = self.domain_blocks[nvlink_domain]
        self.times[link] = self._node_times(around)[0]
        for domain in domains:
            if domain != nvlink_domain:
                cut = self._cut(self.domain_blocks[domain], around)
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
        """Return the seconds by kind of the busiest NICs or NVLink of nodes in an NVLink domain.

        The second value is the sum of squares over all of them.
        """
        found = self._nodes.get(around)
        if found is not None:
            return found
        rate, nvlink = self.link_index.tree.node_rate, self._nvlink
        busiest, squares = [], 0.0
        for kind, weight in enumerate(self.traffic.weights):
            top = 0.0
            for (whole_out, whole_in, out, into), blocks in self._blocks_by_traffic(
                kind, around
            ).items():
                over_nvlink = max(whole_out - out, whole_in - into)
                seconds = weight * max(out / rate, into / rate, over_nvlink / nvlink)
                top = max(top, seconds)
                squares += blocks.bit_count() * seconds * seconds
            busiest.append(top)
        found = self._nodes[around] = tuple(busiest), squares
        return found

    def _blocks_by_traffic(self, kind: int, around: Blocks) -> BlocksByTraffic:
        """Group blocks of an NVLink domain by traffic: total out and in, then over NICs."""
        groups: BlocksByTraffic = {
            (*total, 0, 0): blocks & around
            for total, blocks in self.traffic.totals[kind].items()
            if blocks & around
        }
        for flow in self.traffic.flows[kind]:
            sent, taken = blocks_far(flow, around)
            for place, far in ((2, sent), (3, taken)):
                if far:
                    groups = _add_bytes(groups, far, place, flow.nbytes)
        return groups


def _add_bytes(groups: BlocksByTraffic, far: Blocks, place: int, nbytes: int) -> BlocksByTraffic:
    """Add bytes to one traffic count of some blocks."""
    found: BlocksByTraffic = {}
    for loads, blocks in groups.items():
        more = (*loads[:place], loads[place] + nbytes, *loads[place + 1 :])
        for key, part in ((more, blocks & far), (loads, blocks & ~far)):
            if part:
                found[key] = found.get(key, 0) | part
    return found


def cost_of(request: Request, snapshot: Snapshot, paths: Sequence[Path]) -> PlacementCost:
    """Return the cost of node paths in order of rank block, and of an ideal network for them."""
    return CostModel(request, tree_of(snapshot)).cost(paths)


class CostModel:
    """The cost of any assignment of one request on one fabric."""

    def __init__(self, request: Request, tree: Tree):
        self.traffic = traffic_of(request.layout, request.gpus_per_node, request.traffic)
        self.tree = tree
        self._loaded: tuple[Sequence[Path], Congestion] | None = None

    def cost(self, paths: Sequence[Path]) -> PlacementCost:
        """Return the cost of node paths in order of rank block."""
        congestion = self.congestion(paths)
        by_group = by_kind(congestion)
        return PlacementCost(
            sum(by_group.values()), min(self.ideal(), congestion.without_uplinks()), by_group
        )

    def congestion(self, paths: Sequence[Path]) -> Congestion:
        """Return the loads under node paths in order of rank block. Do not change the result."""
        if self._loaded is not None and self._loaded[0] == paths:
            return self._loaded[1]
        leaves = list(dict.fromkeys(path[:-1] for path in paths))
        index = {leaf: number for number, leaf in enumerate(leaves)}
        congestion = Congestion(self.traffic, build_link_index(self.tree, leaves))
        congestion.assign_all([index[path[:-1]] for path in paths])
        self._loaded = (paths, congestion)
        return congestion

    def ideal(self) -> float:
        """Return the cost with all blocks in one nearest domain: only NICs and NVLink count.

        Where NVLink domains span nodes, blocks fill domains of the largest size in order, or each
        block is alone in a domain: NICs can be faster than NVLink.
        """
        depth = self.tree.nvlink_depth
        if depth is None:
            return sum(Congestion(self.traffic, build_link_index(self.tree, [])).base)
        sizes = (size for path, size in self.tree.sizes.items() if len(path) == depth)
        return min(self._joined(depth, size) for size in {max(sizes, default=1), 1})

    def _joined(self, depth: int, size: int) -> float:
        """Return the cost in NVLink domains of a size, filled in order, with unlimited uplinks."""
        blocks = range(self.traffic.blocks)
        leaves: list[Path] = [(f"domain {number}",) for number in range(-(-len(blocks) // size))]
        rates = dict.fromkeys(leaves, float("inf"))
        levels = (self.tree.levels[depth - 1], self.tree.levels[-1])
        tree = Tree(levels, self.tree.links, rates, rates, dict.fromkeys(leaves, size))
        congestion = Congestion(self.traffic, build_link_index(tree, leaves))
        congestion.assign_all([block // size for block in blocks])
        return congestion.seconds()


def by_kind(congestion: Congestion) -> Mapping[str, float]:
    """Return the exposed seconds of every kind of group."""
    return dict(zip(congestion.traffic.kinds, congestion.busiest_times(), strict=True))
