"""`llmtrain plan`: what a run needs and how long it takes, before anything is submitted."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Annotated

import typer

from llmtrain_cli.errors import EXIT_NO, CliError
from llmtrain_cli.io.files import read_fabric, read_job, snapshot_for
from llmtrain_cli.plan.cpu import processor_plan
from llmtrain_cli.plan.nodes import Chosen, choose
from llmtrain_cli.plan.text import plan_text
from llmtrain_core.errors import PlanError
from llmtrain_core.forecast.document import plan_to_wire
from llmtrain_core.forecast.plan import Plan, PlanRequest
from llmtrain_core.forecast.plan import plan as make_plan
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.plan.memory.training_memory import format_bytes
from llmtrain_core.plan.model.model_shape import shape_named
from llmtrain_core.plan.search.fix_hint import fix_hint
from llmtrain_core.plan.time.goodput import DEFAULT_FAILURES, Failures
from llmtrain_core.topology.levels import Levels
from llmtrain_core.validation.check import Job

JobOption = Annotated[str | None, typer.Option("-f", "--file", help="the job's manifest")]
ModelOption = Annotated[str | None, typer.Option(help="a published model, instead of a job")]
TokensOption = Annotated[str | None, typer.Option(help="tokens to train on: 300e9")]
GpuOption = Annotated[str | None, typer.Option(help="GPU type; default: the nodes', else H100")]
GpusOption = Annotated[int | None, typer.Option(help="number of GPUs; default: the job's")]
DaysOption = Annotated[float | None, typer.Option(help="deadline: find the least GPUs")]
SequenceOption = Annotated[int | None, typer.Option(help="tokens of a sequence")]
BatchOption = Annotated[int | None, typer.Option(help="sequences of a step")]
NodesOption = Annotated[
    str | None, typer.Option(help="nodes, as kubectl get nodes -o json prints them")
]
FabricOption = Annotated[
    str | None, typer.Option(help="a Fabric's file or a preset; default: what labels show")
]
PriceOption = Annotated[float | None, typer.Option(help="USD per GPU hour")]
RateOption = Annotated[
    float | None,
    typer.Option(help=f"failures of a node a day; default {DEFAULT_FAILURES.per_node_day:g}"),
]
SaveOption = Annotated[
    float | None,
    typer.Option(help=f"that a save stops training; default {DEFAULT_FAILURES.save_seconds:g}"),
]
RestartOption = Annotated[
    float | None,
    typer.Option(help=f"from failure to training; default {DEFAULT_FAILURES.restart_seconds:g}"),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(help="what python -m llmtrain_trainer.calibration wrote: plan for that CPU"),
]
FormatOption = Annotated[str, typer.Option("-o", "--output", help="text or json")]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked on the command line; None: not given."""

    job: str | None
    model: str | None
    tokens: str | None
    gpu: str | None
    gpus: int | None
    days: float | None
    sequence: int | None
    batch: int | None
    nodes: str | None
    fabric: str | None
    price: float | None
    failures_per_node_day: float | None
    save_seconds: float | None
    restart_seconds: float | None

    @property
    def given(self) -> set[str]:
        """Names of the options that are given."""
        return {each.name for each in fields(self) if getattr(self, each.name) is not None}

    @property
    def failures(self) -> Failures:
        """How often nodes fail; the usual where nothing is said."""
        said = {
            "per_node_day": self.failures_per_node_day,
            "save_seconds": self.save_seconds,
            "restart_seconds": self.restart_seconds,
        }
        return replace(
            DEFAULT_FAILURES, **{name: value for name, value in said.items() if value is not None}
        )


CLASHES = (
    ("tokens", "job", "the job's spec.training says how many; change it there, or use --model"),
    ("sequence", "job", "the job's spec.model says how long; change it there, or use --model"),
    ("batch", "job", "the job's spec.training.globalBatchSize says it; change it there"),
    ("days", "job", "a deadline looks for the GPUs of a --model; for a job use --gpus N"),
    ("days", "gpus", "a deadline looks for the number of GPUs; drop one of the two"),
    ("days", "nodes", "a deadline looks for the number of GPUs; drop one of the two, pass --gpu"),
    ("fabric", "model", "only a job is placed on a fabric; use -f JOB, or drop --fabric"),
)
"""Options that would be ignored beside another one, and what to do about it."""


def command(
    job: JobOption = None,
    model: ModelOption = None,
    tokens: TokensOption = None,
    gpu: GpuOption = None,
    gpus: GpusOption = None,
    days: DaysOption = None,
    sequence: SequenceOption = None,
    batch: BatchOption = None,
    nodes: NodesOption = None,
    fabric: FabricOption = None,
    price: PriceOption = None,
    failures_per_node_day: RateOption = None,
    save_seconds: SaveOption = None,
    restart_seconds: RestartOption = None,
    calibration: CalibrationOption = None,
    output: FormatOption = "text",
) -> None:
    """Say what a run needs and how long it takes. Exit code 1 if it does not fit."""
    if output not in ("text", "json"):
        raise CliError(f"-o {output}: neither text nor json")
    asked = Asked(
        job,
        model,
        tokens,
        gpu,
        gpus,
        days,
        sequence,
        batch,
        nodes,
        fabric,
        price,
        failures_per_node_day,
        save_seconds,
        restart_seconds,
    )
    try:
        if calibration is not None:
            _plan_for_processor(asked, calibration, output)
            return
        _check(asked)
        _answer(asked, output)
    except PlanError as error:
        raise CliError(str(error)) from error


def _plan_for_processor(asked: Asked, calibration: str, output: str) -> None:
    if asked.job is None or asked.given != {"job"}:
        raise CliError("--calibration goes with -f JOB and -o only: a CPU has one speed")
    wire, text = processor_plan(asked.job, calibration)
    typer.echo(json.dumps(wire, indent=2) if output == "json" else text)


def _check(asked: Asked) -> None:
    """Refuse what would be ignored, and numbers that are none."""
    given = asked.given
    if len(given & {"job", "model"}) != 1:
        raise CliError("give either a job with -f, or --model with --tokens")
    for option, other, advice in CLASHES:
        if {option, other} <= given:
            beside = "-f" if other == "job" else f"--{other}"
            raise CliError(f"--{option} beside {beside}: {advice}")
    if "fabric" in given and "nodes" not in given:
        raise CliError("--fabric without --nodes: nothing is placed; pass --nodes, or drop it")
    if {"model", "nodes", "gpus"} <= given:
        raise CliError("--gpus beside --nodes: the nodes' GPUs are counted; drop one of the two")
    for option, least in (("sequence", 1), ("batch", 1), ("price", 0)):
        value = getattr(asked, option)
        if value is not None and not least <= value < inf:
            raise CliError(f"--{option} {value:g}: use {least} or more")
    if asked.days is not None and not 0 < asked.days < inf:
        raise CliError(f"--days {asked.days:g}: use more than 0")


def _answer(asked: Asked, output: str) -> None:
    chosen = choose(asked.nodes, asked.gpu)
    if asked.job is None:
        _show(_of_model(asked, chosen), chosen, output)
        return
    job = read_job(asked.job)
    found = _of_job(job, asked, chosen)
    _show(found, chosen, output)
    if not found.memory.fits:
        memory = found.memory
        typer.echo(
            f"llmtrain: {found.setup.layout} needs {format_bytes(memory.total)} of"
            f" {found.hardware.name}'s {format_bytes(memory.capacity)};"
            f" {fix_hint(job, found.setup, memory.capacity)}",
            err=True,
        )
        raise typer.Exit(EXIT_NO)


def _show(found: Plan, chosen: Chosen, output: str) -> None:
    found = replace(found, assumptions=(*found.assumptions, *chosen.notes))
    wire = plan_to_wire(found)
    typer.echo(
        json.dumps(wire, indent=2, allow_nan=False) if output == "json" else plan_text(found)
    )


def _of_job(job: Job, asked: Asked, chosen: Chosen) -> Plan:
    own = job.layout.world_size
    if chosen.nodes and asked.gpus is not None and asked.gpus != own:
        raise CliError(
            f"--gpus {asked.gpus}: with --nodes the job's own {own} GPUs are placed; drop one of"
            " the two"
        )
    placement, levels = _placement(job, chosen, asked.fabric)
    return make_plan(
        job, chosen.hardware, asked.gpus, placement, levels, asked.price, asked.failures
    )


def _of_model(asked: Asked, chosen: Chosen) -> Plan:
    if asked.tokens is None:
        raise CliError("--model needs --tokens, for example --tokens 300e9")
    shape = shape_named(asked.model or "")
    if asked.sequence is not None:
        shape = shape.with_length(asked.sequence)
    request = PlanRequest(shape, _number(asked.tokens), asked.batch, days=asked.days)
    gpus = chosen.gpus if asked.gpus is None else asked.gpus
    return make_plan(request, chosen.hardware, gpus, price=asked.price, failures=asked.failures)


def _number(text: str) -> int:
    """Read a count that may be written as 300e9 or 1.4T."""
    scale = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}.get(text[-1:].lower(), 1.0)
    digits = text[:-1] if scale != 1.0 else text
    try:
        value = float(digits.replace("_", "")) * scale
        return int(value)
    except (ValueError, OverflowError) as error:
        raise CliError(f"--tokens {text}: not a number; write 300e9, 300B or 1.4T") from error


def _placement(job: Job, chosen: Chosen, fabric: str | None) -> tuple[Placement | None, Levels]:
    """Return where the job would sit on the given nodes if nothing else ran there."""
    if not chosen.nodes:
        return None, ()
    state = snapshot_for(read_fabric(fabric) if fabric else None, chosen.nodes)
    answer = place(Request.of(job), state)
    if not isinstance(answer, Placement):
        left = "".join(f"; {note}" for note in chosen.notes)
        raise CliError(f"--nodes: the job does not fit: {answer.message}{left}", EXIT_NO)
    return answer, state.levels
