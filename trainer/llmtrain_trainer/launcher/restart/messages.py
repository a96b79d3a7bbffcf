"""Messages between the launchers of a gang: one JSON line each, validated by the receiver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.runtime.reports import RankDump

MAX_LINE_BYTES = 1 << 20
"""Largest message; the dumps of a pod's ranks take some kilobytes each."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A launcher has connected. It runs these ranks."""

    ranks: tuple[int, ...]
    no_rdma: str = ""
    """Why these ranks cannot use RDMA; empty if they can, or need not."""
    node: str = ""
    """Name of the node of the pod."""
    kind: Literal["registered"] = "registered"


@dataclass(frozen=True, slots=True)
class Ready:
    """All local ranks of the previous generation have exited; the launcher can start this one."""

    generation: int
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Failed:
    """A rank ended with an error."""

    generation: int
    cause: FailureInfo
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class HangSuspected:
    """A rank has made no progress for longer than the job allows."""

    generation: int
    rank: int
    seconds: float
    """Since the rank last made progress."""
    allowed: float
    kind: Literal["hang-suspected"] = "hang-suspected"


@dataclass(frozen=True, slots=True)
class StacksReported:
    """The dumps of the launcher's ranks."""

    generation: int
    dumps: tuple[RankDump, ...]
    seconds: float | None
    """Since any of them last made progress; None if all have exited."""
    kind: Literal["stacks-reported"] = "stacks-reported"


@dataclass(frozen=True, slots=True)
class StepsPaused:
    """No rank of the launcher starts a step after `started` until `StopAfterStep`."""

    generation: int
    started: int
    kind: Literal["steps-paused"] = "steps-paused"


@dataclass(frozen=True, slots=True)
class Done:
    """All ranks of the launcher exited with code 0."""

    generation: int
    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The launcher's pod received SIGTERM."""

    kind: Literal["stop-requested"] = "stop-requested"


LauncherEvent = (
    Registered
    | Ready
    | Failed
    | HangSuspected
    | StacksReported
    | StepsPaused
    | Done
    | StopRequested
)
"""From a launcher to the coordinator."""


@dataclass(frozen=True, slots=True)
class StartRanks:
    """Fork the ranks. They rendezvous at this port of rank 0's pod."""

    generation: int
    port: int = 0
    no_rdma: str = ""
    """Why all ranks use TCP instead of RDMA; empty if they do not."""
    variables: dict[str, str] = field(default_factory=dict)
    """Variables that the ranks get besides those of the pod."""
    kind: Literal["start-ranks"] = "start-ranks"


@dataclass(frozen=True, slots=True)
class Restart:
    """Kill all ranks and prepare to start the next generation."""

    generation: int
    cause: FailureInfo
    kind: Literal["restart"] = "restart"


@dataclass(frozen=True, slots=True)
class NextTrial:
    """Kill all ranks that still run, and prepare to start the generation of the next trial."""

    generation: int
    kind: Literal["next-trial"] = "next-trial"


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Report what each rank is doing."""

    generation: int
    kind: Literal["dump-stacks"] = "dump-stacks"


@dataclass(frozen=True, slots=True)
class HangCleared:
    """Some rank made progress this many seconds ago; the suspected ranks only wait for it."""

    generation: int
    seconds: float
    kind: Literal["hang-cleared"] = "hang-cleared"


@dataclass(frozen=True, slots=True)
class PauseSteps:
    """Let no rank start another step."""

    generation: int
    kind: Literal["pause-steps"] = "pause-steps"


@dataclass(frozen=True, slots=True)
class StopAfterStep:
    """Let all ranks take the steps up to and including this one, save and exit."""

    generation: int
    step: int
    kind: Literal["stop-after-step"] = "stop-after-step"


@dataclass(frozen=True, slots=True)
class End:
    """The gang has ended; without a cause, successfully."""

    cause: FailureInfo | None = None
    kind: Literal["end"] = "end"


Command = (
    StartRanks | Restart | NextTrial | DumpStacks | HangCleared | PauseSteps | StopAfterStep | End
)
"""From the coordinator to all launchers."""

_EVENTS: TypeAdapter[LauncherEvent] = TypeAdapter(
    Annotated[LauncherEvent, Field(discriminator="kind")]
)
_COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])


def encode(message: LauncherEvent | Command) -> bytes:
    """Return a message as one line."""
    adapter: TypeAdapter[LauncherEvent] | TypeAdapter[Command] = (
        _EVENTS if isinstance(message, LauncherEvent) else _COMMANDS
    )
    return adapter.dump_json(message) + b"\n"  # type: ignore[arg-type]


def decode_event(line: bytes) -> LauncherEvent:
    """Parse a message of a launcher. Raises ValueError."""
    return _EVENTS.validate_json(line)


def decode_command(line: bytes) -> Command:
    """Parse a message of the coordinator. Raises ValueError."""
    return _COMMANDS.validate_json(line)
