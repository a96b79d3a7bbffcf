"""`llmtrain cluster`: a development cluster on this computer.

Heavy imports wait until a command runs: `llmtrain --help` must not pay for them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain_cli.errors import EXIT_NO, CliError

if TYPE_CHECKING:
    from llmtrain_devcluster.detached import DetachedCluster

app = typer.Typer(
    name="cluster",
    no_args_is_help=True,
    help="A real Kubernetes control plane on this computer, with nodes whose GPUs are fiction.",
)

Name = Annotated[str, typer.Option("--name", help="Which cluster, if you have several.")]
Output = Annotated[str, typer.Option("--output", "-o", help="text or json.")]


@contextmanager
def _cli_errors() -> Iterator[None]:
    """Turn errors that name their remedy into the one that the command line shows."""
    from llmtrain_devcluster.control_plane.build import BuildError
    from llmtrain_devcluster.control_plane.control_plane import ClusterError
    from llmtrain_devcluster.control_plane.golang import GoMissingError

    try:
        yield
    except (BuildError, ClusterError, GoMissingError) as error:
        raise CliError(str(error), EXIT_NO) from error


def _describe(cluster: DetachedCluster) -> dict[str, Any]:
    """Return what may be shown: everything but the token."""
    shown = ("name", "pid", "url", "kubeconfig", "folder", "nodes")
    return {key: getattr(cluster, key) for key in shown} | {"health": cluster.health()}


def _check_output(output: str) -> None:
    if output not in ("text", "json"):
        raise typer.BadParameter(f"{output!r} is neither text nor json", param_hint="--output")


@app.command()
def up(
    racks: Annotated[int, typer.Option(min=1, max=26, help="Number of racks.")] = 2,
    nodes_per_rack: Annotated[int, typer.Option(min=1, max=100, help="Nodes in each rack.")] = 2,
    gpus: Annotated[int, typer.Option(min=0, max=16, help="GPUs that each node claims.")] = 2,
    name: Name = "default",
    output: Output = "text",
) -> None:
    """Start a cluster that stays up; the first time, this builds it (5 to 12 minutes)."""
    from llmtrain_devcluster import detached
    from llmtrain_devcluster.process_node.start import rack_nodes

    _check_output(output)

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with _cli_errors():
        found = detached.up(name, rack_nodes(racks, nodes_per_rack, gpus=gpus), progress)
    if output == "json":
        typer.echo(json.dumps(_describe(found)))
        return
    typer.echo(f"cluster {name!r} is up with {len(found.nodes)} nodes: {', '.join(found.nodes)}")
    typer.echo(f"export KUBECONFIG={found.kubeconfig}")
    typer.echo(f"end it with: llmtrain cluster down --name {name}")


@app.command()
def status(output: Output = "text") -> None:
    """Show all clusters of this user; exit code 1 if one of them is not healthy."""
    from llmtrain_devcluster import detached

    _check_output(output)
    with _cli_errors():
        described = [_describe(one) for one in detached.list_clusters()]
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
        raise typer.Exit(EXIT_NO)


@app.command()
def down(name: Name = "default") -> None:
    """End a cluster and remove everything it had; no error if there is none."""
    from llmtrain_devcluster import detached

    with _cli_errors():
        ended = detached.down(name)
    typer.echo(f"cluster {name!r} ended" if ended else f"there is no cluster {name!r}")
