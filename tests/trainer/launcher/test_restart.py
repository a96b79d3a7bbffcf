"""Restarts in place, with real launchers."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import statistics
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.serial]

MakePods = Callable[[dict[str, Any]], Any]
MakeSpec = Callable[..., dict[str, Any]]

HANG = 120
"""Seconds after which a wait is given up: a hang fails by it, load does not."""
WINDOWS = ("step", "save", "start", "first step")
"""When a rank is killed: in a step, in a save, when it has just been forked, and as soon as it
trains again, which is in the first collectives of its process groups."""


@pytest.fixture(autouse=True)
def _torch_is_imported() -> None:
    """Forked launchers then start at once."""
    import llmtrain_trainer.launcher.worker_group  # noqa: F401


def _status(pods: Any, index: int = 0) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://{pods.address(index)}:9400/status", timeout=5) as page:
            return json.loads(page.read())  # type: ignore[no-any-return]
    except OSError:
        return {}


def _wait(pods: Any, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline and all(p.is_alive() for p in pods.processes):
        status = _status(pods)
        if status and wanted(status):
            return status
        time.sleep(0.02)
    raise AssertionError(f"{_status(pods)}\n{pods.log(0)[-3000:]}\n{pods.log(1)[-3000:]}")


def _ranks(pods: Any) -> list[int]:
    """Process ids of all ranks: children of the launchers."""
    found = []
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = task.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) in {process.pid for process in pods.processes} and fields[0] != "Z":
            found.append(int(task.parent.name))
    return sorted(found)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.timeout(1200)  # a wait that hangs ends after HANG; only load makes twenty take longer
@pytest.mark.parametrize(
    "kills", [len(WINDOWS), pytest.param(20, marks=pytest.mark.exhaustive)], ids="{} kills".format
)
def test_a_run_continues_after_each_kill(
    kills: int, pods: MakePods, job_spec: MakeSpec, corpus: Path, tmp_path: Path
) -> None:
    """Always from the newest complete checkpoint, in the same two pods, whatever a rank was doing.

    `make test` has one kill in each window, `make kills` has twenty.
    """
    root = tmp_path / "saved"
    spec = job_spec(
        data=8,
        precision="float32",
        uri=f"file://{corpus}",
        gpus_per_node=4,
        checkpoint={"uri": f"file://{root}", "everySteps": 2, "keep": 3},
        training={"steps": 100_000, "microBatchSize": 1},
        architecture={"layers": 1},
        restarts=kills,
    )
    two = pods(spec)
    processes = [two.fork(index) for index in range(2)]
    chance = random.Random(4)
    detections, recoveries, wanted, before = [], [], [], 0.0
    killed: set[int] = set()
    for kill, window in zip(range(kills), itertools.cycle(WINDOWS), strict=False):
        if window == "start":
            _wait(two, lambda _, old=killed: len({*_ranks(two)} - old) == 8)
        else:
            _wait(two, lambda s, kill=kill: s["restartsInPlace"] == kill and _trains(s))
        if wanted and window != "start":
            [*_, resumed] = re.findall(r"rank 0 resumed at step (\d+)", two.log(0))
            # a save that was on its way when the rank was killed may have ended all the same
            assert int(resumed) - wanted[-1] in {0, 2}
        if window in ("step", "save"):
            _wait(two, _goes_on)
            recoveries += [time.time() - before] if before else []
        if window == "save":
            _wait(two, lambda s: s["phase"] == "saving")
        wanted.append(max(int(path.parent.name[5:]) for path in root.glob("step-*/.metadata")))
        killed = {*_ranks(two)} - killed
        before = time.time()
        os.kill(chance.choice(sorted(killed)), signal.SIGKILL)
        seen = _wait(two, lambda s, kill=kill: s["restartsInPlace"] == kill + 1)
        detections.append(_seconds(seen["lastRestart"]["time"]) - before)
        assert seen["lastRestart"]["reason"] == "Signal", seen
    _wait(two, lambda s: s["restartsInPlace"] == kills and _goes_on(s))
    recoveries.append(time.time() - before)
    assert all(process.is_alive() for process in processes)
    [*_, resumed] = re.findall(r"rank 0 resumed at step (\d+)", two.log(0))
    assert int(resumed) - wanted[-1] in {0, 2}
    print(
        f"\ndetection: median {statistics.median(detections):.3f} s, at most {max(detections):.3f}"
    )
    print(f"kill to next step: median {statistics.median(recoveries):.2f} s")
    # each one; from the kill to the time that the launchers' own report gives for their agreement,
    # so neither what this process does in between nor the end of the other ranks is in it
    assert max(detections) < 2


def _trains(status: dict[str, Any]) -> bool:
    return status["phase"] in ("training", "saving")


def _goes_on(status: dict[str, Any]) -> bool:
    """A step was taken after the newest checkpoint."""
    saved = status["lastCheckpointStep"]
    return saved is not None and status["phase"] == "training" and status["step"] > saved


def test_a_stopped_rank_is_named_and_all_ranks_restart(
    pods: MakePods, job_spec: MakeSpec, corpus: Path, tmp_path: Path
) -> None:
    spec = job_spec(
        data=2,
        precision="float32",
        uri=f"file://{corpus}",
        gpus_per_node=1,
        checkpoint={"uri": f"file://{tmp_path}/saved", "everySteps": 100_000},
        training={"steps": 100_000},
    )
    spec["failurePolicy"]["hangTimeout"] = "5s"
    two = pods(spec)
    processes = [two.fork(index) for index in range(2)]
    _wait(two, lambda s: s["step"] >= 3)
    victim = next(pid for pid in _ranks(two) if _parent(pid) == processes[1].pid)
    os.kill(victim, signal.SIGSTOP)
    restart = _wait(two, lambda s: s["restartsInPlace"] == 1)["lastRestart"]
    assert (restart["rank"], restart["reason"]) == (1, "RankHung"), restart
    assert "stopped by a signal" in restart["message"]
    # the end of the flight recorder: what the others wait for, in which group
    assert re.search(r"waiting: (dp|world) \w+ #\d+.* \(rank 0\)", restart["message"]), restart
    _wait(two, lambda s: s["phase"] == "training" and s["step"] >= 3)
    assert all(process.is_alive() for process in processes)


@pytest.mark.parametrize("layout", [{"data": 2}, {"pipeline": 2, "tensor": 2}], ids=str)
def test_all_pods_save_the_same_step_after_sigterm(
    layout: dict[str, int], pods: MakePods, job_spec: MakeSpec, corpus: Path, tmp_path: Path
) -> None:
    """One pod is asked; all of them finish the step, save it, and only then end."""
    root = tmp_path / "saved"
    spec = job_spec(
        **layout,
        precision="float32",
        uri=f"file://{corpus}",
        gpus_per_node=prod(layout.values()) // 2,
        checkpoint={"uri": f"file://{root}", "everySteps": 100_000},
        training={"steps": 100_000},
    )
    two = pods(spec)
    processes = [two.fork(index) for index in range(2)]
    done = _wait(two, lambda s: s["step"] >= 3)["step"]
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(HANG)
    assert [process.exitcode for process in processes] == [200, 143], two.log(0)[-2000:]
    (saved,) = [int(path.parent.name[5:]) for path in root.glob("step-*/.metadata")]
    assert saved >= done
    messages = [two.message(index)["error"] for index in range(2)]
    assert [message["reason"] for message in messages] == ["PeerLost", "Terminated"]
    assert all(f"saved step {saved}" in message["message"] for message in messages)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
