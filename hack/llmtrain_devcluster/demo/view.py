"""Render the job while it runs, and the tables of its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Object = Mapping[str, Any]


def live(job: Object, pods: Sequence[Object], seconds: float) -> RenderableType:
    """Render the job while it runs: state, progress and assigned nodes."""
    status = job.get("status") or {}
    progress = status.get("progress") or {}
    head = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for title in ("STATE", "NODES", "LAYOUT", "DOES", "STEP", "LOSS", "TOKENS/S", "ELAPSED"):
        head.add_column(title)
    step, total = progress.get("step", 0), progress.get("totalSteps", 0)
    head.add_row(
        f"[bold]{status.get('phase', 'Pending')}[/]",
        status.get("nodes", "-"),
        status.get("layout", "-"),
        progress.get("phase", "-"),
        f"{step}/{total}" if total else "-",
        number(progress.get("loss"), ".3f"),
        number(progress.get("tokensPerSecond"), ",.0f"),
        f"{seconds:.0f} s",
    )
    parts: list[RenderableType] = [head]
    if total:
        # The bar has no line break; the padding adds one.
        parts.append(Padding(ProgressBar(total=total, completed=step, width=72), (0, 0, 1, 0)))
    if status.get("placement"):
        parts.append(assigned_nodes(job, pods))
    waiting = explanation(status)
    if waiting:
        parts.append(Text(waiting, style="yellow"))
    return Group(*parts)


def line(job: Object, seconds: float) -> str:
    """Render the state of the job in one line, for a log."""
    status = job.get("status") or {}
    progress = status.get("progress") or {}
    return (
        f"{seconds:5.0f} s  {status.get('phase', 'Pending'):<10}"
        f" nodes {status.get('nodes', '-'):<5} {progress.get('phase', '-'):<10}"
        f" step {progress.get('step', 0)}/{progress.get('totalSteps', '-')}"
        f"  loss {number(progress.get('loss'), '.3f')}"
        f"  {number(progress.get('tokensPerSecond'), ',.0f')} tokens/s"
    )


def explanation(status: Object) -> str:
    """Return the message of the condition that keeps the job from running, if any."""
    for condition in status.get("conditions") or []:
        if condition["type"] in {"Accepted", "Placed"} and condition["status"] == "False":
            return f"{condition['reason']}: {condition['message']}"
        if condition["type"] == "Failed" and condition["status"] == "True":
            return f"{condition['reason']}: {condition['message']}"
    return ""


def assigned_nodes(job: Object, pods: Sequence[Object]) -> Table:
    """Render the assigned nodes: domains, ranks and the phase of the pod."""
    placement = job["status"]["placement"]
    phases = {pod["spec"].get("nodeName"): pod["status"].get("phase", "-") for pod in pods}
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("NODE", "DOMAINS", "RANKS", "POD"):
        table.add_column(title)
    index, width = 0, placement["gpusPerNode"]
    for block in placement["blocks"]:
        for node in block["nodes"]:
            ranks = f"{index * width}-{(index + 1) * width - 1}"
            table.add_row(node, block["path"], ranks, phases.get(node, "-"))
            index += 1
    return table


def collectives(rows: Sequence[Object]) -> Table:
    """Render the measured latency of every collective by parallel group."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("GROUP", "OPERATION"):
        table.add_column(title)
    for title in ("CALLS", "BYTES", "MEAN LATENCY"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row["group"],
            row["op"],
            str(row.get("count", 0)),
            f"{row.get('bytesPerStep', 0):,}",
            latency(row.get("meanSeconds", 0)),
        )
    return table


def held_out(progress: Object) -> Table:
    """Render the held-out loss before and after."""
    before, after = progress.get("heldOutLossBefore"), progress.get("heldOutLossAfter")
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for title in ("BEFORE", "AFTER", "FALL"):
        table.add_column(title, justify="right")
    fall = None if before is None or after is None else before - after
    table.add_row(*(number(value, ".3f") for value in (before, after, fall)))
    return table


def latency(seconds: float) -> str:
    """Format a mean latency; sends and receives have none."""
    return f"{1000 * seconds:.2f} ms" if seconds else "-"


def number(value: float | None, form: str) -> str:
    """Format a number, or return a dash for None."""
    return "-" if value is None else format(value, form)
