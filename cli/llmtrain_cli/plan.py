"""`llmtrain plan`: what a run needs and how long it takes, before anything is submitted."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import typer

from llmtrain_cli.errors import EXIT_NO, CliError
from llmtrain_cli.files import read_fabric, read_items, read_job, snapshot_for
from llmtrain_cli.processor import processor_plan
from llmtrain_core.api.check import Job
from llmtrain_core.placement import Placement, Request, place
from llmtrain_core.plan.errors import PlanError
from llmtrain_core.plan.hardware import PRODUCT_LABELS, Accelerator, accelerator, accelerator_of
from llmtrain_core.plan.memory import binary
from llmtrain_core.plan.plan import Plan, Question
from llmtrain_core.plan.plan import plan as make_plan
from llmtrain_core.plan.shapes import shape_named
from llmtrain_core.plan.wire import plan_to_wire
from llmtrain_core.topology.inventory import Node, node_from_raw
from llmtrain_core.topology.levels import Levels

DEFAULT_GPU = "H100"


def command(
    job: Annotated[str | None, typer.Option("-f", "--file", help="the job's manifest")] = None,
    model: Annotated[str | None, typer.Option(help="a published model, instead of a job")] = None,
    tokens: Annotated[str | None, typer.Option(help="tokens to train on: 300e9")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="GPU type; default: the nodes', else H100")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="number of GPUs; default: the job's")] = None,
    days: Annotated[float | None, typer.Option(help="deadline: find the least GPUs")] = None,
    sequence: Annotated[int | None, typer.Option(help="tokens of a sequence")] = None,
    batch: Annotated[int | None, typer.Option(help="sequences of a step")] = None,
    nodes: Annotated[
        str | None, typer.Option(help="nodes, as kubectl get nodes -o json prints them")
    ] = None,
    fabric: Annotated[
        str | None, typer.Option(help="a Fabric's file or a preset; default: what labels show")
    ] = None,
    price: Annotated[float | None, typer.Option(help="USD per GPU hour")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="what python -m llmtrain_trainer.calibrate wrote: plan for that CPU"),
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json")] = "text",
) -> None:
    """Say what a run needs and how long it takes. Exit code 1 if it does not fit in memory."""
    if output not in ("text", "json"):
        raise CliError(f"-o {output}: neither text nor json")
    try:
        if calibration is not None:
            others = (model, tokens, gpu, gpus, days, sequence, batch, nodes, fabric, price)
            _plan_for_processor(job, calibration, others, output)
            return
        found = _plan(job, model, tokens, gpu, gpus, days, sequence, batch, nodes, fabric, price)
    except PlanError as error:
        raise CliError(str(error)) from error
    typer.echo(json.dumps(plan_to_wire(found), indent=2) if output == "json" else plan_text(found))
    if not found.memory.fits:
        typer.echo(f"llmtrain: {_too_large(found)}", err=True)
        raise typer.Exit(EXIT_NO)


def _plan_for_processor(
    job: str | None, calibration: str, others: tuple[object, ...], output: str
) -> None:
    if job is None or any(other is not None for other in others):
        raise CliError("--calibration goes with -f JOB and -o only: a CPU has one speed")
    wire, text = processor_plan(job, calibration)
    typer.echo(json.dumps(wire, indent=2) if output == "json" else text)


def _plan(
    job: str | None, model: str | None, tokens: str | None, gpu: str | None, gpus: int | None,
    days: float | None, sequence: int | None, batch: int | None, nodes: str | None,
    fabric: str | None, price: float | None,
) -> Plan:  # fmt: skip
    if (job is None) == (model is None):
        raise CliError("give either a job with -f, or --model with --tokens")
    inventory = _inventory(nodes)
    hardware = _hardware(gpu, inventory)
    if job is not None:
        subject = read_job(job)
        _same_size(subject, inventory, gpus)
        placement, levels = _placement(subject, inventory, fabric)
        return make_plan(subject, hardware, gpus, placement, levels, price)
    if tokens is None:
        raise CliError("--model needs --tokens, for example --tokens 300e9")
    shape = shape_named(model or "")
    if sequence is not None:
        if sequence < 1:
            raise CliError(f"--sequence {sequence}: use 1 or more")
        shape = shape.with_length(sequence)
    if batch is not None and batch < 1:
        raise CliError(f"--batch {batch}: use 1 or more")
    if days is not None and not days > 0:
        raise CliError(f"--days {days}: use more than 0")
    question = Question(shape, _number(tokens), batch, days=days)
    if gpus is None:
        gpus = _counted(inventory, hardware)
    return make_plan(question, hardware, gpus, price=price)


def _number(text: str) -> int:
    """Read a count that may be written as 300e9 or 1.4T."""
    scale = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}.get(text[-1:].lower(), 1.0)
    digits = text[:-1] if scale != 1.0 else text
    try:
        value = float(digits.replace("_", "")) * scale
        return int(value)
    except (ValueError, OverflowError) as error:
        raise CliError(f"--tokens {text}: not a number; write 300e9, 300B or 1.4T") from error


def _inventory(path: str | None) -> list[Node]:
    if path is None:
        return []
    try:
        return [node_from_raw(raw) for raw in read_items(path, "Node")]
    except (KeyError, TypeError, AttributeError) as error:
        raise CliError(
            f"--nodes {path}: an object is not as kubectl prints it: {error!r}"
        ) from error


def _hardware(name: str | None, inventory: list[Node]) -> Accelerator:
    """Return the named GPU, else the one that the nodes' labels name, else the default."""
    if name is not None:
        return accelerator(name)
    if not inventory:
        return accelerator(DEFAULT_GPU)
    found = {row.name: row for node in inventory if (row := accelerator_of(node.labels))}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise CliError("--nodes: several GPU types, " + ", ".join(sorted(found)) + "; pass --gpu")
    raise CliError(
        "--nodes: no node has a known " + " or ".join(PRODUCT_LABELS) + " label; pass --gpu"
    )


def _counted(inventory: list[Node], hardware: Accelerator) -> int | None:
    """Return the GPUs of the nodes of one type; None without nodes."""
    resources = ("nvidia.com/gpu", "amd.com/gpu")
    mine = [n for n in inventory if (row := accelerator_of(n.labels)) is None or row == hardware]
    return sum(n.allocatable.get(r, 0) for n in mine for r in resources) or None


def _same_size(job: Job, inventory: list[Node], gpus: int | None) -> None:
    if inventory and gpus is not None and gpus != job.layout.world_size:
        raise CliError(
            f"--gpus {gpus}: with --nodes the job's own {job.layout.world_size} GPUs are placed;"
            " drop one of the two"
        )


def _placement(
    job: Job, inventory: list[Node], fabric: str | None
) -> tuple[Placement | None, Levels]:
    """Return where the job would sit on the given nodes if nothing else ran there."""
    if not inventory:
        return None, ()
    state = snapshot_for(read_fabric(fabric) if fabric else None, inventory)
    answer = place(Request.of(job), state)
    if not isinstance(answer, Placement):
        raise CliError(f"--nodes: the job does not fit: {answer.message}", EXIT_NO)
    return answer, state.levels


def _too_large(plan: Plan) -> str:
    """Name the limit, and the nearest layout that keeps it."""
    memory = plan.memory
    needs = (
        f"{plan.recipe.layout} needs {binary(memory.total)} of {plan.hardware.name}'s"
        f" {binary(memory.capacity)}"
    )
    if not plan.alternatives:
        return f"{needs}; no layout of {plan.gpus} GPUs fits: use more GPUs or larger ones"
    near = plan.alternatives[0]
    return (
        f"{needs}; {near.recipe.layout} with micro-batch {near.recipe.micro_batch} and"
        f" {near.recipe.checkpointing} recomputation needs {binary(near.memory.total)}"
    )


WIDTH = 80
BAR = 30
SMALL = 1024


def plan_text(plan: Plan) -> str:
    """Show a plan in 80 columns."""
    return "\n".join(
        line
        for part in (_head, _memory_lines, _step_lines, _traffic_lines, _end_lines, _other_lines)
        for line in (*part(plan), "")
    ).rstrip()


def _head(plan: Plan) -> Iterator[str]:
    recipe = plan.recipe
    if plan.learning != plan.parameters:
        yield f"{plan.learning:,} parameters of adapters learn beside frozen weights"
    active = plan.active_parameters
    some = f" ({active:,} for a token)" if active < plan.parameters else ""
    yield (
        f"{plan.parameters:,} parameters{some} on {plan.tokens:.3g} tokens:"
        f" {plan.total_flops:.3g} FLOPs"
    )
    yield f"{plan.gpus:,} x {plan.hardware.name} as {recipe.layout}"
    yield (
        f"batch {recipe.global_batch:,} sequences in {recipe.micro_batches} micro-batches of"
        f" {recipe.micro_batch}, {recipe.precision}"
    )
    pipeline = f", {recipe.schedule} x{recipe.chunks}" if recipe.layout.pipeline > 1 else ""
    yield f"activation checkpointing {recipe.checkpointing}{pipeline}"


def _memory_lines(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    yield f"MEMORY PER GPU  {binary(memory.total)} of {binary(memory.capacity)}: {verdict}"
    yield from _bars(memory.parts, max(memory.capacity, memory.total), binary)


def _step_lines(plan: Plan) -> Iterator[str]:
    time = plan.time
    yield (
        f"STEP  {time.seconds:.3f} s, {plan.tokens_per_second:,.0f} tokens/s,"
        f" MFU {plan.mfu:.1%}, bubble {plan.bubble:.1%}"
    )
    parts = {"compute": time.compute, "bubble": time.bubble}
    exposed = {f"exposed {group}": seconds for group, seconds in time.exposed.items()}
    yield from _bars({**parts, **exposed}, time.seconds, lambda seconds: f"{seconds:.3f} s")


def _bars(parts: Mapping[str, float], whole: float, text: Callable[[float], str]) -> Iterator[str]:
    for name, value in parts.items():
        if value > 0:
            bar = "#" * max(1, round(BAR * value / whole))
            yield f"  {name:<14} {text(value):>12} {value / whole:>6.1%}  {bar}"


def _traffic_lines(plan: Plan) -> Iterator[str]:
    if not plan.communication:
        return
    yield f"{'COMMUNICATION':<16}{'operation':<16}{'calls':>10}{'per step':>14}"
    for (group, operation), calls in plan.communication.items():
        if calls.nbytes < SMALL:
            continue  # a norm or a loss: one number
        yield f"  {group:<14}{operation:<16}{calls.count:>10,}{_amount(calls.nbytes):>14}"


def _end_lines(plan: Plan) -> Iterator[str]:
    cost, life = plan.cost, plan.goodput
    with_failures = plan.days / life.ratio if life.ratio else float("inf")
    yield f"TIME     {plan.days:,.1f} days; {with_failures:,.1f} with failures"
    yield (
        f"         goodput {life.ratio:.1%}, {life.failures_per_day:.2f} failures a day,"
        f" save every {life.checkpoint_seconds / 60:.0f} min"
    )
    yield (
        f"COST     {cost.gpu_hours:,.0f} GPU hours, {cost.kilowatt_hours / 1000:,.0f} MWh,"
        f" {cost.dollars:,.0f} USD"
    )
    yield (
        f"STORAGE  {_amount(plan.storage.tokens)} of tokens,"
        f" {_amount(plan.storage.checkpoint)} a checkpoint"
    )


def _other_lines(plan: Plan) -> Iterator[str]:
    if plan.alternatives:
        yield f"{'OTHER LAYOUTS':<28}{'micro':>6}{'recompute':>11}{'memory':>11}{'tokens/s':>14}"
        for other in plan.alternatives:
            recipe = other.recipe
            yield (
                f"  {recipe.layout!s:<26}{recipe.micro_batch:>6}{recipe.checkpointing:>11}"
                f"{binary(other.memory.total):>11}{other.tokens_per_second:>14,.0f}"
            )
    yield "ASSUMED"
    for note in plan.assumptions:
        yield from textwrap.wrap(note, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def _amount(nbytes: float) -> str:
    """Return bytes with a decimal prefix."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} PB"
