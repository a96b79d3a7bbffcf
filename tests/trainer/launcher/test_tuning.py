"""A job with `network.tuning`, with two real launchers of one rank each.

Steps take as long as the variables of the trial say, so that the result depends on no machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600)]

MakePods = Callable[[dict[str, Any]], Any]
MakeSpec = Callable[..., dict[str, Any]]

FAST, FAILS, SLOW = {"NCCL_TEST_FAST": "1"}, {"NCCL_TEST_FAILS": "1"}, {"NCCL_TEST_SLOW": "1"}
SECONDS = {"NCCL_TEST_FAST": -0.3, "NCCL_TEST_SLOW": 0.1}
"""By how much a variable changes the time of a step on rank 0."""
TRIED: list[dict[str, str]] = [{}, FAST, {**FAST, **FAILS}, {**FAST, **SLOW}]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make steps depend on variables, also in launchers that are forked later.

    Return the file to which each rank writes the variables that it sees.
    """
    import llmtrain_trainer.launcher.worker_group  # noqa: F401 - forked launchers start at once
    from llmtrain_trainer.runtime.reports import StepReport
    from llmtrain_trainer.training.trainer import Trainer

    file = tmp_path / "seen"
    take_step = Trainer.take_step

    def step(trainer: Any, sampled: bool = False) -> StepReport:
        own = {key: os.environ[key] for key in os.environ if key.startswith("NCCL_TEST_")}
        rank = int(os.environ["RANK"])
        if trainer.step == 0:
            send = trainer.send
            seconds = 1.0 + sum(SECONDS.get(name, 0.0) for name in own)

            def timed(report: Any) -> None:
                of_step = isinstance(report, StepReport)
                send(replace(report, seconds=seconds) if of_step else report)

            trainer.send = timed
            with file.open("a") as lines:
                lines.write(json.dumps([os.getpid(), rank, own]) + "\n")
        if rank == 1 and own.keys() & FAILS.keys():
            raise RuntimeError("this candidate does not work")
        return take_step(trainer, sampled)

    monkeypatch.setattr(Trainer, "take_step", step)
    return file


def test_each_trial_has_its_variables_and_the_fastest_is_found(
    seen: Path, pods: MakePods, job_spec: MakeSpec, corpus: Path
) -> None:
    spec = job_spec(
        data=2,
        gpus_per_node=1,
        uri=f"file://{corpus}",
        architecture={"layers": 1},
        training={"steps": 5},
    )
    spec["network"] = {"tuning": {"candidates": [FAST, FAILS, SLOW]}}
    found = _run(pods(spec))
    assert found["state"] == "Chosen" and found["fastest"] == FAST
    assert found["trials"] == [
        {"variables": {}, "stepSeconds": 1.0},
        {"variables": FAST, "stepSeconds": 0.7},
        {"variables": {**FAST, **FAILS}, "failure": "Exception"},
        {"variables": {**FAST, **SLOW}, "stepSeconds": 0.8},
    ]
    entries = [json.loads(line) for line in seen.read_text().splitlines()]
    for rank in (0, 1):
        assert [own for _, of, own in entries if of == rank] == TRIED
    assert len({process for process, _, _ in entries}) == 2 * len(TRIED), "new processes each"

    seen.unlink()
    interrupted = {**found, "state": "Trying", "trials": found["trials"][:-1]}
    again = pods(spec)
    document = json.loads(again.job.read_text())
    again.job.write_text(json.dumps({**document, "networkTuning": interrupted}))
    assert _run(again) == found
    entries = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [own for _, _, own in entries] == [TRIED[-1]] * 2


def _run(two: Any) -> dict[str, Any]:
    """Run both pods to the end; return the result of the trials."""
    processes = [two.fork(index) for index in range(2)]
    for process in processes:
        process.join()
    logs = two.log(0)[-3000:] + two.log(1)[-3000:]
    assert [process.exitcode for process in processes] == [0, 0], logs
    result = two.message(0)["result"]
    assert result["lastCheckpointStep"] is None and result["restartsInPlace"] == 0
    assert result["heldOutLossBefore"] is None and result["heldOutLossAfter"] is None
    return dict(result["networkTuning"])
