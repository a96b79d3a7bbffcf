"""Report what a rank is doing while its main thread hangs.

SIGUSR2 wakes a thread that reads torch's flight recorder and the stack of the main thread. If no
Python code can run any more, SIGUSR1 makes faulthandler write the stacks of all threads to a file.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from llmtrain_trainer.runtime.reports import RankDump, Send
from llmtrain_trainer.runtime.step_gate import StepGate

FLIGHT_RECORDER_ENTRIES = 512
"""Number of collectives that the flight recorder of a rank keeps."""

_STACK, _OPERATIONS = 12, 8
_WAITING_FRAMES = 2
"""A rank counts as waiting if code of torch.distributed is in so many of its innermost frames.
Further out, pipeline schedules and FSDP hooks are in nearly every stack."""


class StackReporter:
    """Sends a dump of one rank when the launcher requests it."""

    def __init__(self, rank: int, gate: StepGate, send: Send, stack_file: Path) -> None:
        """Start the thread. Call it before there are others: these inherit the signal mask."""
        self._rank, self._gate, self._send = rank, gate, send
        self._main = threading.get_ident()
        self.labels: Callable[[], Mapping[str, str]] = dict
        """Return, by name of a process group, its dimension; nothing until there is a mesh."""
        self._stack_file = stack_file.open("w")
        faulthandler.register(signal.SIGUSR1, file=self._stack_file, all_threads=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        threading.Thread(target=self._serve, name="stack-reporter", daemon=True).start()

    def dump(self) -> RankDump:
        """Return what the rank is doing now."""
        frames = _frames(sys._current_frames().get(self._main))
        pending = pending_operations(self.labels())
        near = [file for file, _, _ in frames[:_WAITING_FRAMES]]
        waiting = bool(pending) or any("torch/distributed/" in file for file in near)
        return RankDump(
            rank=self._rank,
            state="responsive",
            step=self._gate.started,
            waiting=waiting,
            operations=pending[-_OPERATIONS:],
            stack=tuple(f"{Path(file).name}:{line} {name}" for file, line, name in frames),
        )

    def _serve(self) -> None:
        while True:
            signal.sigwait({signal.SIGUSR2})
            self._send(self.dump())


def pending_operations(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the unfinished collectives, oldest first; empty without a flight recorder."""
    from torch._C._distributed_c10d import _dump_fr_trace_json

    try:
        dump = json.loads(_dump_fr_trace_json(True, True))
    except RuntimeError:
        return ()
    found = []
    for entry in dump.get("entries", ()):
        if entry.get("retired"):
            continue
        name, description = entry["process_group"]
        group = labels.get(name) or description
        operation = str(entry["profiling_name"]).partition(":")[2]
        found.append(f"{group} {operation} #{entry['collective_seq_id']}")
    return tuple(found)


def read_written_stack(path: Path) -> tuple[str, ...]:
    """Return the innermost frames of the main thread, as faulthandler wrote them last."""
    try:
        text = path.read_text()
    except OSError:
        return ()
    main = text.rpartition("Current thread")[2] or text.rpartition("Thread")[2]
    lines = [line.strip() for line in main.splitlines() if line.startswith("  File ")]
    return tuple(
        f"{Path(line.split(chr(34))[1]).name}:{line.rpartition('line ')[2].replace(' in ', ' ')}"
        for line in lines[:_STACK]
    )


def _frames(frame: FrameType | None) -> list[tuple[str, int, str]]:
    found: list[tuple[str, int, str]] = []
    while frame is not None and len(found) < _STACK:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found
