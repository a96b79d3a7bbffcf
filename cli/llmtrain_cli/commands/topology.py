"""`llmtrain topology`: the tree of the network, what is free in it, and which job sits where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain_cli.commands.place import FabricOption, NodesOption, PodsOption, ranks_text
from llmtrain_cli.errors import CliError
from llmtrain_cli.io.assigned_nodes import Moved, Seat, is_gpu, moved, seats_of
from llmtrain_cli.io.cluster_view import Sources, View, look
from llmtrain_cli.io.output import Output, OutputOption, bar, bullets, rendered, show
from llmtrain_core.api.conditions import clean_text
from llmtrain_core.placement.tree import natural
from llmtrain_core.topology.findings import Finding, findings, sentences
from llmtrain_core.topology.inventory import Node, Snapshot

if TYPE_CHECKING:
    from rich.tree import Tree

MOST_LINES = 64
"""Domains or nodes of one level that the text draws by default."""
GPU_BAR = 8
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Map:
    """Everything that the command shows."""

    snapshot: Snapshot
    paths: Mapping[str, Path]
    """By node, in natural order of the paths."""
    seats: Sequence[Seat]
    moved: Mapping[str, Sequence[Moved]]
    """By job."""
    findings: Sequence[Finding]

    @classmethod
    def of(cls, view: View) -> Map:
        """Put pods and jobs onto the tree."""
        state = view.snapshot
        paths = {node.name: state.path(node) for node in state.nodes}
        changed = {
            f"{job['metadata'].get('namespace', 'default')}/{job['metadata']['name']}": found
            for job in view.jobs
            if (found := list(moved(job, state)))
        }
        ordered = dict(sorted(paths.items(), key=lambda item: natural(item[1])))
        return cls(state, ordered, seats_of(view.pods), changed, findings(state))

    def by_node(self) -> dict[str, list[Seat]]:
        """Return the seats of every node that has one."""
        found: dict[str, list[Seat]] = {}
        for seat in self.seats:
            found.setdefault(seat.node, []).append(seat)
        return found

    @property
    def strays(self) -> list[str]:
        """Nodes that pods name and the list of nodes lacks."""
        return _sorted({seat.node for seat in self.seats} - set(self.paths))

    def gpus(self, node: Node) -> tuple[int, int]:
        """Return GPUs in use and in all of a node."""
        names = [name for name in node.allocatable if is_gpu(name)]
        total = sum(node.allocatable[name] for name in names)
        return total - sum(self.snapshot.free(node, name) for name in names), total


def command(
    nodes: NodesOption = None,
    pods: PodsOption = None,
    jobs: Annotated[
        str | None, typer.Option(help="jobs, to compare labels: kubectl get ltj -A -o json")
    ] = None,
    fabric: FabricOption = None,
    depth: Annotated[
        str | None, typer.Option(help="nearest level to draw, for example leaf or node")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Draw the network's tree with the jobs on it. Exit code 2 on bad input.

    With --nodes no cluster is needed; without, everything is read with kubectl.
    """
    view = look(Sources(nodes, pods, jobs, fabric), with_jobs=True)
    try:
        chart = Map.of(view)
    except (KeyError, TypeError, AttributeError) as error:
        raise CliError(
            f"--pods, --jobs: an object is not as kubectl prints it: {error!r};"
            " print the list with kubectl get -o json"
        ) from error
    show(to_wire(chart), topology_text(chart, _depth(chart, depth)), output)


def _depth(chart: Map, asked: str | None) -> int:
    """Return how many levels to draw: those asked for, else as many as stay readable."""
    names = [level.name for level in chart.snapshot.levels]
    if asked is not None:
        if asked not in names:
            raise CliError(f"--depth {asked}: no such level; use one of " + ", ".join(names))
        return names.index(asked) + 1
    for depth in range(len(names), 1, -1):
        if len({path[:depth] for path in chart.paths.values()}) <= MOST_LINES:
            return depth
    return 1


def to_wire(chart: Map) -> dict[str, Any]:
    """Return the JSON of the command."""
    names = [level.name for level in chart.snapshot.levels]
    by_node = chart.by_node()
    nodes = {node.name: node for node in chart.snapshot.nodes}
    listed = []
    for name, path in chart.paths.items():
        used, total = chart.gpus(nodes[name])
        listed.append(
            {
                "name": name,
                "path": dict(zip(names, path, strict=True)),
                "gpus": {"total": total, "used": used},
                "state": _state(nodes[name]),
                "seats": [{"job": s.job, "ranks": list(s.ranks)} for s in by_node.get(name, ())],
            }
        )
    return {
        "levels": [
            {
                "name": level.name,
                "nodeLabel": level.node_label,
                "oversubscription": level.oversubscription,
                "nvlink": level.nvlink,
            }
            for level in chart.snapshot.levels
        ],
        "nodes": listed,
        "jobs": [_job_wire(chart, names, job) for job in _jobs(chart)],
        "unknownNodes": chart.strays,
        "findings": [finding.to_wire() for finding in chart.findings],
    }


def _job_wire(chart: Map, names: Sequence[str], job: str) -> dict[str, Any]:
    used = [chart.paths[s.node] for s in chart.seats if s.job == job and s.node in chart.paths]
    return {
        "job": job,
        "ranks": sum(len(seat.ranks) for seat in chart.seats if seat.job == job),
        "domains": {
            name: len({path[: depth + 1] for path in used}) for depth, name in enumerate(names)
        },
        "moved": [
            {"node": m.node, "placed": m.placed, "now": m.now} for m in chart.moved.get(job, ())
        ],
    }


def _jobs(chart: Map) -> list[str]:
    return _sorted({seat.job for seat in chart.seats} | set(chart.moved))


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: natural((name,)))


def _state(node: Node) -> str:
    if not node.ready:
        return "not ready"
    return "cordoned" if node.cordoned else "ready"


def topology_text(chart: Map, depth: int) -> str:
    """Draw the tree down to a level, then the jobs, then what is wrong with the labels."""
    lines: list[str] = []
    if not chart.paths:
        lines.append("no nodes")
    for tree in _trees(chart, depth):
        lines.append(rendered(tree))
    lines += ["", *_job_lines(chart)]
    notes = sentences(chart.findings)
    if chart.strays:
        notes.append("pods sit on nodes that the list lacks: " + ", ".join(chart.strays))
    if notes:
        lines += ["", "LABELS AND NODES TO LOOK AT", *bullets([clean_text(n) for n in notes])]
    return "\n".join(lines).rstrip()


def _trees(chart: Map, depth: int) -> Iterator[Tree]:
    """Build one tree per farthest domain."""
    from rich.text import Text
    from rich.tree import Tree

    nodes = {node.name: node for node in chart.snapshot.nodes}
    inside: dict[Path, list[Node]] = {}
    for name, path in chart.paths.items():
        for length in range(1, depth + 1):
            inside.setdefault(path[:length], []).append(nodes[name])
    by_node = chart.by_node()
    drawn: dict[Path, Tree] = {}
    for prefix, members in inside.items():
        here = by_node.get(prefix[-1], ()) if len(prefix) == len(chart.snapshot.levels) else ()
        line = Text(_line(chart, prefix, members, here), overflow="fold")
        if len(prefix) == 1:
            drawn[prefix] = Tree(line, guide_style="")
        else:
            drawn[prefix] = drawn[prefix[:-1]].add(line)
    yield from (tree for prefix, tree in drawn.items() if len(prefix) == 1)


def _line(chart: Map, prefix: Path, members: Sequence[Node], here: Sequence[Seat]) -> str:
    """Describe a domain, or a node, in a line: GPUs in use, and whose."""
    level = chart.snapshot.levels[len(prefix) - 1]
    counts = [chart.gpus(node) for node in members]
    used, total = sum(u for u, _ in counts), sum(t for _, t in counts)
    whole = bar(used, total, GPU_BAR).ljust(GPU_BAR, ".") if total else "no GPUs".ljust(GPU_BAR)
    parts = [f"{level.name} {clean_text(prefix[-1])}", f"[{whole}] {used}/{total}"]
    if len(prefix) == len(chart.snapshot.levels):
        state = _state(members[0])
        parts += [state] if state != "ready" else []
        parts += [f"{clean_text(s.job)} {ranks_text(s.ranks) or '?'}" for s in here]
        return "  ".join(parts)
    parts.append(f"{len(members)} node" + ("" if len(members) == 1 else "s"))
    return "  ".join(parts)


def _job_lines(chart: Map) -> Iterator[str]:
    if not chart.seats:
        yield "no pods of llmtrain jobs"
        return
    yield "JOBS"
    names = [level.name for level in chart.snapshot.levels]
    said = []
    for job in _jobs(chart):
        wire = _job_wire(chart, names, job)
        *far, nodes = wire["domains"].values()
        where = f"{nodes} node" + ("" if nodes == 1 else "s")
        used = ", ".join(f"{n} {count}" for n, count in zip(names[:-1], far, strict=True))
        said.append(
            f"{clean_text(job)}: {wire['ranks']} ranks on {where}"
            + (f"; domains: {used}" if used else "")
        )
        said += [
            f"{clean_text(job)}: {m.node} was placed under {m.placed}, its labels now say {m.now};"
            " the job keeps its placement"
            for m in chart.moved.get(job, ())
        ]
    yield from bullets(said)
