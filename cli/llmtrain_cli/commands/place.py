"""`llmtrain place`: the placement of a job, its cost and the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from llmtrain_cli.errors import EXIT_FAILURE
from llmtrain_cli.io.cluster_view import ClusterSources, ClusterView, read_cluster
from llmtrain_cli.io.files import read_manifest
from llmtrain_cli.io.network_text import network_lines, network_to_wire
from llmtrain_cli.io.output import Output, OutputOption, bar, bullets, render, seconds_text, show
from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.labels import ALLOW_OVER_MEMORY
from llmtrain_core.devices.demand import demand_of, shared_claims_of
from llmtrain_core.network import NetworkRequest
from llmtrain_core.placement import (
    DOMAIN_TOLERANCE,
    Placement,
    Request,
    Unplaceable,
    eligible,
    obstacles_text,
    on_network,
    place,
)
from llmtrain_core.placement.tree import natural
from llmtrain_core.plan.memory.node_filter import nodes_with_too_little_memory, only_gpu
from llmtrain_core.queueing.quarantine import MAX_EXCLUDED_PERCENT
from llmtrain_core.topology.findings import findings, relevant_to_job, sentences
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.validation.check import Job

MAX_OBSTACLES = 16
"""Maximum number of nodes in the text output on which a pod cannot start."""
MAX_FINDINGS = 4
"""Maximum number of findings about the health of nodes in one sentence."""
MAX_ROWS = 64
"""Maximum number of nodes in the text output. JSON has all nodes."""
_SHARED_NOT_COUNTED = (
    "spec.workers.deviceClaims: claims of scope gang are not counted here; the operator compares"
    " them with the devices that all nodes reach"
)

NodesOption = Annotated[
    str | None,
    typer.Option(
        help="nodes, as kubectl get nodes -o json prints them; default: the current context"
    ),
]
PodsOption = Annotated[
    str | None, typer.Option(help="pods that hold resources: kubectl get pods -A -o json")
]
FabricOption = Annotated[
    str | None, typer.Option(help="file of a Fabric, or a preset; default: detected from labels")
]

NodeHealthOption = Annotated[
    str | None,
    typer.Option(
        help="file with changes of the table of node health: a list of rows, as in the operator's"
        " --node-health"
    ),
]
MaxExcludedOption = Annotated[
    float,
    typer.Option(
        min=0.001,
        max=100,
        help="share of the nodes, in percent, that jobs avoid at most for their health; the"
        " operator's --max-excluded-nodes-percent",
    ),
]
DomainToleranceOption = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.99,
        help="share of a step below which a gain does not justify more domains; the operator's"
        " --domain-tolerance",
    ),
]


def command(
    job: Annotated[str, typer.Option("-f", "--file", help="the job's manifest")],
    nodes: NodesOption = None,
    pods: PodsOption = None,
    fabric: FabricOption = None,
    domain_tolerance: DomainToleranceOption = DOMAIN_TOLERANCE,
    node_health: NodeHealthOption = None,
    max_excluded_nodes_percent: MaxExcludedOption = MAX_EXCLUDED_PERCENT,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show the placement of a job. Exit code 1 if it does not fit, 2 on invalid input.

    With --nodes, no cluster is needed. Otherwise nodes and pods are read with kubectl.
    """
    checked, annotations = read_manifest(job)
    named = checked.spec.topology.fabric if checked.spec.topology else None
    sources = ClusterSources(
        nodes,
        pods,
        fabric=fabric,
        node_health=node_health,
        max_excluded_percent=max_excluded_nodes_percent,
    )
    wanted, shared = demand_of(checked.spec), shared_claims_of(checked.spec)
    view = read_cluster(sources, named, devices=wanted)
    request = request_on(view, checked, annotations, domain_tolerance)
    answer = place(request, view.snapshot)
    wire = answer.to_wire()
    wire["network"] = network_to_wire(request)
    wire["reasons"] = [
        *wire["reasons"],
        *_label_findings(request, view.snapshot, answer),
        *_health_findings(view.snapshot, answer),
        *(
            f"spec.workers.deviceClaims: {each.text}"
            for each in view.classes.problems({*wanted, *shared.keys})
        ),
        *([_SHARED_NOT_COUNTED] if shared.count else []),
    ]
    if isinstance(answer, Unplaceable):
        wire["obstacles"] = obstacles_by_node(request, view.snapshot)
    if named is not None and nodes is not None and fabric is None:
        wire["reasons"].append(
            f"the job's Fabric {named!r} was not read: these levels come from node labels; pass"
            " --fabric with the Fabric's file"
        )
    show(wire, placement_text(wire), output)
    if not isinstance(answer, Placement):
        raise typer.Exit(EXIT_FAILURE)


def request_on(
    view: ClusterView,
    job: Job,
    annotations: Mapping[str, str],
    domain_tolerance: float = DOMAIN_TOLERANCE,
) -> Request:
    """Return the request of a job on the nodes of a cluster, on the network that it gets there."""
    snapshot = view.snapshot
    request = Request.of(job, only_gpu(snapshot.nodes), domain_tolerance)
    if annotations.get(ALLOW_OVER_MEMORY) != "true":
        request = replace(request, too_small=nodes_with_too_little_memory(job, snapshot.nodes))
    request = request.with_extended(view.classes.served)
    return on_network(request, NetworkRequest.of(job), snapshot)


def obstacles_by_node(request: Request, snapshot: Snapshot) -> dict[str, str]:
    """Return why a pod cannot start on a node, for each node where it cannot."""
    found = {
        node.name: obstacles_text(request, node, snapshot.used)
        for node in sorted(snapshot.nodes, key=lambda node: natural((node.name,)))
    }
    return {name: text for name, text in found.items() if text}


def _label_findings(
    request: Request, snapshot: Snapshot, answer: Placement | Unplaceable
) -> list[str]:
    """Return label findings about nodes that the job could use or that it was assigned."""
    candidates = eligible(request, snapshot)
    nodes = answer.nodes if isinstance(answer, Placement) else ()
    assigned = {node.name for node in nodes} or candidates
    return sentences(relevant_to_job(findings(snapshot), candidates, assigned))


def _health_findings(snapshot: Snapshot, answer: Placement | Unplaceable) -> list[str]:
    """Return the findings about the health of the nodes of a placement that have no effect."""
    names = {node.name for node in answer.nodes} if isinstance(answer, Placement) else set()
    found = [
        f"{node.name} ({finding.text})"
        for node in snapshot.nodes
        if node.name in names
        for finding in node.health
        if not finding.in_force
    ]
    if not found:
        return []
    more = f" and {len(found) - MAX_FINDINGS} more" if len(found) > MAX_FINDINGS else ""
    shown = ", ".join(found[:MAX_FINDINGS])
    return [f"used although their health is in doubt, because too many nodes are: {shown}{more}"]


def placement_text(wire: Mapping[str, Any]) -> str:
    """Return a placement as text of 80 columns."""
    if not wire["fits"]:
        reasons = bullets([clean_text(reason) for reason in wire["reasons"]])
        return "\n".join([f"does not fit: {wire['reason']}", *reasons, *_obstacles(wire)])
    parts = (_nodes, _network, _cost, _domains, _reasons, _alternative)
    return "\n".join(line for part in parts for line in part(wire)).rstrip()


def _obstacles(wire: Mapping[str, Any]) -> Iterator[str]:
    obstacles = wire["obstacles"]
    if obstacles:
        shown = [f"{name}: {text}" for name, text in obstacles.items()][:MAX_OBSTACLES]
        more = len(obstacles) - len(shown)
        yield ""
        yield "NODES WHERE NO POD OF THE JOB CAN START"
        yield from bullets([clean_text(text) for text in shown])
        if more:
            yield f"  and {more:,} more nodes (-o json prints all)"


def _nodes(wire: Mapping[str, Any]) -> Iterator[str]:
    nodes, spares = wire["nodes"], wire["spares"]
    ranks = sum(len(node["ranks"]) for node in nodes)
    yield f"fits: {ranks:,} ranks on {len(nodes):,} node" + ("" if len(nodes) == 1 else "s")
    yield ""
    levels = list(nodes[0]["path"])[:-1]
    rows = [
        (ranks_text(node["ranks"]), node["name"], *list(node["path"].values())[:-1])
        for node in nodes[:MAX_ROWS]
    ]
    yield render(_table(("ranks", "node", *levels), rows))
    if len(nodes) > MAX_ROWS:
        yield f"  and {len(nodes) - MAX_ROWS:,} more nodes (-o json prints all)"
    if spares:
        names = [spare if isinstance(spare, str) else spare["name"] for spare in spares]
        yield from bullets(["spares: " + ", ".join(map(clean_text, names))])
    yield ""


def _network(wire: Mapping[str, Any]) -> Iterator[str]:
    yield from network_lines(wire["network"])
    yield ""


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers: bool = False) -> Any:
    """Return a table without lines. Names from a cluster are text, never markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    for index, name in enumerate(head):
        right = numbers and index > 0
        table.add_column(name.upper(), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean_text(str(cell))) for cell in row))
    return table


def _cost(wire: Mapping[str, Any]) -> Iterator[str]:
    cost = wire.get("cost")
    if not cost:
        return
    seconds, ideal = cost["seconds"], cost["idealSeconds"]
    slower = f", {seconds / ideal:.2f}x" if ideal else ""
    yield f"COMMUNICATION PER STEP  {seconds_text(seconds)}; ideal {seconds_text(ideal)}{slower}"
    most = max(seconds, ideal)
    for name, value in (("here", seconds), ("ideal", ideal)):
        yield f"  {name:<12}{seconds_text(value):>10}  {bar(value, most)}"
    for kind, value in cost["byGroup"].items():
        yield f"    {kind:<10}{seconds_text(value):>10}  {bar(value, most, sign='-')}"
    yield ""


def _domains(wire: Mapping[str, Any]) -> Iterator[str]:
    kinds = list(dict.fromkeys(kind for groups in wire["crossings"].values() for kind in groups))
    if not kinds:
        return
    yield "GROUPS THAT SPAN SEVERAL DOMAINS"
    rows = [
        (level, count, *(wire["crossings"].get(level, {}).get(kind, 0) for kind in kinds))
        for level, count in wire["domains"].items()
    ]
    yield render(_table(("level", "domains", *kinds), rows, numbers=True))
    yield ""


def _reasons(wire: Mapping[str, Any]) -> Iterator[str]:
    yield "WHY"
    yield from bullets([clean_text(reason) for reason in wire["reasons"]])
    yield ""


def _alternative(wire: Mapping[str, Any]) -> Iterator[str]:
    other = wire.get("alternative")
    if not other:
        return
    where = ", ".join(f"{count} {level}" for level, count in other["domains"].items())
    yield f"NEXT BEST  {seconds_text(other['seconds'])} on {where}"
    yield from bullets([f"{other['method']}: {clean_text(other['why'])}"])


def ranks_text(ranks: Sequence[int]) -> str:
    """Format ranks as ranges: 0-3,8."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    return ",".join("-".join(map(str, run)) for run in runs)
