"""Entry point of the command line: registers all commands and prints their errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmtrain_cli.commands import cluster, data, model, place, plan, topology, tune
from llmtrain_cli.commands import run as local
from llmtrain_cli.errors import EXIT_INPUT, CliError
from llmtrain_cli.io.layout_text import layout_text
from llmtrain_cli.io.output import Output, OutputOption, echo, format_warnings, show
from llmtrain_core.api import crd as crd_generator
from llmtrain_core.layout import GroupKind, Layout

app = typer.Typer(
    help="Train large language models on Kubernetes: plan, layout and placement of jobs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("plan")(plan.command)
app.command("place")(place.command)
app.command("run")(local.command)
app.command("topology")(topology.command)
app.command("tune")(tune.command)
app.command("export")(model.export)
app.command("import")(model.import_model)
app.command("sample")(model.sample)
app.add_typer(cluster.app, name="cluster", help="The development cluster: up, down, status.")
app.add_typer(data.app, name="data")


MAX_RANKS = 1 << 17
"""Ranks of the largest layout that is printed."""

KINDS: tuple[GroupKind, ...] = ("tensor", "context", "data", "replicate", "pipeline", "model")


@app.command()
def layout(
    tensor: Annotated[int, typer.Option(help="ranks that split each matrix (tensor parallel)")] = 1,
    pipeline: Annotated[int, typer.Option(help="pipeline stages")] = 1,
    context: Annotated[
        int, typer.Option(help="ranks that split each sequence (context parallel)")
    ] = 1,
    data: Annotated[int, typer.Option(help="ranks that shard parameters (FSDP)")] = 1,
    replicate: Annotated[int, typer.Option(help="replica groups of the sharded model (HSDP)")] = 1,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the groups of ranks of every kind of parallelism."""
    try:
        grid = Layout(
            tensor=tensor, context=context, data=data, replicate=replicate, pipeline=pipeline
        )
    except ValueError as error:
        raise CliError(f"--{error}"[:200]) from error
    if grid.world_size > MAX_RANKS:
        raise CliError(f"the layout has more than {MAX_RANKS:,} ranks; use smaller degrees")
    groups = {kind: grid.groups(kind) for kind in KINDS}
    show(groups, layout_text(grid, groups), output)


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


def run() -> None:
    """Run the command line; print errors without a traceback and exit with their code."""
    format_warnings()
    try:
        app(standalone_mode=True)
    except CliError as error:
        echo(f"llmtrain: {error}", err=True)
        sys.exit(error.exit_code or EXIT_INPUT)
    except (RecursionError, MemoryError, OverflowError) as error:
        kind = type(error).__name__
        echo(f"llmtrain: the input is too large or nested too deeply ({kind})", err=True)
        sys.exit(EXIT_INPUT)
