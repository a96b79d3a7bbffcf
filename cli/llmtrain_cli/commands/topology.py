"""`llmtrain topology`: the network tree, its GPUs in use, and the jobs on its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain_cli.commands.place import (
    MAX_FINDINGS,
    FabricOption,
    MaxExcludedOption,
    NodeHealthOption,
    NodesOption,
    PodsOption,
    obstacles_by_node,
    ranks_text,
    request_on,
)
from llmtrain_cli.errors import CliError
from llmtrain_cli.io.assigned_nodes import (
    AssignedPod,
    MovedNode,
    assigned_pods,
    is_gpu,
    moved_nodes,
)
from llmtrain_cli.io.cluster_view import ClusterSources, ClusterView, read_cluster
from llmtrain_cli.io.files import UNEXPECTED, read_manifest
from llmtrain_cli.io.node_state import node_state
from llmtrain_cli.io.output import Output, OutputOption, bar, bullets, render, show
from llmtrain_core.api.conditions import clean_text
from llmtrain_core.devices.demand import demand_of
from llmtrain_core.node_health import CORDON_ROW, HealthFinding, Strength
from llmtrain_core.placement.tree import natural
from llmtrain_core.queueing.quarantine import MAX_EXCLUDED_PERCENT
from llmtrain_core.topology.findings import LabelFinding, findings, sentences
from llmtrain_core.topology.inventory import Node, Snapshot

if TYPE_CHECKING:
    from rich.tree import Tree

MAX_LINES = 64
"""Maximum number of domains or nodes of one level in the default text output."""
GPU_BAR = 8
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TopologyMap:
    """The data that the command shows."""

    snapshot: Snapshot
    paths: Mapping[str, Path]
    """Domain path of each node, in natural order."""
    pods: Sequence[AssignedPod]
    moved_nodes: Mapping[str, Sequence[MovedNode]]
    """Moved nodes of each job."""
    findings: Sequence[LabelFinding]
    obstacles: Mapping[str, str] | None = None
    """By node, why a pod of the given job cannot start there; None without a job."""

    @classmethod
    def of(cls, view: ClusterView) -> TopologyMap:
        """Assign pods and jobs to the nodes of the tree."""
        state = view.snapshot
        paths = {node.name: state.path(node) for node in state.nodes}
        changed = {
            f"{job['metadata'].get('namespace', 'default')}/{job['metadata']['name']}": found
            for job in view.jobs
            if (found := list(moved_nodes(job, state)))
        }
        ordered = dict(sorted(paths.items(), key=lambda item: natural(item[1])))
        return cls(state, ordered, assigned_pods(view.pods), changed, findings(state))

    def by_node(self) -> dict[str, list[AssignedPod]]:
        """Return the assigned pods by node."""
        found: dict[str, list[AssignedPod]] = {}
        for pod in self.pods:
            found.setdefault(pod.node, []).append(pod)
        return found

    @property
    def unknown_nodes(self) -> list[str]:
        """The nodes of pods that are missing in the list of nodes."""
        return _sorted({pod.node for pod in self.pods} - set(self.paths))

    def gpus(self, node: Node) -> tuple[int, int]:
        """Return the GPUs in use and the total of a node."""
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
    job: Annotated[
        str | None,
        typer.Option("-f", "--file", help="a job's manifest: show where its pods cannot start"),
    ] = None,
    depth: Annotated[
        str | None, typer.Option(help="lowest level to show, for example leaf or node")
    ] = None,
    node_health: NodeHealthOption = None,
    max_excluded_nodes_percent: MaxExcludedOption = MAX_EXCLUDED_PERCENT,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the network tree with the jobs on it. Exit code 2 on invalid input.

    With --nodes, no cluster is needed. Otherwise everything is read with kubectl.
    """
    manifest = None if job is None else read_manifest(job)
    sources = ClusterSources(nodes, pods, jobs, fabric, node_health, max_excluded_nodes_percent)
    wanted = () if manifest is None else demand_of(manifest[0].spec)
    view = read_cluster(sources, with_jobs=True, devices=wanted)
    try:
        topology = TopologyMap.of(view)
        if manifest is not None:
            request = request_on(view, *manifest)
            obstacles = obstacles_by_node(request, view.snapshot)
            topology = replace(topology, obstacles=obstacles)
    except UNEXPECTED as error:
        raise CliError(
            f"--pods, --jobs: unexpected object: {error!r}; print the list with kubectl get -o json"
        ) from error
    show(to_wire(topology), topology_text(topology, _depth(topology, depth)), output)


def _depth(topology: TopologyMap, requested: str | None) -> int:
    """Return the number of levels to show: as requested, else as many as stay readable."""
    names = [level.name for level in topology.snapshot.levels]
    if requested is not None:
        if requested not in names:
            raise CliError(f"--depth {requested}: no such level; use one of " + ", ".join(names))
        return names.index(requested) + 1
    for depth in range(len(names), 1, -1):
        if len({path[:depth] for path in topology.paths.values()}) <= MAX_LINES:
            return depth
    return 1


def to_wire(topology: TopologyMap) -> dict[str, Any]:
    """Return the JSON of the command."""
    names = [level.name for level in topology.snapshot.levels]
    by_node = topology.by_node()
    nodes = {node.name: node for node in topology.snapshot.nodes}
    listed = []
    for name, path in topology.paths.items():
        used, total = topology.gpus(nodes[name])
        listed.append(
            {
                "name": name,
                "path": dict(zip(names, path, strict=True)),
                "gpus": {"total": total, "used": used},
                "state": node_state(nodes[name]),
                "health": [_finding_wire(finding) for finding in nodes[name].health],
                "seats": [{"job": s.job, "ranks": list(s.ranks)} for s in by_node.get(name, ())],
            }
        )
        if topology.obstacles is not None:
            listed[-1]["obstacles"] = topology.obstacles.get(name, "")
    return {
        "levels": [
            {
                "name": level.name,
                "nodeLabel": level.node_label,
                "oversubscription": level.oversubscription,
                "nvlink": level.nvlink,
            }
            for level in topology.snapshot.levels
        ],
        "nodes": listed,
        "jobs": [_job_wire(topology, names, job) for job in _jobs(topology)],
        "unknownNodes": topology.unknown_nodes,
        "findings": [finding.to_wire() for finding in topology.findings],
    }


def _job_wire(topology: TopologyMap, names: Sequence[str], job: str) -> dict[str, Any]:
    used = [
        topology.paths[s.node] for s in topology.pods if s.job == job and s.node in topology.paths
    ]
    return {
        "job": job,
        "ranks": sum(len(pod.ranks) for pod in topology.pods if pod.job == job),
        "domains": {
            name: len({path[: depth + 1] for path in used}) for depth, name in enumerate(names)
        },
        "moved": [
            {"node": m.node, "placed": m.placed, "now": m.now}
            for m in topology.moved_nodes.get(job, ())
        ],
    }


def _jobs(topology: TopologyMap) -> list[str]:
    return _sorted({pod.job for pod in topology.pods} | set(topology.moved_nodes))


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: natural((name,)))


def _finding_wire(finding: HealthFinding) -> dict[str, Any]:
    return {
        "row": finding.row,
        "evidence": finding.evidence,
        "strength": str(Strength.LEAVE if finding.leave else Strength.AVOID),
        "inForce": finding.in_force,
    }


def _health_text(node: Node) -> str:
    """Return what the table of node health finds, besides a cordon, which is a state."""
    found = [f for f in node.health if f.row != CORDON_ROW]
    if not found:
        return ""
    text = f"({', '.join(finding.text for finding in found[:MAX_FINDINGS])})"
    return text if node.avoided else f"used all the same {text}"


def topology_text(topology: TopologyMap, depth: int) -> str:
    """Render the tree down to a level, then the jobs and the findings about labels."""
    lines: list[str] = []
    if not topology.paths:
        lines.append("no nodes")
    for tree in _trees(topology, depth):
        lines.append(render(tree))
    lines += ["", *_job_lines(topology)]
    notes = sentences(topology.findings)
    if topology.unknown_nodes:
        notes.append(
            "pods are on nodes that are not in the list: " + ", ".join(topology.unknown_nodes)
        )
    if notes:
        lines += ["", "LABELS AND NODES TO LOOK AT", *bullets([clean_text(n) for n in notes])]
    return "\n".join(lines).rstrip()


def _trees(topology: TopologyMap, depth: int) -> Iterator[Tree]:
    """Yield one tree per domain of the top level."""
    from rich.text import Text
    from rich.tree import Tree

    nodes = {node.name: node for node in topology.snapshot.nodes}
    inside: dict[Path, list[Node]] = {}
    for name, path in topology.paths.items():
        for length in range(1, depth + 1):
            inside.setdefault(path[:length], []).append(nodes[name])
    by_node = topology.by_node()
    drawn: dict[Path, Tree] = {}
    for prefix, members in inside.items():
        here = by_node.get(prefix[-1], ()) if len(prefix) == len(topology.snapshot.levels) else ()
        line = Text(_line(topology, prefix, members, here), overflow="fold")
        if len(prefix) == 1:
            drawn[prefix] = Tree(line, guide_style="")
        else:
            drawn[prefix] = drawn[prefix[:-1]].add(line)
    yield from (tree for prefix, tree in drawn.items() if len(prefix) == 1)


def _line(
    topology: TopologyMap, prefix: Path, members: Sequence[Node], here: Sequence[AssignedPod]
) -> str:
    """Describe a domain or a node in one line: GPUs in use, and the jobs that use them."""
    level = topology.snapshot.levels[len(prefix) - 1]
    counts = [topology.gpus(node) for node in members]
    used, total = sum(u for u, _ in counts), sum(t for _, t in counts)
    whole = bar(used, total, GPU_BAR).ljust(GPU_BAR, ".") if total else "no GPUs".ljust(GPU_BAR)
    parts = [f"{level.name} {clean_text(prefix[-1])}", f"[{whole}] {used}/{total}"]
    if len(prefix) == len(topology.snapshot.levels):
        state = node_state(members[0])
        parts += [state] if state != "ready" else []
        parts += [f"{clean_text(s.job)} {ranks_text(s.ranks) or '?'}" for s in here]
        obstacles = (topology.obstacles or {}).get(members[0].name)
        health = "" if obstacles else _health_text(members[0])
        parts += [clean_text(health)] if health else []
        parts += [f"cannot start here: {clean_text(obstacles)}"] if obstacles else []
        return "  ".join(parts)
    parts.append(f"{len(members)} node" + ("" if len(members) == 1 else "s"))
    return "  ".join(parts)


def _job_lines(topology: TopologyMap) -> Iterator[str]:
    if not topology.pods:
        yield "no pods of llmtrain jobs"
        return
    yield "JOBS"
    names = [level.name for level in topology.snapshot.levels]
    lines = []
    for job in _jobs(topology):
        wire = _job_wire(topology, names, job)
        *far, nodes = wire["domains"].values()
        where = f"{nodes} node" + ("" if nodes == 1 else "s")
        used = ", ".join(f"{n} {count}" for n, count in zip(names[:-1], far, strict=True))
        lines.append(
            f"{clean_text(job)}: {wire['ranks']} ranks on {where}"
            + (f"; domains: {used}" if used else "")
        )
        lines += [
            f"{clean_text(job)}: {m.node} was placed under {m.placed}, its labels now say {m.now};"
            " the job keeps its placement"
            for m in topology.moved_nodes.get(job, ())
        ]
    yield from bullets(lines)
