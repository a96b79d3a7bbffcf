"""What launchers say to each other: one JSON line per message, checked where it comes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from llmtrain_core.api.failure import FailureInfo
from llmtrain_trainer.runtime.reports import Statement

LONGEST_LINE = 1 << 20
"""Bytes; the statements of a pod's ranks are some kilobytes each."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A launcher is there, with these ranks."""

    ranks: tuple[int, ...]
    kind: Literal["joined"] = "joined"


@dataclass(frozen=True, slots=True)
class Ready:
    """None of the launcher's ranks is left; those of this generation may start."""

    generation: int
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Failed:
    """A rank ended in another way than it should."""

    generation: int
    cause: FailureInfo
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Silent:
    """A rank has shown no progress for longer than the job allows."""

    generation: int
    rank: int
    seconds: float
    allowed: float
    kind: Literal["silent"] = "silent"


@dataclass(frozen=True, slots=True)
class Stated:
    """What the launcher's ranks are doing."""

    generation: int
    statements: tuple[Statement, ...]
    seconds: float | None
    """Since one of them last showed progress; None where all have ended."""
    kind: Literal["stated"] = "stated"


@dataclass(frozen=True, slots=True)
class Held:
    """No rank of the launcher will start a later step than `started` until it is told to."""

    generation: int
    started: int
    kind: Literal["held"] = "held"


@dataclass(frozen=True, slots=True)
class Done:
    """All ranks of the launcher ended well."""

    generation: int
    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True)
class Asked:
    """The launcher's pod was asked to stop."""

    kind: Literal["asked"] = "asked"


Word = Joined | Ready | Failed | Silent | Stated | Held | Done | Asked
"""From a launcher to the agreement."""


@dataclass(frozen=True, slots=True)
class Start:
    """Fork the ranks; they meet at this port of rank 0's pod."""

    generation: int
    port: int = 0
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Restart:
    """End all ranks at once and be ready for the next generation."""

    generation: int
    cause: FailureInfo
    kind: Literal["restart"] = "restart"


@dataclass(frozen=True, slots=True)
class Explain:
    """Say what the ranks are doing."""

    generation: int
    kind: Literal["explain"] = "explain"


@dataclass(frozen=True, slots=True)
class Patience:
    """A rank somewhere showed progress so long ago: the silent ones wait for it."""

    generation: int
    seconds: float
    kind: Literal["patience"] = "patience"


@dataclass(frozen=True, slots=True)
class Hold:
    """Let no rank start another step."""

    generation: int
    kind: Literal["hold"] = "hold"


@dataclass(frozen=True, slots=True)
class Finish:
    """Let all ranks take the steps up to this one, save, and end."""

    generation: int
    step: int
    kind: Literal["finish"] = "finish"


@dataclass(frozen=True, slots=True)
class End:
    """It is over: well without a cause."""

    cause: FailureInfo | None = None
    kind: Literal["end"] = "end"


Order = Start | Restart | Explain | Patience | Hold | Finish | End
"""From the agreement to all launchers."""

_WORDS: TypeAdapter[Word] = TypeAdapter(Annotated[Word, Field(discriminator="kind")])
_ORDERS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])


def encode(message: Word | Order) -> bytes:
    """Return a message as a line."""
    adapter: TypeAdapter[Word] | TypeAdapter[Order] = (
        _WORDS if isinstance(message, Word) else _ORDERS
    )
    return adapter.dump_json(message) + b"\n"  # type: ignore[arg-type]


def read_word(line: bytes) -> Word:
    """Read what a launcher says. Raises ValueError."""
    return _WORDS.validate_json(line)


def read_order(line: bytes) -> Order:
    """Read what was agreed. Raises ValueError."""
    return _ORDERS.validate_json(line)
