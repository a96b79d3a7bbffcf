"""Saving in the background, on disks that fill up, and by ranks that are killed."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.checkpoint.paths import COMPLETE_MARKER, complete_steps, list_steps
from llmtrain_trainer.runtime.reports import CheckpointReport

pytestmark = pytest.mark.torch

RunTrainers = Callable[..., list[Any]]
MakeSpec = Callable[..., dict[str, Any]]

HANG = 60
"""Seconds after which a wait is given up."""


def _checkpoint(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"uri": f"file://{folder}", "everySteps": 2, "keep": 2, "async": True, **changes}


def test_a_run_that_saves_in_the_background_keeps_the_newest_and_exports(
    tmp_path: Path, shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    export = tmp_path / "model"
    spec = job_spec(
        tensor=2, checkpoint=_checkpoint(tmp_path, exportHuggingFace=f"file://{export}")
    )

    def train(trainer: Any) -> tuple[list[int], Any]:
        from torch.distributed.tensor import DTensor

        trainer.train()
        whole = {
            name: parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            for name, parameter in trainer.model.named_parameters()
        }
        told = [report.step for report in trainer.sent if isinstance(report, CheckpointReport)]
        return told, {name: tensor.detach().numpy() for name, tensor in whole.items()}

    (told, weights), _ = run_trainers(spec, shards, train)
    assert told == [2, 4, 6]
    assert complete_steps(tmp_path) == [4, 6]

    import numpy as np

    from llmtrain_trainer.weights.huggingface import weights_of_huggingface

    _, read = weights_of_huggingface(export)
    for name, tensor in read(list(weights)).items():
        assert np.array_equal(tensor.numpy(), weights[name].astype(np.float32)), name


def test_training_goes_on_while_a_save_is_written(
    tmp_path: Path, shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """The volume takes nothing until three more steps are done on all ranks."""
    spec = job_spec(data=2, checkpoint=_checkpoint(tmp_path), architecture={"layers": 1})

    def train(trainer: Any) -> tuple[list[int], list[int], list[int]]:
        from torch.distributed.checkpoint.filesystem import FileSystem

        begun, ready, create_stream = threading.Event(), threading.Event(), FileSystem.create_stream

        @contextmanager
        def held(self: Any, path: Any, mode: str) -> Iterator[Any]:
            begun.set()
            assert ready.wait(HANG)
            with create_stream(self, path, mode) as file:
                yield file

        FileSystem.create_stream = held  # type: ignore[method-assign]
        trainer.take_step()
        trainer.save()
        assert begun.wait(HANG)
        steps = [trainer.take_step().step for _ in range(3)]
        trainer.saver.poll(trainer._report_save)
        saved = complete_steps(tmp_path)
        ready.set()
        trainer.wait_for_save()
        told = [report.step for report in trainer.sent if isinstance(report, CheckpointReport)]
        return steps, saved, told

    assert run_trainers(spec, shards, train) == [([2, 3, 4], [], [1])] * 2
    assert complete_steps(tmp_path) == [1]


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_a_rank_killed_while_saving_leaves_nothing_that_loads(
    background: bool, tmp_path: Path, shards: Any, run_trainers: RunTrainers, job_spec: MakeSpec
) -> None:
    """Killed with a shard half written, and with all written but the marker's last name.

    Training goes on from the newest complete checkpoint each time.
    """
    spec = job_spec(
        data=2,
        checkpoint=_checkpoint(tmp_path, keep=9, **{"async": background}),
        architecture={"layers": 1},
    )

    def die(victim: int, method: str) -> Callable[[Any], None]:
        def body(trainer: Any) -> None:
            import torch.distributed as dist
            from torch.distributed.checkpoint.filesystem import FileSystem

            trainer.resume()
            trainer.take_step()
            trainer.save()
            trainer.wait_for_save()
            if dist.get_rank() == victim:
                _kill_on(FileSystem, method)
            trainer.take_step()
            trainer.save()
            trainer.take_step()
            trainer.wait_for_save()

        return body

    for done, (victim, method) in enumerate(((1, "create_stream"), (0, "rename"))):
        codes = run_trainers(spec, shards, die(victim, method), killed=True)
        assert codes[victim] == -9
        assert complete_steps(tmp_path) == [*range(1, done + 2)]
        torn = {path.name for path in tmp_path.glob(f"step-{done + 2}/*")}
        assert COMPLETE_MARKER not in torn
        if victim == 0:  # nobody is left to delete what it had written
            assert any(".distcp" in name for name in torn)

    def resumed(trainer: Any) -> int:
        trainer.resume()
        trainer.take_step()
        trainer.save()
        trainer.wait_for_save()
        return int(trainer.step)

    assert run_trainers(spec, shards, resumed) == [3, 3]
    assert complete_steps(tmp_path) == [1, 2, 3]


def _kill_on(kind: Any, method: str) -> None:
    """Kill this process in the middle of `method`: a stream has been written to by then."""
    import os
    import signal

    original = getattr(kind, method)

    @contextmanager
    def stream(self: Any, path: Any, mode: str) -> Any:
        with original(self, path, mode) as file:
            yield file
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(kind, method, stream if method == "create_stream" else die)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, bool]]:
    """A disk that is nearly full, or where nothing may be mounted, a folder; and which it is."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    yield disk, mounted
    if mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_a_full_disk_costs_a_checkpoint_and_nothing_else(
    background: bool,
    small_disk: tuple[Path, bool],
    shards: Any,
    run_trainers: RunTrainers,
    job_spec: MakeSpec,
) -> None:
    disk, mounted = small_disk
    spec = job_spec(
        data=2,
        checkpoint=_checkpoint(disk, everySteps=1, **{"async": background}),
        training={"steps": 4},
        architecture={"layers": 1},
    )
    filler = disk / "filler"

    def fill(full: bool) -> None:
        """Leave some room: a file that is begun and cannot be ended is the hard case."""
        import os
        import resource

        if not mounted:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000 if full else hard, hard))
        elif full:
            space = os.statvfs(disk)
            filler.write_bytes(bytes(space.f_bavail * space.f_frsize - 100_000))
        else:
            filler.unlink(missing_ok=True)

    def train(trainer: Any) -> tuple[list[Any], str]:
        import torch.distributed as dist

        from llmtrain_trainer.errors import TrainerError

        def step(full: bool) -> None:
            if dist.get_rank() == 0 or not mounted:
                fill(full)
            dist.barrier()
            trainer.take_step()
            trainer.save()
            trainer.saver.wait(trainer._report_save)

        steps = []
        for full in (False, True, False, True):
            step(full)
            dist.barrier()
            steps.append(list_steps(disk))
            dist.barrier()
        try:
            trainer.wait_for_save()
        except TrainerError as error:
            return steps, f"{error.reason} {error.field} {error.message}"
        finally:
            dist.barrier()
            fill(False)
        raise AssertionError("finished")

    for steps, error in run_trainers(spec, shards, train):
        assert steps == [[1], [1], [1, 3], [1, 3]]
        assert error.startswith("CheckpointNotWritten spec.checkpoint.uri step 4: ")
    assert complete_steps(disk) == [1, 3]
