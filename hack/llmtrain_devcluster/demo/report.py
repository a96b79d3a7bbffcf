"""The result of the demo, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from llmtrain_core.api.job import JobSpec
from llmtrain_core.placement.place import describe
from llmtrain_core.topology.inventory import node_from_raw, snapshot
from llmtrain_core.topology.label_presets import detect
from llmtrain_core.validation.check import layout_of
from llmtrain_devcluster.demo import view

Object = Mapping[str, Any]


def show(console: Console, job: Object, seconds: float) -> None:
    """Print the result of the job."""
    status = job["status"]
    progress = status.get("progress") or {}
    console.print(f"\n[bold]{job['metadata']['name']}: {status['phase']}[/] after {seconds:.0f} s")
    if status.get("placement"):
        console.print("\n[bold]Placement[/]")
        console.print(status["placement"].get("explanation", ""))
        console.print(view.assigned_nodes(job, []))
    if progress.get("collectives"):
        console.print("\n[bold]Collectives[/], per rank and step")
        console.print(view.collectives(progress["collectives"]))
    if progress.get("heldOutLossBefore") is not None:
        console.print("\n[bold]Held-out loss[/], nats per token")
        console.print(view.held_out(progress))


def as_json(job: Object, nodes: Sequence[Object], seconds: float) -> dict[str, Any]:
    """Return the result as DEMO_REPORT writes it; `seconds` leaves the build out."""
    progress = job["status"].get("progress") or {}
    groups: dict[str, list[Object]] = {}
    for row in progress.get("collectives") or []:
        groups.setdefault(row["group"], []).append(
            {key: value for key, value in row.items() if key != "group"}
        )
    return {
        "phase": job["status"]["phase"],
        "heldOutLossBefore": progress.get("heldOutLossBefore"),
        "heldOutLossAfter": progress.get("heldOutLossAfter"),
        "seconds": round(seconds, 1),
        "placement": placement(job, nodes),
        "collectives": groups,
    }


def placement(job: Object, nodes: Sequence[Object]) -> dict[str, Any] | None:
    """Return the stored placement in the form that `llmtrain place` prints."""
    stored = job["status"].get("placement")
    if not stored:
        return None
    inventory = {node.name: node for node in map(node_from_raw, nodes)}
    view_of_cluster = snapshot(
        detect(node.labels for node in inventory.values()), inventory.values(), []
    )
    names = [name for block in stored["blocks"] for name in block["nodes"]]
    paths = [view_of_cluster.path(inventory[name]) for name in names]
    spec = JobSpec.from_wire(job["spec"])
    return describe(layout_of(spec), stored["gpusPerNode"], view_of_cluster, paths).to_wire()
