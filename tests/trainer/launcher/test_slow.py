"""Volumes that are slower than the hang timeout, and volumes that do not respond."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

MakePods = Callable[[dict[str, Any]], Any]
MakeSpec = Callable[..., dict[str, Any]]

HANG = 240
"""Seconds after which a wait is given up."""


@pytest.fixture(autouse=True)
def _torch_is_imported() -> None:
    """Forked launchers then start at once."""
    import llmtrain_trainer.launcher.worker_group  # noqa: F401


def _spec(job_spec: MakeSpec, corpus: Path, root: Path, **checkpoint: Any) -> dict[str, Any]:
    spec = job_spec(
        data=2,
        precision="float32",
        uri=f"file://{corpus}",
        gpus_per_node=1,
        restarts=0,
        checkpoint={"uri": f"file://{root}", "everySteps": 2, **checkpoint},
        training={"steps": 2},
        architecture={"layers": 1},
    )
    spec["failurePolicy"]["hangTimeout"] = "10s"
    return spec


def _slow(function: Callable[..., Any], rank: int, wait: Callable[[], None]) -> Any:
    """Let one rank wait before each call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if os.environ["RANK"] == str(rank):
            wait()
        return function(*args, **kwargs)

    return call


def _ends(two: Any) -> list[int | None]:
    processes = [two.fork(index) for index in range(2)]
    for process in processes:
        process.join(HANG)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_a_save_and_an_export_may_take_longer_than_a_step(
    background: bool,
    pods: MakePods,
    job_spec: MakeSpec,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twelve seconds of tensors each, one on either pod: while one works, the other waits."""
    from torch.distributed.checkpoint import filesystem

    from llmtrain_trainer.weights import reading

    written, read = filesystem._write_item, reading.read_state
    monkeypatch.setattr(filesystem, "_write_item", _slow(written, 1, lambda: time.sleep(0.07)))
    reader = _slow(read, 0, lambda: time.sleep(1.1))
    monkeypatch.setattr(reading, "read_state", reader)
    export = tmp_path / "model"
    spec = _spec(
        job_spec,
        corpus,
        tmp_path / "saved",
        exportHuggingFace=f"file://{export}",
        **{"async": background},
    )
    two = pods(spec)
    assert _ends(two) == [0, 0], two.log(0)[-3000:]
    assert two.message(0)["result"]["lastCheckpointStep"] == 2
    assert (export / "config.json").is_file()


def test_a_hung_save_is_detected_and_named(
    pods: MakePods,
    job_spec: MakeSpec,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.distributed.checkpoint import filesystem

    waits = iter([0.0, 0.0, 10.0 * HANG])
    hanging = _slow(filesystem._write_item, 1, lambda: time.sleep(next(waits)))
    monkeypatch.setattr(filesystem, "_write_item", hanging)
    two = pods(_spec(job_spec, corpus, tmp_path / "saved"))
    assert _ends(two) == [200, 201], two.log(0)[-3000:]
    error = two.message(1)["error"]
    assert (error["reason"], error["rank"]) == ("RankHung", 1)
    assert "test_slow.py" in error["message"] and "(rank 0)" in error["message"]
