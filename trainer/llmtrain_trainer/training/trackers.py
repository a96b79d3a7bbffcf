"""Experiment trackers: write the metrics of a run with packages that an image may have.

A tracker gets the lines of the metrics file. Its package is imported only if the job names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from llmtrain_trainer.checkpoint.paths import Folder
from llmtrain_trainer.errors import InputError

FIELD = "spec.training.trackers"

TAGS = {
    "loss": "train/loss",
    "gradNorm": "train/gradient_norm",
    "learningRate": "train/learning_rate",
    "tokens": "train/tokens",
    "epoch": "train/epoch",
    "seconds": "train/step_seconds",
    "heldOutLoss": "held_out/loss",
    "exactMatch": "held_out/exact_match",
}
"""Key of a line -> name of the metric."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a tracker writes."""

    name: str
    key: str
    """Identity of the run, the same after every restart."""
    folder: Folder
    """The folder of the metrics file."""
    step: int
    """Steps done before this start: what was written about later steps does not count."""


class Tracker(Protocol):
    """Writes the metrics of one run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of a step, by name."""

    def flush(self) -> None:
        """Write what is not written yet, without waiting for a service."""

    def close(self) -> None:
        """Write what is not written yet: the run is done."""


class TensorBoard:
    """Event files in `tensorboard/` below the folder, by TensorBoard's own library."""

    def __init__(self, run: TrackedRun) -> None:
        writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        # TensorBoard then ignores later steps in the files of earlier starts
        self._writer = writer(str(run.folder / "tensorboard"), purge_step=run.step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """See `Tracker`."""
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases. It reads its own variables, such as `WANDB_API_KEY`."""

    def __init__(self, run: TrackedRun) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "llmtrain"),
            name=run.name,
            id=run.key,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", "/tmp"),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`. The service refuses steps that it has: those that a restart repeats."""
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """See `Tracker`. A process of the package writes all the time."""

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


_TRACKERS: Mapping[str, tuple[str, Callable[[TrackedRun], Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
}
"""Name -> package and tracker."""


def require_packages(names: Sequence[str]) -> None:
    """Raise InputError unless the packages of all trackers are installed."""
    for name in names:
        package, _ = _TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise InputError(
                "InvalidSpec",
                f"the image does not have the package {package}",
                field=FIELD,
                remedy=f"use an image with {package}, or remove it from the trackers",
            )


class Trackers:
    """The trackers of a job. One that fails is logged and left out: training goes on."""

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        self._open: dict[str, Tracker] = {}
        for name in names:
            with self._unless_it_fails(name):
                self._open[name] = _TRACKERS[name][1](run)

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line of the metrics file."""
        values = dict(_values(line))
        self._each(lambda tracker: tracker.write(line["step"], values))

    def flush(self) -> None:
        """Write what is not written yet, without waiting for a service."""
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Write what is not written yet: the run is done."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._unless_it_fails(name):
                call(tracker)

    @contextmanager
    def _unless_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a package that is not ours
            log.warning("no metrics for %s from now on: %.500r", name, error)
            self._open.pop(name, None)


def _values(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield name and value of the numbers of a line."""
    for key, name in TAGS.items():
        if line.get(key) is not None:
            yield name, line[key]
    for source, loss in line.get("heldOutLossBySource", {}).items():
        if loss is not None:
            yield f"held_out/loss/{source}", loss
