"""The least cost that exists, by constraint programming (CP-SAT of OR-tools), with its proof.

Exact for the cost model: nodes of one nearest domain are alike, so `here[b, D]` says that block b
sits in nearest domain D; a domain above is the sum of those below it. `cut[e, D]` is one where edge
e leaves D, and `time[k]` bounds every link's load over its capacity from above. What no choice
changes (the interfaces and the NVLink of a block, unless NVLink spans nodes) is a floor. Times are
whole numbers of a ten-millionth of that floor, so an optimum is exact to about one in a million.

The search stops after a fixed amount of deterministic work, never of time, and runs on one thread:
the same case gives the same answer on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from ortools.sat.python import cp_model

from tests.support.placement.free_nodes import Path, by_domain
from tests.support.placement.problem import Edge, Flows, Problem

RESOLUTION = 10_000_000
"""Units in the floor of the cost."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The best order found, its cost, and the least cost that is not ruled out. Seconds."""

    order: tuple[Path, ...]
    seconds: float
    bound: float
    proven: bool


def solve(problem: Problem, work: float, start: Sequence[Path] = ()) -> Answer:
    """Minimise the cost. `work` is CP-SAT's deterministic time, roughly seconds of one core.

    `start` is a placement to begin from. Raises ValueError where the job does not fit.
    """
    model = _Model(problem)
    if start:
        model.begin_from(start)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    solver.parameters.max_deterministic_time = work
    solver.parameters.symmetry_level = 3
    status = solver.solve(model.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise ValueError(f"no placement found: {solver.status_name(status)}")
    order = model.order(solver)
    return Answer(
        order,
        problem.seconds(order),
        solver.best_objective_bound * model.unit,
        status == cp_model.OPTIMAL,
    )


def brute_force(problem: Problem) -> Answer:
    """Try every injective map of blocks to nodes; for a handful of nodes only."""
    best = min(permutations(problem.rooms, problem.blocks), key=problem.seconds)
    seconds = problem.seconds(best)
    return Answer(best, seconds, seconds, True)


class _Model:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.model = cp_model.CpModel()
        self.leaves = by_domain(problem.rooms, len(problem.rooms[0]) - 1)
        blocks = range(problem.blocks)
        self.here = {
            (block, leaf): self.model.new_bool_var(f"block {block} in {leaf}")
            for block in blocks
            for leaf in self.leaves
        }
        for block in blocks:
            self.model.add_exactly_one(self.here[block, leaf] for leaf in self.leaves)
        for leaf, nodes in self.leaves.items():
            self.model.add(sum(self.here[block, leaf] for block in blocks) <= len(nodes))
        self.cuts: dict[tuple[Edge, Path], cp_model.IntVar] = {}
        self.nears: dict[Edge, cp_model.IntVar] = {}
        self.wide = problem.nvlink_depth < len(problem.rooms[0])
        self.unit = max(1e-12, sum(map(self._floor, problem.flows))) / RESOLUTION
        self.model.minimize(sum(self._time(kind) for kind in problem.flows))

    def _floor(self, kind: str) -> float:
        """Return exposed seconds that every placement takes: what a block's own links carry."""
        problem = self.problem
        rate = max(problem.nvlink, problem.interface) if self.wide else problem.interface
        links: Counter[tuple[str, int]] = Counter()
        for (source, target), amount in problem.flows[kind].items():
            if source == target:
                links["inside", source] += amount / problem.nvlink  # type: ignore[assignment]
            else:
                links["out", source] += amount / rate  # type: ignore[assignment]
                links["in", target] += amount / rate  # type: ignore[assignment]
        return problem.exposed[kind] * max(links.values(), default=0.0)

    def _time(self, kind: str) -> cp_model.IntVar:
        """Return the kind's exposed time in units, held above the load of every link."""
        problem = self.problem
        flows = {e: problem.exposed[kind] * n / self.unit for e, n in problem.flows[kind].items()}
        slowest = min([*problem.uplink.values(), problem.interface, problem.nvlink])
        limit = round(sum(flows.values()) / slowest) + len(flows) + 1
        least = round(self._floor(kind) / self.unit)
        time = self.model.new_int_var(least, max(least, limit), f"time of {kind}")
        between = {edge: amount for edge, amount in flows.items() if edge[0] != edge[1]}
        ways = (0,) if _balanced(between) else (0, 1)
        for depth in range(1, len(problem.rooms[0])):
            domains = by_domain(self.leaves, depth)
            for domain in domains if len(domains) > 1 else ():
                for way in ways:
                    load = [
                        round(amount / problem.uplink[domain])
                        * self._cut(edge if way == 0 else edge[::-1], domain)
                        for edge, amount in between.items()
                    ]
                    self.model.add(sum(load) <= time)
        if self.wide:
            self._nodes(time, flows)
        return time

    def _nodes(self, time: cp_model.IntVar, flows: Flows) -> None:
        """Where NVLink spans nodes: every edge is on NVLink or on the interfaces of its ends."""
        problem = self.problem
        for block in range(problem.blocks):
            for end in (0, 1):
                mine = [edge for edge in flows if edge[end] == block]
                near = [round(flows[e] / problem.nvlink) * self._near(e) for e in mine]
                far = [round(flows[e] / problem.interface) * (1 - self._near(e)) for e in mine]
                self.model.add(sum(near) <= time)
                self.model.add(sum(far) <= time)

    def _cut(self, edge: Edge, domain: Path) -> cp_model.IntVar:
        """Return a variable that is one where the edge leaves the domain over the network."""
        if (edge, domain) not in self.cuts:
            cut = self.cuts[edge, domain] = self.model.new_bool_var(f"{edge} leaves {domain}")
            inside, outside = (self._inside(block, domain) for block in edge)
            near = self._near(edge) if self.wide else 0
            self.model.add(cut >= inside - outside - near)
        return self.cuts[edge, domain]

    def _near(self, edge: Edge) -> cp_model.LinearExprT:
        """Return one where both ends sit in one NVLink domain, zero where they do not."""
        low, high = sorted(edge)
        if low == high:
            return 1
        if (low, high) not in self.nears:
            both = []
            for domain in by_domain(self.leaves, self.problem.nvlink_depth):
                here, there = self._inside(low, domain), self._inside(high, domain)
                together = self.model.new_bool_var(f"{low} and {high} in {domain}")
                self.model.add(together <= here)
                self.model.add(together <= there)
                self.model.add(together >= here + there - 1)
                both.append(together)
            near = self.nears[low, high] = self.model.new_bool_var(f"{low} near {high}")
            self.model.add(sum(both) == near)
        return self.nears[low, high]

    def _inside(self, block: int, domain: Path) -> cp_model.LinearExprT:
        depth = len(domain)
        return sum(self.here[block, leaf] for leaf in self.leaves if leaf[:depth] == domain)

    def begin_from(self, start: Sequence[Path]) -> None:
        for (block, leaf), variable in self.here.items():
            self.model.add_hint(variable, start[block][:-1] == leaf)

    def order(self, solver: cp_model.CpSolver) -> tuple[Path, ...]:
        """Return a node of the chosen domain for every block: the first ones left."""
        left = {leaf: list(nodes) for leaf, nodes in self.leaves.items()}
        order = []
        for block in range(self.problem.blocks):
            leaf = next(leaf for leaf in self.leaves if solver.value(self.here[block, leaf]))
            order.append(left[leaf].pop(0))
        return tuple(order)


def _balanced(flows: Flows) -> bool:
    """Whether every block sends what it receives: then every domain does, however it is cut."""
    net: Counter[int] = Counter()
    for (source, target), amount in flows.items():
        net[source] += amount  # type: ignore[assignment]
        net[target] -= amount  # type: ignore[assignment]
    return all(abs(each) <= 1e-9 * max(flows.values(), default=0.0) for each in net.values())
