"""`llmtrain cluster`: a development cluster on this computer.

The development cluster is imported when a command runs, so that `llmtrain --help` stays fast.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain_cli.errors import EXIT_FAILURE, CliError

if TYPE_CHECKING:
    from llmtrain_devcluster.detached import DetachedCluster

app = typer.Typer(
    name="cluster",
    no_args_is_help=True,
    help="A real Kubernetes control plane on this computer, with nodes whose GPUs are simulated.",
)

Name = Annotated[str, typer.Option("--name", help="Name of the cluster.")]
Output = Annotated[str, typer.Option("--output", "-o", help="text or json.")]


@contextmanager
def _cli_errors() -> Iterator[None]:
    """Convert errors of the development cluster to CliError."""
    try:
        from llmtrain_devcluster.control_plane.control_plane import ClusterError
        from llmtrain_devcluster.go_build.golang import GoMissingError
        from llmtrain_devcluster.go_build.tools import BuildError
    except ModuleNotFoundError as error:
        raise CliError(f"{error}: pip install llmtrain[cluster]", EXIT_FAILURE) from error
    try:
        yield
    except (BuildError, ClusterError, GoMissingError) as error:
        raise CliError(str(error), EXIT_FAILURE) from error


def _describe(cluster: DetachedCluster) -> dict[str, Any]:
    """Return the fields to show: all except the token."""
    shown = ("name", "pid", "url", "kubeconfig", "folder", "nodes")
    return {key: getattr(cluster, key) for key in shown} | {"health": cluster.health()}


def _check_output(output: str) -> None:
    if output not in ("text", "json"):
        raise typer.BadParameter(f"{output!r} is neither text nor json", param_hint="--output")


@app.command()
def up(
    racks: Annotated[int, typer.Option(min=1, max=26, help="Number of racks.")] = 2,
    nodes_per_rack: Annotated[int, typer.Option(min=1, max=100, help="Nodes in each rack.")] = 2,
    gpus: Annotated[int, typer.Option(min=0, max=16, help="GPUs of each node.")] = 2,
    name: Name = "default",
    output: Output = "text",
) -> None:
    """Start a cluster that keeps running. The first start builds it (5 to 12 minutes)."""
    _check_output(output)

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with _cli_errors():
        from llmtrain_devcluster import detached
        from llmtrain_devcluster.process_node.start import rack_nodes

        cluster = detached.up(name, rack_nodes(racks, nodes_per_rack, gpus=gpus), progress)
        described = _describe(cluster)
    if output == "json":
        typer.echo(json.dumps(described))
        return
    names = ", ".join(cluster.nodes)
    typer.echo(f"cluster {name!r} is up with {len(cluster.nodes)} nodes: {names}")
    typer.echo(f"export KUBECONFIG={cluster.kubeconfig}")
    typer.echo(f"stop it with: llmtrain cluster down --name {name}")


@app.command()
def status(output: Output = "text") -> None:
    """Show all clusters of this user. Exit code 1 if one of them is not healthy."""
    _check_output(output)
    with _cli_errors():
        from llmtrain_devcluster import detached

        described = [_describe(cluster) for cluster in detached.list_clusters()]
    if output == "json":
        typer.echo(json.dumps(described))
    elif not described:
        typer.echo("no cluster: start one with `llmtrain cluster up`")
    else:
        for one in described:
            typer.echo(
                f"{one['name']}: {one['health']}, {len(one['nodes'])} nodes, {one['url']}, "
                f"KUBECONFIG={one['kubeconfig']}"
            )
    if any(one["health"] != "ok" for one in described):
        raise typer.Exit(EXIT_FAILURE)


@app.command()
def down(name: Name = "default") -> None:
    """Stop a cluster and remove its files. It is no error if there is none."""
    with _cli_errors():
        from llmtrain_devcluster import detached

        stopped = detached.down(name)
    typer.echo(f"cluster {name!r} stopped" if stopped else f"there is no cluster {name!r}")
