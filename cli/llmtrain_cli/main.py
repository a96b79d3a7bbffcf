"""Entry point: the commands that need no cluster, and the cluster commands mounted beside them."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llmtrain_cli import cluster, plan
from llmtrain_cli.errors import EXIT_INPUT, EXIT_NO, CliError
from llmtrain_cli.files import read_fabric, read_items, read_job
from llmtrain_cli.text import layout_text, placement_text
from llmtrain_core.api import crd as crd_generator
from llmtrain_core.layout import GroupKind, Layout
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.topology.inventory import node_from_raw, snapshot, usage_from_pods
from llmtrain_core.topology.levels import detect

app = typer.Typer(
    help="Train large language models on Kubernetes: the plan, the layout, the placement.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("plan")(plan.command)
app.add_typer(cluster.app, name="cluster", help="The development cluster: up, down, status.")


class Output(StrEnum):
    """How a result is printed."""

    TEXT = "text"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="text or json")]
KINDS: tuple[GroupKind, ...] = ("tensor", "context", "data", "replicate", "pipeline", "model")


@app.command()
def layout(
    tensor: Annotated[int, typer.Option(help="ranks that share every matrix")] = 1,
    pipeline: Annotated[int, typer.Option(help="pipeline stages")] = 1,
    context: Annotated[int, typer.Option(help="ranks that share one sequence")] = 1,
    data: Annotated[int, typer.Option(help="ranks that shard parameters (FSDP)")] = 1,
    replicate: Annotated[int, typer.Option(help="copies of the sharded model (HSDP)")] = 1,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the groups of ranks of every kind of parallelism."""
    try:
        grid = Layout(
            tensor=tensor, context=context, data=data, replicate=replicate, pipeline=pipeline
        )
    except ValueError as error:
        raise CliError(f"--{error}") from error
    groups = {kind: grid.groups(kind) for kind in KINDS}
    _print(groups, layout_text(grid, groups), output)


@app.command("crd")
def print_crds(
    write: Annotated[Path | None, typer.Option(help="write one file per CRD into a folder")] = None,
) -> None:
    """Print the custom resource definitions, or write them into a folder."""
    files = crd_generator.render()
    if write is None:
        typer.echo("---\n".join(files.values()), nl=False)
        return
    try:
        write.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (write / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CliError(f"--write {write}: {error}") from error


@app.command("place")
def print_placement(
    job: Annotated[str, typer.Option("-f", "--file", help="the job's manifest")],
    nodes: Annotated[str, typer.Option(help="nodes, as kubectl get nodes -o json prints them")],
    pods: Annotated[
        str | None, typer.Option(help="pods that hold resources: kubectl get pods -A -o json")
    ] = None,
    fabric: Annotated[
        str | None, typer.Option(help="a Fabric's file or a preset; default: what labels show")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Say who would sit where, or why the job does not fit (exit code 1). Needs no cluster."""
    request = Request.of(read_job(job))
    try:
        inventory = [node_from_raw(raw) for raw in read_items(nodes, "Node")]
        usage = usage_from_pods(read_items(pods, "Pod")) if pods else []
    except (KeyError, TypeError, AttributeError) as error:
        raise CliError(
            f"--nodes, --pods: an object is not as kubectl prints it: {error!r}"
        ) from error
    levels = read_fabric(fabric) if fabric else detect(node.labels for node in inventory)
    answer = place(request, snapshot(levels, inventory, usage))
    _print(answer.to_wire(), placement_text(request, answer), output)
    if not isinstance(answer, Placement):
        raise typer.Exit(EXIT_NO)


def _print(data: Any, text: str, output: Output) -> None:
    typer.echo(json.dumps(data, indent=2) if output is Output.JSON else text)


def run() -> None:
    """Run the command line; print errors without a traceback and exit with their code."""
    try:
        app(standalone_mode=True)
    except CliError as error:
        typer.echo(f"llmtrain: {error}", err=True)
        sys.exit(error.exit_code or EXIT_INPUT)
