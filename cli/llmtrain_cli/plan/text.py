"""Text output of `llmtrain plan`, in 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from textwrap import wrap

from llmtrain_cli.io.output import WIDTH, bullets
from llmtrain_core.forecast.plan import Plan
from llmtrain_core.plan.memory.training_memory import format_bytes
from llmtrain_core.plan.training_setup import TrainingSetup

BAR = 30
SMALL = 1024
"""Collectives with fewer bytes per step (norms, losses) are not listed."""
INDENT = 9


def plan_text(plan: Plan) -> str:
    """Format a plan in 80 columns."""
    return "\n".join(
        line
        for part in (_head, _memory_lines, _step_lines, _traffic_lines, _end_lines, _other_lines)
        for line in (*part(plan), "")
    ).rstrip()


def _wrapped(label: str, text: str) -> Iterator[str]:
    yield from wrap(f"{label:<{INDENT}}{text}", WIDTH, subsequent_indent=" " * INDENT)


def _head(plan: Plan) -> Iterator[str]:
    setup = plan.setup
    if plan.learning != plan.parameters:
        yield f"{plan.learning:,} trainable adapter parameters; the base weights are frozen"
    active = plan.active_parameters
    some = f" ({active:,} for a token)" if active < plan.parameters else ""
    yield from wrap(
        f"{plan.parameters:,} parameters{some} on {plan.tokens:.3g} tokens:"
        f" {plan.total_flops:.3g} FLOPs",
        WIDTH,
        subsequent_indent="  ",
    )
    yield f"{plan.gpus:,} x {plan.hardware.name} as {setup.layout}"
    yield (
        f"batch {setup.global_batch:,} sequences in {setup.micro_batches} micro-batches of"
        f" {setup.micro_batch}, {setup.precision}"
    )
    yield f"activation checkpointing {setup.checkpointing}{_schedule(setup)}"


def _schedule(setup: TrainingSetup) -> str:
    return f", {setup.schedule} x{setup.chunks}" if setup.layout.pipeline > 1 else ""


def _memory_lines(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    needed, capacity = format_bytes(memory.total), format_bytes(memory.capacity)
    yield f"MEMORY PER GPU  {needed} of {capacity}: {verdict}"
    yield from _bars(memory.parts, max(memory.capacity, memory.total), format_bytes)


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
            continue
        yield f"  {group:<14}{operation:<16}{calls.count:>10,}{_amount(calls.nbytes):>14}"


def _end_lines(plan: Plan) -> Iterator[str]:
    yield from _wrapped("TIME", f"{plan.days:,.1f} days; {_with_failures(plan)}")
    yield from _wrapped("", _goodput(plan))
    cost = plan.cost
    spent = "unknown, because the run never finishes"
    if cost is not None:
        spent = (
            f"{cost.gpu_hours:,.0f} GPU hours, {cost.kilowatt_hours / 1000:,.0f} MWh,"
            f" {cost.dollars:,.0f} USD"
        )
    yield from _wrapped("COST", spent)
    stored = plan.storage
    yield f"STORAGE  {_amount(stored.tokens)} of tokens, {_amount(stored.checkpoint)} a checkpoint"


def _with_failures(plan: Plan) -> str:
    days, life = plan.days_with_failures, plan.goodput
    if days is not None:
        return f"{days:,.1f} with failures"
    help_ = "fewer GPUs"
    if life.restart_within > 0:
        help_ += f", or restarts within {life.restart_within:.0f} s (--restart-seconds)"
    return (
        f"NEVER DONE with failures: one every {life.mean_seconds_between_failures:.0f} s, less than"
        f" the time to recover from it; what helps: {help_}"
    )


def _goodput(plan: Plan) -> str:
    life = plan.goodput
    if not life.failures_per_day:
        return "no failures, so no checkpoints are needed"
    every = life.checkpoint_seconds
    save = f"{every:.0f} s" if every < 120 else f"{every / 60:.0f} min"
    return (
        f"goodput {life.ratio:.1%}, {life.failures_per_day:.2f} failures a day, save every {save}"
    )


def _other_lines(plan: Plan) -> Iterator[str]:
    if plan.alternatives:
        yield f"{'OTHER LAYOUTS':<38}{'micro':>6}{'recompute':>11}{'memory':>11}{'tokens/s':>14}"
    for other in plan.alternatives:
        setup = other.setup
        yield (
            f"  {setup.layout!s:<36}{setup.micro_batch:>6}{setup.checkpointing:>11}"
            f"{format_bytes(other.memory.total):>11}{other.tokens_per_second:>14,.0f}"
        )
        batch = setup.global_batch
        difference = _schedule(setup) + (
            f", batch {batch:,}" if batch != plan.setup.global_batch else ""
        )
        if difference:  # distinguishes rows of the same layout
            yield f"    {difference.removeprefix(', ')}"
    yield "ASSUMED"
    yield from bullets(plan.assumptions)


def _amount(nbytes: float) -> str:
    """Return bytes with a decimal prefix."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} PB"
