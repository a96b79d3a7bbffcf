"""`llmtrain tune`: a job that tries variables that NCCL reads only at its start, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
import yaml

from llmtrain_cli.errors import EXIT_FAILURE, CliError
from llmtrain_cli.io.files import job_of, read_document
from llmtrain_cli.io.output import Output, OutputOption, echo, show
from llmtrain_cli.io.tuning_text import tuning_lines
from llmtrain_cli.run.tuning_job import tuning_job
from llmtrain_core.api.defaults import MAX_TRIAL_STEPS, MIN_TRIAL_STEPS
from llmtrain_core.api.status.network_tuning import read_network_tuning

DEFAULT_STEPS = 10


def command(
    job: Annotated[
        str | None, typer.Option("-f", "--file", help="manifest of the job to tune")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=MIN_TRIAL_STEPS, max=MAX_TRIAL_STEPS, help="steps of each trial")
    ] = DEFAULT_STEPS,
    result: Annotated[
        str | None,
        typer.Option(help="a tuning job, as kubectl get llmtrainingjob NAME -o json prints it"),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print a job that tries NCCL variables on the nodes of a job, or show its result.

    llmtrain tune -f job.yaml | kubectl apply -f - ;
    kubectl get llmtrainingjob NAME-tune -o json | llmtrain tune --result -
    """
    if (job is None) == (result is None):
        raise CliError("give either a job with -f, or a tuning job with --result")
    if result is not None:
        _show_result(result, output)
        return
    document = read_document(str(job))
    job_of(document, str(job))
    made = tuning_job(document, steps)
    if output is Output.JSON:
        show(made, "", output)
    else:
        echo(yaml.safe_dump(made, sort_keys=False).rstrip())


def _show_result(path: str, output: Output) -> None:
    document = read_document(path)
    found = read_network_tuning(_at(document, "status", "progress").get("networkTuning"))
    if found is None:
        raise CliError(
            f"{path}: the job has no status.progress.networkTuning yet, or is no tuning job",
            EXIT_FAILURE,
        )
    own = _at(document, "spec", "network", "nccl")
    nccl = {name: value for name, value in own.items() if isinstance(value, str)}
    show(found.to_wire(), "\n".join(tuning_lines(found, nccl)), output)


def _at(document: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return a mapping inside a document; empty if there is none."""
    for name in path:
        below = document.get(name)
        document = below if isinstance(below, dict) else {}
    return document
