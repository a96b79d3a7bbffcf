"""The restart coordinator, event by event."""

from __future__ import annotations

import pytest

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.launcher.restart.coordinator import CAUSE_SECONDS, RestartCoordinator
from llmtrain_trainer.launcher.restart.hang_detection import find_culprit
from llmtrain_trainer.launcher.restart.messages import (
    Command,
    Done,
    DumpStacks,
    End,
    Failed,
    HangCleared,
    HangSuspected,
    LauncherEvent,
    PauseSteps,
    Ready,
    Registered,
    Restart,
    StacksReported,
    StartRanks,
    StepsPaused,
    StopAfterStep,
    StopRequested,
    decode_command,
    decode_event,
    encode,
)
from llmtrain_trainer.runtime.reports import RankDump

pytestmark = pytest.mark.unit

KILLED = FailureInfo("Signal", "SIGKILL", exit_code=137, rank=3)
BUG = FailureInfo("Exception", "ValueError", exit_code=1, rank=2)
LOST = FailureInfo("PeerLost", "gloo", exit_code=200, rank=0)


def _gang(max_restarts: int = 2, saves: bool = True) -> RestartCoordinator:
    """Two launchers with two ranks each, all started."""
    gang = RestartCoordinator(4, max_restarts, startup_timeout=60.0, saves=saves)
    gang.on_event(0, Registered((0, 1)), 0.0)
    gang.on_event(1, Registered((2, 3)), 0.0)
    assert _both_send(gang, Ready(0)) == (StartRanks(0),)
    return gang


def _both_send(
    gang: RestartCoordinator, event: LauncherEvent, now: float = 0.0
) -> tuple[Command, ...]:
    """Both launchers send an event; only the second one has an effect."""
    assert gang.on_event(0, event, now) == ()
    return gang.on_event(1, event, now)


def _dump(rank: int, **changes: object) -> RankDump:
    defaults = {
        "state": "responsive",
        "step": 7,
        "waiting": True,
        "operations": ("dp all_gather #51",),
        "stack": ("a.py:1 f",),
    }
    return RankDump(rank=rank, **{**defaults, **changes})  # type: ignore[arg-type]


def test_a_gpu_that_cannot_be_used_ends_the_gang_without_a_restart_in_place() -> None:
    gpu = FailureInfo("GpuError", "Xid 79", exit_code=202, rank=2, keeps_nodes=False, xids=(79,))
    [end] = _gang().on_event(1, Failed(0, gpu), 1.0)
    assert end == End(gpu) and decode_command(encode(end)) == end
    mild = FailureInfo("GpuError", "Xid 31", exit_code=202, rank=2, xids=(31,))
    assert _gang().on_event(1, Failed(0, mild), 1.0) == (Restart(1, mild),)


def test_a_retryable_failure_restarts_all_ranks() -> None:
    gang = _gang()
    assert gang.on_event(0, Failed(0, LOST), 1.0) == ()
    assert gang.on_event(1, Failed(0, KILLED), 1.1) == (Restart(1, KILLED),)
    assert gang.on_event(0, Failed(0, LOST), 1.2) == ()  # of ranks that have exited
    assert gang.on_event(0, Ready(0), 1.2) == ()
    assert _both_send(gang, Ready(1)) == (StartRanks(1),)
    assert _both_send(gang, Done(1)) == (End(None),)


def test_a_lost_peer_waits_for_its_cause() -> None:
    gang = _gang()
    gang.on_event(0, Failed(0, LOST), 1.0)
    assert gang.deadline == 1.0 + CAUSE_SECONDS
    assert gang.on_deadline(1.0 + CAUSE_SECONDS / 2) == ()
    assert gang.on_deadline(1.0 + CAUSE_SECONDS) == (Restart(1, LOST),)
    assert _both_send(gang, Ready(1)) == (StartRanks(1),)
    gang.on_event(0, Failed(1, LOST), 5.0)
    assert gang.on_event(1, Failed(1, BUG), 5.5) == (End(BUG),)


def test_restarts_are_bounded_until_a_newer_checkpoint() -> None:
    gang = _gang(max_restarts=2)
    gang.on_checkpoint(10)
    for generation in range(2):
        failed = gang.on_event(1, Failed(generation, KILLED), 1.0)
        assert failed == (Restart(generation + 1, KILLED),)
        _both_send(gang, Ready(generation + 1))
    gang.on_checkpoint(10)  # found again, not newer
    unlimited = _gang(max_restarts=0)
    assert unlimited.on_event(1, Failed(0, KILLED), 1.0) == (End(KILLED),)
    gang.on_checkpoint(12)
    assert gang.on_event(1, Failed(2, KILLED), 1.0) == (Restart(3, KILLED),)
    _both_send(gang, Ready(3))
    assert gang.on_event(1, Failed(3, KILLED), 1.0) == (Restart(4, KILLED),)
    _both_send(gang, Ready(4))
    assert gang.on_event(1, Failed(4, KILLED), 1.0) == (End(KILLED),)


def test_a_disconnected_launcher_ends_the_gang() -> None:
    gang = _gang()
    (end,) = gang.on_disconnect(1)
    assert isinstance(end, End) and end.cause is not None
    assert end.cause.exit_code == 200 and "ranks 2, 3" in end.cause.message
    assert gang.on_event(0, Failed(0, LOST), 0.0) == () and gang.on_disconnect(0) == ()


def test_ranks_that_do_not_get_ready_are_named() -> None:
    gang = RestartCoordinator(4, 2, startup_timeout=60.0, saves=True)
    gang.on_event(0, Registered((0, 1)), 0.0)
    gang.on_event(0, Ready(0), 5.0)
    assert gang.on_deadline(64.0) == ()
    (end,) = gang.on_deadline(65.0)
    assert isinstance(end, End) and end.cause is not None
    assert end.cause.exit_code == 200 and "ranks 2, 3" in end.cause.message


def test_all_ranks_save_after_the_last_step_that_any_of_them_has_started() -> None:
    gang = _gang()
    assert gang.on_event(1, StopRequested(), 1.0) == (PauseSteps(0),)
    assert gang.on_event(0, StopRequested(), 1.0) == ()
    assert gang.on_event(0, StepsPaused(0, 41), 1.0) == ()
    assert gang.on_event(1, StepsPaused(0, 42), 1.0) == (StopAfterStep(0, 42),)
    (end,) = _both_send(gang, Done(0))
    assert isinstance(end, End) and end.cause is not None
    assert end.cause.exit_code == 143 and "step 42" in end.cause.message


def test_a_gang_can_be_stopped_while_stacks_are_collected() -> None:
    gang = _gang()
    gang.on_event(0, HangSuspected(0, 0, 9.0, 8.0), 10.0)
    assert gang.on_event(1, StopRequested(), 10.1) == (PauseSteps(0),)
    gang.on_event(0, StacksReported(0, (_dump(0), _dump(1)), 9.0), 10.2)
    assert _both_send(gang, StepsPaused(0, 7), 10.3) == (StopAfterStep(0, 7),)


def test_a_gang_stops_at_once_before_its_first_step() -> None:
    gang = _gang()
    assert gang.on_event(1, StopRequested(), 1.0) == (PauseSteps(0),)
    (end,) = _both_send(gang, StepsPaused(0, 0))
    assert isinstance(end, End) and end.cause is not None
    assert end.cause.exit_code == 143
    assert "before it had anything to save" in end.cause.message


@pytest.mark.parametrize("saves", [False, True])
def test_a_gang_stops_at_once_if_it_cannot_save(saves: bool) -> None:
    gang = _gang(saves=saves)
    if saves:  # in the middle of a restart
        gang.on_event(1, Failed(0, KILLED), 1.0)
    (end,) = gang.on_event(1, StopRequested(), 1.0)
    assert isinstance(end, End) and end.cause is not None and end.cause.exit_code == 143


def test_a_rank_that_fails_while_all_save_ends_the_gang() -> None:
    gang = _gang()
    gang.on_event(1, StopRequested(), 1.0)
    assert gang.on_event(1, Failed(0, KILLED), 1.0) == (End(KILLED),)


def test_stacks_are_collected_before_a_hang_ends_the_ranks() -> None:
    gang = _gang()
    assert gang.on_event(0, HangSuspected(0, 0, 9.0, 8.0), 10.0) == (DumpStacks(0),)
    assert gang.on_event(1, HangSuspected(0, 2, 9.0, 8.0), 10.0) == ()
    gang.on_event(0, StacksReported(0, (_dump(0), _dump(1)), 9.0), 10.5)
    stopped = _dump(3, state="stopped", waiting=False)
    (command,) = gang.on_event(1, StacksReported(0, (_dump(2), stopped), 8.5), 11.0)
    assert isinstance(command, Restart)
    assert (command.cause.rank, command.cause.exit_code) == (3, 201)
    assert "dp all_gather #51 (rank 0, 1, 2)" in command.cause.message


def test_it_is_no_hang_while_a_rank_makes_progress() -> None:
    """A write may take longer than a step; the ranks of another launcher have exited already."""
    gang = _gang()
    gang.on_event(1, Done(0), 9.0)
    assert gang.on_event(0, HangSuspected(0, 1, 9.0, 8.0), 10.0) == (DumpStacks(0),)
    gang.on_event(0, StacksReported(0, (_dump(0), _dump(1)), 0.5), 10.5)
    assert gang.on_event(1, StacksReported(0, (), None), 10.6) == (HangCleared(0, 0.5),)
    assert gang.deadline is None
    assert gang.on_event(0, HangSuspected(0, 1, 8.1, 8.0), 18.0) == (DumpStacks(0),)
    gang.on_event(0, StacksReported(0, (_dump(0), _dump(1)), 8.0), 18.5)
    (command,) = gang.on_event(1, StacksReported(0, (), None), 18.6)
    assert isinstance(command, Restart)


def test_a_peer_lost_while_stacks_are_collected_is_not_forgotten() -> None:
    gang = _gang()
    gang.on_event(0, HangSuspected(0, 0, 9.0, 8.0), 10.0)
    gang.on_event(0, Failed(0, LOST), 10.1)
    gang.on_event(0, StacksReported(0, (_dump(1),), 0.5), 10.5)
    assert gang.on_event(1, StacksReported(0, (_dump(2), _dump(3)), 0.5), 10.6) == (
        Restart(1, LOST),
    )


def test_done_launchers_stay_done_after_a_cleared_hang() -> None:
    gang = _gang()
    gang.on_event(1, Done(0), 9.0)
    gang.on_event(0, HangSuspected(0, 1, 9.0, 8.0), 10.0)
    gang.on_event(0, StacksReported(0, (_dump(0), _dump(1)), 0.5), 10.5)
    gang.on_event(1, StacksReported(0, (), None), 10.6)
    assert gang.on_event(0, Done(0), 12.0) == (End(None),)


def test_a_launcher_that_reports_no_stacks_does_not_block_the_others() -> None:
    gang = _gang()
    gang.on_event(0, HangSuspected(0, 0, 9.0, 8.0), 10.0)
    gang.on_event(0, StacksReported(0, (_dump(0), _dump(1)), 9.0), 10.5)
    assert gang.deadline is not None
    (command,) = gang.on_deadline(gang.deadline)
    assert isinstance(command, Restart) and "rank 2 sent no stack" in command.cause.message


@pytest.mark.parametrize(
    ("dumps", "rank", "text"),
    [
        ([_dump(0), _dump(1, state="unresponsive", waiting=False)], 1, "does not respond"),
        ([_dump(0), _dump(1, waiting=False, operations=())], 1, "in a.py:1 f"),
        ([_dump(0, waiting=False), _dump(1, waiting=False, step=6), _dump(2)], 1, "past step 6"),
        ([_dump(0), _dump(1)], None, "no single rank"),
        ([_dump(0, waiting=False), _dump(1, waiting=False)], None, "no single rank"),
    ],
    ids=["unresponsive", "busy", "the one behind", "all wait", "none waits"],
)
def test_the_rank_that_blocks_the_others_is_found(
    dumps: list[RankDump], rank: int | None, text: str
) -> None:
    cause = find_culprit(dumps, [], 9.0)
    assert cause.rank == rank and text in cause.message and len(cause.message) < 2000


@pytest.mark.parametrize(
    ("launcher", "event"),
    [(2, Ready(0)), (2, Registered((3,))), (0, Registered((1,))), (2, Registered((4,)))],
    ids=["not registered", "ranks of another", "twice", "no such rank"],
)
def test_invalid_events_are_refused(launcher: int, event: LauncherEvent) -> None:
    with pytest.raises(ValueError):
        _gang().on_event(launcher, event, 0.0)


def test_messages_survive_encoding() -> None:
    for event in (
        Registered((0, 1)),
        Failed(1, KILLED),
        StacksReported(2, (_dump(0),), None),
        StopRequested(),
    ):
        assert decode_event(encode(event)) == event
    for command in (
        StartRanks(1, 4000),
        Restart(2, LOST),
        StopAfterStep(0, 7),
        HangCleared(0, 1.5),
        End(None),
        End(BUG),
    ):
        assert decode_command(encode(command)) == command
    for line in (b"{}\n", b'{"kind": "end"}\n', b"\xff\n", b"[" * 10_000):
        with pytest.raises(ValueError):
            decode_event(line)
