"""The metrics of a run as JSON lines, in one file beside its checkpoints.

A step has one line, whatever the number of restarts. A run that resumes at step n keeps the lines
up to n and goes on with n + 1. All of them are in the file, because it is written before the
checkpoint of step n is complete.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from llmtrain_core.api.untrusted import read_json
from llmtrain_trainer.checkpoint.paths import Folder, make_dir
from llmtrain_trainer.runtime.reports import HeldOutScore, StepReport
from llmtrain_trainer.runtime.untrusted_files import read_file

METRICS_FILE = "metrics.jsonl"

MAX_BYTES = 4 << 30
"""Longest file that is read when a run resumes."""

WRITE_SECONDS = 10.0
"""Time between two writes to a file system, at least. A store is written at checkpoints only,
because it copies the whole object."""

MetricsLine = Mapping[str, Any]

_ALL = 1 << 62
"""A step after all others."""

log = logging.getLogger(__name__)


class MetricsFile:
    """Writes the metrics of a run. Errors are logged: training does not depend on the file."""

    def __init__(self, folder: Folder, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._path = folder / METRICS_FILE
        self._unwritten: list[MetricsLine] = []
        self._written_at = clock()
        self._interval = WRITE_SECONDS if isinstance(folder, Path) else math.inf
        self._keep: int | None = None
        """Step up to which the lines of the file are kept before others follow. None: all are."""
        self._failed = False
        self._evaluated: int | None = None
        """The last step with a held-out loss."""
        self.start: str | None = None
        """Time of the first line."""
        self.tokens: int | None = None
        """Tokens of the steps before a resumed run; None if the file does not have them."""

    def resume(self, step: int) -> None:
        """Keep the lines of the first `step` steps."""
        self._keep = step
        self._try_to_write()

    def has_evaluation(self, step: int) -> bool:
        """Return whether the last held-out loss is that of a step."""
        return self._evaluated == step

    def add_step(self, report: StepReport, tokens: int, epoch: float) -> MetricsLine:
        """Add and return the line of a step. `tokens` and `epoch` are those of the whole run."""
        line = {
            "step": report.step,
            "time": _now(),
            "loss": _finite(report.loss),
            "gradNorm": _finite(report.grad_norm),
            "learningRate": report.learning_rate,
            "tokens": tokens,
            "epoch": epoch,
            "seconds": report.seconds,
        }
        self._add(line)
        return line

    def add_evaluation(self, step: int, score: HeldOutScore) -> MetricsLine:
        """Add and return the line of an evaluation after a step."""
        line: dict[str, Any] = {
            "step": step,
            "time": _now(),
            "heldOutLoss": _finite(score.loss),
            "heldOutLossBySource": {name: _finite(loss) for name, loss in score.losses.items()},
        }
        if score.exact_match is not None:
            line["exactMatch"] = score.exact_match
        self._evaluated = step
        self._add(line)
        return line

    def flush(self) -> None:
        """Write all lines. What cannot be written now is tried again."""
        self._written_at = self._clock()
        if self._unwritten:
            self._try_to_write()

    def _add(self, line: MetricsLine) -> None:
        self.start = self.start or line["time"]
        self._unwritten.append(line)
        if self._clock() - self._written_at >= self._interval:
            self.flush()

    def _try_to_write(self) -> None:
        try:
            self._write()
            self._failed = False
        except Exception as error:  # store drivers raise any kind of error
            if not self._failed:
                log.warning("cannot write %s now: %r", self._path, error)
            self._failed = True

    def _write(self) -> None:
        make_dir(self._folder)
        if self._keep is None:
            self._keep = _ALL  # until the write has succeeded
            with self._path.open("ab") as file:
                file.write(_content(self._unwritten))
        else:
            self._rewrite(self._keep)
        self._keep, self._unwritten = None, []

    def _rewrite(self, keep: int) -> None:
        """Write the lines up to step `keep` and the others, if they are not what is there."""
        try:
            found = read_file(self._path, MAX_BYTES)
        except FileNotFoundError:
            found = b""
        kept = list(_one_per_step(line for line in _lines(found) if line["step"] <= keep))
        for line in () if self._unwritten else kept:
            if _is_step(line):
                self.tokens = line["tokens"] if line["step"] == keep else None
            else:
                self._evaluated = line["step"]
            self.start = self.start or str(line.get("time"))
        content = _content(_one_per_step([*kept, *self._unwritten]))
        if content == found:
            return
        if isinstance(self._path, Path):
            draft = self._path.with_name(f".{METRICS_FILE}-{uuid4().hex}")
            draft.write_bytes(content)
            draft.replace(self._path)
        else:
            self._path.write_bytes(content)


def _lines(content: bytes) -> Iterator[MetricsLine]:
    """Yield the lines that are complete."""
    for text in content.split(b"\n"):
        line = read_json(text)
        if isinstance(line, dict) and type(line.get("step")) is int:
            yield line


def _is_step(line: MetricsLine) -> bool:
    """Return whether a line is that of a step, not of an evaluation."""
    return type(line.get("tokens")) is int


def _one_per_step(lines: Iterable[MetricsLine]) -> Iterator[MetricsLine]:
    """Yield the first line of each step and of each evaluation, in ascending order."""
    last = {True: 0, False: -1}
    for line in lines:
        if line["step"] > last[_is_step(line)]:
            last[_is_step(line)] = line["step"]
            yield line


def _content(lines: Iterable[MetricsLine]) -> bytes:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
