"""`llmtrain run -f JOB --nproc N`: the job on this computer, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from llmtrain_cli.errors import EXIT_FAILURE, CliError
from llmtrain_cli.io.files import read_job
from llmtrain_cli.io.output import Output, echo, show
from llmtrain_cli.run.local_job import CHECKPOINTS, local_job
from llmtrain_cli.run.local_run import LocalRun, Status
from llmtrain_cli.run.plot import plot
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.validation.check import Job

EXIT_STOPPED = 130
"""Stopped by Ctrl-C (128 + SIGINT). The same command resumes the run."""
PHASE_WIDTH, MIN_BAR_WIDTH = 10, 10
"""Columns of a terminal."""
QUIET_LINES = 10
"""Progress lines of a run without a terminal."""


def command(
    file: Annotated[str, typer.Option("-f", "--file", help="the job's manifest")],
    nproc: Annotated[
        int | None, typer.Option(min=1, help="processes; default: the job's ranks")
    ] = None,
    tensor: Annotated[int | None, typer.Option(min=1, help="instead of the job's degree")] = None,
    pipeline: Annotated[int | None, typer.Option(min=1, help="instead of the job's degree")] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of the run; default: runs/NAME")
    ] = None,
    form: Annotated[Output, typer.Option("-o", "--format", help="text or json")] = Output.TEXT,
) -> None:
    """Run a job on this computer. The same command resumes it from its last checkpoint.

    Ctrl-C stops it after a checkpoint; a second Ctrl-C kills it. Exit codes: 0 done, 1 the
    trainer is not installed, 2 invalid input, 130 stopped, else as in docs/contract.md.
    """
    job = read_job(file)
    folder = output or Path("runs") / job.name
    local = local_job(job, nproc, tensor, pipeline, folder)
    try:
        from llmtrain_trainer.runtime.child_process import die_with_parent

        folder.mkdir(parents=True, exist_ok=True)
        with LocalRun(local, folder, die_with_parent) as run:
            stopped = _follow(run, local, form)
            code, result = run.result()
    except ImportError as error:
        raise CliError(
            "running needs the trainer: pip install llmtrain[trainer]", EXIT_FAILURE
        ) from error
    except OSError as error:
        raise CliError(f"--output {folder}: {error}") from error
    if isinstance(result, Mapping):
        losses = _losses(folder)
        document = {"output": str(folder), "layout": str(local.layout), **result}
        show(document, _text(document, losses), form)
        return
    if stopped:
        raise CliError(_stopped_message(folder), EXIT_STOPPED)
    raise CliError(_failure_message(result, folder), code or 1)


def _follow(run: LocalRun, job: Job, form: Output) -> bool:
    """Show the run until it ends; return True if it was interrupted."""
    stops = 0
    statuses = run.statuses()
    with _display(job, form) as display:
        while True:
            try:
                status = next(statuses, None)
                if status is None:
                    return stops > 0
                display(status)
            except KeyboardInterrupt:
                stops += 1
                statuses = run.statuses()
                if stops > 1:
                    run.kill()
                    continue
                echo("stopping; press Ctrl-C again to kill the run", err=True)
                run.stop()


@contextmanager
def _display(job: Job, form: Output) -> Iterator[Callable[[Status], None]]:
    """Draw a progress bar on a terminal, or write lines elsewhere. JSON output has neither."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if form is Output.JSON:
        yield lambda _: None
        return
    if not console.is_terminal:
        yield _LineProgress(job.total_steps)
        return
    columns = (
        TextColumn(f"{{task.fields[phase]:{PHASE_WIDTH}}}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("", total=job.total_steps, phase="starting", facts="")

        def update(status: Status) -> None:
            count = f"{status['step']}/{status['totalSteps']}"
            room = console.width - PHASE_WIDTH - MIN_BAR_WIDTH - len(count) - len(columns)
            facts = _fitting(_metrics_text(status), room)
            done, total = status["step"], status["totalSteps"] or None
            bars.update(task, completed=done, total=total, phase=status["phase"], facts=facts)

        yield update


def _fitting(metrics: Iterable[str], width: int) -> str:
    """Join the first metrics that fit: rich would shorten the phase and the count, not the end."""
    text = ""
    for metric in metrics:
        longer = f"{text} · {metric}" if text else metric
        if len(longer) > width:
            break
        text = longer
    return text


class _LineProgress:
    """Progress without a terminal: a line for each change of phase and for some steps."""

    def __init__(self, total: int) -> None:
        self._every = max(1, total // QUIET_LINES)
        self._shown: tuple[str, int] | None = None

    def __call__(self, status: Status) -> None:
        """Write a line if the phase or the share of steps has changed."""
        now = (status["phase"], int(status["step"]) // self._every)
        if now != self._shown:
            self._shown = now
            facts = " · ".join([f"{status['step']}/{status['totalSteps']}", *_metrics_text(status)])
            echo(f"{status['phase']:10} {facts}", err=True)


def _metrics_text(status: Status) -> Iterator[str]:
    """Yield the known metrics of a step, the most important first."""
    if status["loss"] is not None:
        yield f"loss {status['loss']:.4g}"
    if status["tokensPerSecond"]:
        yield f"{status['tokensPerSecond']:,.0f} tokens/s"
        left = (status["totalSteps"] - status["step"]) * status["stepSeconds"]
        yield f"ETA {timedelta(seconds=round(left))}"
    held_out = [status[f"heldOutLoss{when}"] for when in ("Before", "During", "After")]
    if known := [f"{loss:.4g}" for loss in held_out if loss is not None]:
        yield f"held-out {' → '.join(known)}"


def _losses(folder: Path) -> dict[int, float]:
    """Return the loss by step, over all runs in a folder."""
    from llmtrain_trainer.training.metrics_file import METRICS_FILE

    try:
        lines = (folder / CHECKPOINTS / METRICS_FILE).read_text().splitlines()
    except FileNotFoundError:  # it could not be written, as the log says
        return {}
    entries = map(json.loads, lines)
    return {entry["step"]: entry["loss"] for entry in entries if entry.get("loss") is not None}


def _text(result: Mapping[str, Any], losses: Mapping[int, float]) -> str:
    lines = [f"{result['step']} steps as {result['layout']}; written to {result['output']}"]
    before, after = result["heldOutLossBefore"], result["heldOutLossAfter"]
    if before is not None and after is not None:
        lines.append(f"held-out loss {before:.4g} before, {after:.4g} after")
    if losses:
        lines += ["", "loss by step", plot(losses)]
    return "\n".join(lines)


def _stopped_message(folder: Path) -> str:
    found = sorted(
        int(path.parent.name.removeprefix("step-"))
        for path in (folder / CHECKPOINTS).glob("step-*/.metadata")
    )
    saved = f"step {found[-1]} is saved" if found else "no checkpoint was written yet"
    return f"stopped; {saved}. Run the same command again to resume"


def _failure_message(failure: FailureInfo | None, folder: Path) -> str:
    log = f"see {folder / 'log.txt'}"
    if failure is None:
        return f"the launcher ended without a termination message\n  {log}"
    texts = (failure.reason, failure.field, failure.message, failure.remedy, log)
    return "\n  ".join(text for text in texts if text)
