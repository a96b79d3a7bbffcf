"""`llmtrain plan`: estimate memory, time and cost of a run before it is submitted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Annotated, Any

import typer

from llmtrain_cli.errors import EXIT_FAILURE, CliError
from llmtrain_cli.io.files import read_fabric, read_job, snapshot_for
from llmtrain_cli.io.network_text import network_lines, network_to_wire
from llmtrain_cli.io.output import echo
from llmtrain_cli.plan.cpu import cpu_plan
from llmtrain_cli.plan.nodes import NodeSelection, select_nodes
from llmtrain_cli.plan.text import plan_text
from llmtrain_core.devices.demand import demand_of
from llmtrain_core.errors import PlanError
from llmtrain_core.forecast.plan import Plan, PlanRequest
from llmtrain_core.forecast.plan import plan as make_plan
from llmtrain_core.forecast.plan_json import plan_to_wire
from llmtrain_core.network import NetworkRequest
from llmtrain_core.placement import Placement, Request, on_network, place
from llmtrain_core.plan.memory.training_memory import format_bytes
from llmtrain_core.plan.model.model_shape import shape_named
from llmtrain_core.plan.search.fix_hint import fix_hint
from llmtrain_core.plan.time.goodput import DEFAULT_FAILURES, Failures
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.topology.levels import Levels
from llmtrain_core.topology.links import links_of
from llmtrain_core.validation.check import Job

JobOption = Annotated[str | None, typer.Option("-f", "--file", help="the job's manifest")]
ModelOption = Annotated[str | None, typer.Option(help="a published model, instead of a job")]
TokensOption = Annotated[str | None, typer.Option(help="tokens to train on: 300e9")]
GpuOption = Annotated[
    str | None, typer.Option(help="GPU type; default: that of the nodes, else H100")
]
GpusOption = Annotated[int | None, typer.Option(help="number of GPUs; default: that of the job")]
DaysOption = Annotated[
    float | None, typer.Option(help="deadline; find the smallest number of GPUs that meets it")
]
SequenceOption = Annotated[int | None, typer.Option(help="tokens per sequence")]
BatchOption = Annotated[int | None, typer.Option(help="sequences per step")]
NodesOption = Annotated[
    str | None, typer.Option(help="nodes, as kubectl get nodes -o json prints them")
]
FabricOption = Annotated[
    str | None, typer.Option(help="file of a Fabric, or a preset; default: detected from labels")
]
PriceOption = Annotated[float | None, typer.Option(help="USD per GPU hour")]
RateOption = Annotated[
    float | None,
    typer.Option(help=f"failures per node and day; default {DEFAULT_FAILURES.per_node_day:g}"),
]
SaveOption = Annotated[
    float | None,
    typer.Option(
        help=f"seconds that a save blocks training; default {DEFAULT_FAILURES.save_seconds:g}"
    ),
]
RestartOption = Annotated[
    float | None,
    typer.Option(
        help=f"seconds to resume after a failure; default {DEFAULT_FAILURES.restart_seconds:g}"
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(help="output of python -m llmtrain_trainer.calibration: plan for that CPU"),
]
FormatOption = Annotated[str, typer.Option("-o", "--output", help="text or json")]


@dataclass(frozen=True, slots=True)
class PlanFlags:
    """The flags of the command; None if a flag is not given."""

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
        """The names of the flags that are given."""
        return {each.name for each in fields(self) if getattr(self, each.name) is not None}

    @property
    def failures(self) -> Failures:
        """The failure model: the defaults, with the values of the flags."""
        given = {
            "per_node_day": self.failures_per_node_day,
            "save_seconds": self.save_seconds,
            "restart_seconds": self.restart_seconds,
        }
        return replace(
            DEFAULT_FAILURES, **{name: value for name, value in given.items() if value is not None}
        )


CONFLICTS = (
    ("tokens", "job", "the job's spec.training sets the tokens; change it there, or use --model"),
    (
        "sequence",
        "job",
        "the job's spec.model sets the sequence length; change it there, or use --model",
    ),
    ("batch", "job", "the job's spec.training.globalBatchSize sets the batch; change it there"),
    ("days", "job", "a deadline looks for the GPUs of a --model; for a job use --gpus N"),
    ("days", "gpus", "a deadline looks for the number of GPUs; drop one of the two"),
    ("days", "nodes", "a deadline looks for the number of GPUs; drop one of the two, pass --gpu"),
    ("fabric", "model", "only a job is placed on a fabric; use -f JOB, or drop --fabric"),
)
"""Pairs of flags that cannot be combined, and the remedy."""


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
    """Estimate memory, time and cost of a run. Exit code 1 if it does not fit."""
    if output not in ("text", "json"):
        raise CliError(f"-o {output}: neither text nor json")
    flags = PlanFlags(
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
            _plan_for_cpu(flags, calibration, output)
            return
        _check(flags)
        _answer(flags, output)
    except PlanError as error:
        raise CliError(str(error)) from error


def _plan_for_cpu(flags: PlanFlags, calibration: str, output: str) -> None:
    if flags.job is None or flags.given != {"job"}:
        raise CliError("--calibration goes with -f JOB and -o only: a CPU has one speed")
    wire, text = cpu_plan(flags.job, calibration)
    echo(json.dumps(wire, indent=2) if output == "json" else text)


def _check(flags: PlanFlags) -> None:
    """Reject conflicting flags and invalid numbers."""
    given = flags.given
    if len(given & {"job", "model"}) != 1:
        raise CliError("give either a job with -f, or --model with --tokens")
    for option, other, advice in CONFLICTS:
        if {option, other} <= given:
            beside = "-f" if other == "job" else f"--{other}"
            raise CliError(f"--{option} beside {beside}: {advice}")
    if "fabric" in given and "nodes" not in given:
        raise CliError("--fabric without --nodes: nothing is placed; pass --nodes, or drop it")
    if {"model", "nodes", "gpus"} <= given:
        raise CliError("--gpus beside --nodes: the nodes' GPUs are counted; drop one of the two")
    for option, least in (("sequence", 1), ("batch", 1), ("price", 0)):
        value = getattr(flags, option)
        if value is not None and not least <= value < inf:
            raise CliError(f"--{option} {value:g}: use {least} or more")
    if flags.days is not None and not 0 < flags.days < inf:
        raise CliError(f"--days {flags.days:g}: use more than 0")


def _answer(flags: PlanFlags, output: str) -> None:
    job = None if flags.job is None else read_job(flags.job)
    selection = select_nodes(flags.nodes, flags.gpu, () if job is None else demand_of(job.spec))
    if job is None:
        _show(_plan_model(flags, selection), selection, output)
        return
    found, network = _plan_job(job, flags, selection)
    _show(found, selection, output, network)
    if not found.memory.fits:
        memory = found.memory
        echo(
            f"llmtrain: {found.setup.layout} needs {format_bytes(memory.total)} of"
            f" {found.hardware.name}'s {format_bytes(memory.capacity)};"
            f" {fix_hint(job, found.setup, memory.capacity)}",
            err=True,
        )
        raise typer.Exit(EXIT_FAILURE)


def _show(
    found: Plan, selection: NodeSelection, output: str, network: Mapping[str, Any] | None = None
) -> None:
    found = replace(found, assumptions=(*found.assumptions, *selection.notes))
    wire = {**plan_to_wire(found), **({"network": network} if network else {})}
    text = "\n".join([plan_text(found), *(["", *network_lines(network)] if network else [])])
    echo(json.dumps(wire, indent=2, allow_nan=False) if output == "json" else text)


def _plan_job(
    job: Job, flags: PlanFlags, selection: NodeSelection
) -> tuple[Plan, dict[str, Any] | None]:
    """Return the plan of a job, and with --nodes the network that it has there."""
    own = job.layout.world_size
    if selection.nodes and flags.gpus is not None and flags.gpus != own:
        raise CliError(
            f"--gpus {flags.gpus}: with --nodes the job's own {own} GPUs are placed; drop one of"
            " the two"
        )
    fabric = read_fabric(flags.fabric) if flags.fabric else None
    request = Request.of(job, selection.hardware)
    placement: Placement | None = None
    levels: Levels = ()
    if selection.nodes:
        state = snapshot_for(fabric, selection.nodes)
        request = on_network(request, NetworkRequest.of(job), state)
        placement, levels = _placement(request, state, selection), state.levels
    links = links_of(fabric) if fabric else None
    found = make_plan(
        job, selection.hardware, flags.gpus, placement, levels, flags.price, flags.failures, links
    )
    return found, network_to_wire(request)


def _plan_model(flags: PlanFlags, selection: NodeSelection) -> Plan:
    if flags.tokens is None:
        raise CliError("--model needs --tokens, for example --tokens 300e9")
    shape = shape_named(flags.model or "")
    if flags.sequence is not None:
        shape = shape.with_length(flags.sequence)
    request = PlanRequest(shape, _number(flags.tokens), flags.batch, days=flags.days)
    gpus = selection.gpus if flags.gpus is None else flags.gpus
    return make_plan(request, selection.hardware, gpus, price=flags.price, failures=flags.failures)


def _number(text: str) -> int:
    """Parse a count such as 300e9 or 1.4T."""
    scale = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}.get(text[-1:].lower(), 1.0)
    digits = text[:-1] if scale != 1.0 else text
    try:
        value = float(digits.replace("_", "")) * scale
        return int(value)
    except (ValueError, OverflowError) as error:
        raise CliError(f"--tokens {text}: not a number; write 300e9, 300B or 1.4T") from error


def _placement(request: Request, state: Snapshot, selection: NodeSelection) -> Placement:
    """Place a job on the given nodes, as if nothing else ran there."""
    answer = place(request, state)
    if not isinstance(answer, Placement):
        left = "".join(f"; {note}" for note in selection.notes)
        raise CliError(f"--nodes: the job does not fit: {answer.message}{left}", EXIT_FAILURE)
    return answer
