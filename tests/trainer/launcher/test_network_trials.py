"""Trials of variables: their states, and what the coordinator does with them. No process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.api.status.network_tuning import NetworkTuningStatus
from llmtrain_trainer.config import NetworkTuningConfig
from llmtrain_trainer.errors import InputError
from llmtrain_trainer.launcher.restart.coordinator import RestartCoordinator
from llmtrain_trainer.launcher.restart.messages import (
    Command,
    Done,
    End,
    Failed,
    HangSuspected,
    LauncherEvent,
    NextTrial,
    Ready,
    Registered,
    Restart,
    StacksReported,
    StartRanks,
    StopRequested,
    decode_command,
    encode,
)
from llmtrain_trainer.launcher.restart.network_trials import (
    INTERRUPTED,
    NetworkTrials,
    candidates_of,
)
from llmtrain_trainer.launcher.status import Status
from llmtrain_trainer.launcher.termination import result_message
from llmtrain_trainer.runtime.pod_env import PodEnvironment

pytestmark = pytest.mark.unit

A, B = {"NCCL_A": "1"}, {"NCCL_B": "1"}
BUG = FailureInfo("Exception", "ValueError", exit_code=1, rank=1)
KILLED = FailureInfo("Signal", "SIGKILL", exit_code=137, rank=1)
GPU = FailureInfo("GpuError", "Xid 79", exit_code=202, rank=1, keeps_nodes=False, xids=(79,))


class Gang:
    """A coordinator with two launchers of one rank, and what its trials report."""

    def __init__(
        self,
        *candidates: dict[str, str],
        known: NetworkTuningStatus | None = None,
        nodes: tuple[str, str] = ("a", "b"),
    ) -> None:
        self.reported: list[NetworkTuningStatus] = []
        self.trials = NetworkTrials(candidates, known, self.reported.append)
        self.coordinator = RestartCoordinator(2, 1, 60.0, saves=False, trials=self.trials)
        for rank, node in reversed([*enumerate(nodes)]):
            self.coordinator.on_event(rank, Registered((rank,), node=node), 0.0)

    def both(self, event: LauncherEvent) -> tuple[Command, ...]:
        assert self.coordinator.on_event(0, event, 0.0) == ()
        return self.coordinator.on_event(1, event, 0.0)

    def starts(self, generation: int) -> dict[str, str]:
        [start] = self.both(Ready(generation))
        assert isinstance(start, StartRanks) and decode_command(encode(start)) == start
        return start.variables

    def trains(self, generation: int, seconds: float) -> tuple[Command, ...]:
        for step in (9.0, 9.0, seconds, seconds, seconds):
            self.trials.add_step(step)
        return self.both(Done(generation))

    @property
    def shown(self) -> list[dict[str, Any]]:
        return [trial.to_wire() for trial in self.reported[-1].trials]


def test_each_generation_is_a_trial_and_the_gang_ends_after_the_last() -> None:
    gang = Gang(A, B)
    assert gang.starts(0) == {}
    assert gang.shown == [{"variables": {}}]
    assert gang.trains(0, 1.0) == (NextTrial(1),)
    assert gang.starts(1) == A
    assert gang.trains(1, 0.5) == (NextTrial(2),)
    assert gang.starts(2) == {**A, **B}
    assert gang.reported[-1].state == "Trying" and gang.reported[-1].fastest == A
    assert gang.trains(2, 0.6) == (End(None),)
    assert gang.reported[-1].state == "Chosen" and gang.reported[-1].fastest == A
    assert [trial["stepSeconds"] for trial in gang.shown] == [1.0, 0.5, 0.6]


@pytest.mark.parametrize("cause", [BUG, KILLED], ids=lambda cause: cause.reason)
def test_a_candidate_that_fails_ends_its_trial_only(cause: FailureInfo) -> None:
    gang = Gang(A, B)
    gang.starts(0)
    gang.trains(0, 1.0)
    gang.starts(1)
    assert gang.coordinator.on_event(1, Failed(1, cause), 0.0) == (NextTrial(2),)
    assert gang.starts(2) == B
    assert gang.coordinator.on_event(1, Failed(2, cause), 0.0) == (End(None),)
    failed = {"failure": cause.reason}
    assert gang.shown[1:] == [{"variables": A, **failed}, {"variables": B, **failed}]
    assert gang.reported[-1].fastest == {}


def test_a_candidate_that_hangs_ends_its_trial_only() -> None:
    gang = Gang(A)
    gang.starts(0)
    gang.trains(0, 1.0)
    gang.starts(1)
    gang.coordinator.on_event(0, HangSuspected(1, 0, 700.0, 600.0), 0.0)
    assert gang.both(StacksReported(1, (), 700.0)) == (End(None),)
    assert gang.shown[-1] == {"variables": A, "failure": "RankHung"}


def test_the_job_as_it_is_fails_as_every_job() -> None:
    gang = Gang(A)
    gang.starts(0)
    gang.trials.add_step(3.0)
    assert gang.coordinator.on_event(1, Failed(0, KILLED), 0.0) == (Restart(1, KILLED),)
    assert gang.starts(1) == {}
    assert gang.trains(1, 1.0) == (NextTrial(2),), "steps before the restart do not count"
    assert gang.shown[0]["stepSeconds"] == 1.0
    other = Gang(A)
    other.starts(0)
    assert other.coordinator.on_event(1, Failed(0, BUG), 0.0) == (End(BUG),)


def test_a_lost_gpu_a_lost_pod_and_a_stop_end_the_gang() -> None:
    def running() -> Gang:
        gang = Gang(A)
        gang.starts(0)
        gang.trains(0, 1.0)
        gang.starts(1)
        return gang

    assert running().coordinator.on_event(1, Failed(1, GPU), 0.0) == (End(GPU),)
    [end] = running().coordinator.on_disconnect(1)
    assert isinstance(end, End) and end.cause is not None and end.cause.reason == "PeerLost"
    [end] = running().coordinator.on_event(0, StopRequested(), 0.0)
    assert isinstance(end, End) and end.cause is not None and end.cause.reason == "Terminated"


def _goes_on(known: NetworkTuningStatus, nodes: tuple[str, str] = ("a", "b")) -> Gang:
    return Gang(A, B, known=NetworkTuningStatus.from_wire(known.to_wire()), nodes=nodes)


def _in_second_trial() -> NetworkTuningStatus:
    """Return what a gang reports in the middle of the trial of the first candidate."""
    gang = Gang(A, B)
    gang.starts(0)
    gang.trains(0, 1.0)
    gang.starts(1)
    return gang.reported[-1]


def test_a_later_attempt_on_the_same_nodes_goes_on() -> None:
    second = _goes_on(_in_second_trial())
    assert second.starts(0) == A, "it may have been a coincidence"
    assert second.shown[-1] == {"variables": A, "failure": INTERRUPTED}
    third = _goes_on(second.reported[-1])
    assert third.starts(0) == B
    third.trains(0, 0.5)
    assert third.reported[-1].state == "Chosen" and third.reported[-1].fastest == B
    last = _goes_on(third.reported[-1])
    assert last.both(Ready(0)) == (End(None),)
    assert last.reported[-1] == third.reported[-1]
    elsewhere = _goes_on(third.reported[-1], nodes=("b", "a"))
    assert elsewhere.starts(0) == {}


def test_a_trial_that_was_interrupted_once_counts_when_it_ends() -> None:
    second = _goes_on(_in_second_trial())
    second.starts(0)
    second.trains(0, 0.5)
    assert second.shown[1] == {"variables": A, "stepSeconds": 0.5}


def test_the_job_as_it_is_is_repeated_as_often_as_needed() -> None:
    gang = Gang(A, B)
    for _ in range(3):
        assert gang.starts(0) == {}
        gang = _goes_on(gang.reported[-1])


def test_the_candidates_are_those_of_the_job_else_of_the_network() -> None:
    pod = PodEnvironment.read(
        {
            "LLMTRAIN_RANKS": "0,1",
            "WORLD_SIZE": "4",
            "LLMTRAIN_POD_IP": "127.0.0.1",
            "MASTER_ADDR": "a",
            "LLMTRAIN_NETWORK_ROW": "coreweave-infiniband",
            "LLMTRAIN_JOB_FILE": str(Path("x")),
        }
    )
    nvidia = NetworkTuningConfig(None, "nvidia.com/gpu")
    found = candidates_of(nvidia, 4, pod, {"NCCL_NVLS_ENABLE": "1"})
    assert {"NCCL_PXN_DISABLE": "1"} in found and {"NCCL_NVLS_ENABLE": "0"} not in found
    assert candidates_of(NetworkTuningConfig((A,), "amd.com/gpu"), 4, pod, ()) == (A,)
    with pytest.raises(InputError, match=r"2 nodes with 2 amd\.com/gpu"):
        candidates_of(NetworkTuningConfig(None, "amd.com/gpu"), 4, pod, ())


def test_the_result_has_all_trials_or_none() -> None:
    gang = Gang(*({f"NCCL_{number}": "1"} for number in range(15)))
    for generation in range(16):
        gang.starts(generation)
        gang.trains(generation, 1.0)
    data = result_message(Status(0, network_tuning=gang.reported[-1]))
    assert b"networkTuning" in data and b"NCCL_14" in data and len(data) <= 4096
    long = Gang(*({f"NCCL_{number}{'X' * 50}": "1" * 64} for number in range(15)))
    for generation in range(16):
        long.starts(generation)
        long.trains(generation, 0.5**generation)
    data = result_message(Status(0, network_tuning=long.reported[-1]))
    assert b"networkTuning" not in data and len(data) <= 4096
