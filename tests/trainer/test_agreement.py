"""What launchers agree on, word by word."""

from __future__ import annotations

import pytest

from llmtrain_core.api.failure import FailureInfo
from llmtrain_trainer.launcher.restart.coordinator import CAUSE_SECONDS, Agreement
from llmtrain_trainer.launcher.restart.hang_detection import accuse
from llmtrain_trainer.launcher.restart.messages import (
    Asked,
    Done,
    End,
    Explain,
    Failed,
    Finish,
    Held,
    Hold,
    Joined,
    Order,
    Patience,
    Ready,
    Restart,
    Silent,
    Start,
    Stated,
    Word,
    encode,
    read_order,
    read_word,
)
from llmtrain_trainer.runtime.reports import Statement

pytestmark = pytest.mark.unit

KILLED = FailureInfo("Signal", "SIGKILL", exit_code=137, rank=3)
BUG = FailureInfo("Exception", "ValueError", exit_code=1, rank=2)
LOST = FailureInfo("PeerLost", "gloo", exit_code=200, rank=0)


def _gang(most: int = 2, saves: bool = True) -> Agreement:
    """Two launchers with two ranks each, all started."""
    gang = Agreement(4, most, startup=60.0, saves=saves)
    gang.hear(0, Joined((0, 1)), 0.0)
    gang.hear(1, Joined((2, 3)), 0.0)
    assert _all_say(gang, Ready(0)) == (Start(0),)
    return gang


def _all_say(gang: Agreement, word: Word, now: float = 0.0) -> tuple[Order, ...]:
    """Both launchers say a word; only the last of them settles anything."""
    assert gang.hear(0, word, now) == ()
    return gang.hear(1, word, now)


def _stated(rank: int, **changes: object) -> Statement:
    facts = {
        "state": "answers",
        "step": 7,
        "waits": True,
        "operations": ("dp all_gather #51",),
        "stack": ("a.py:1 f",),
    }
    return Statement(rank=rank, **{**facts, **changes})  # type: ignore[arg-type]


def test_a_failure_that_may_pass_starts_everybody_again() -> None:
    gang = _gang()
    assert gang.hear(0, Failed(0, LOST), 1.0) == ()
    assert gang.hear(1, Failed(0, KILLED), 1.1) == (Restart(1, KILLED),)
    assert gang.hear(0, Failed(0, LOST), 1.2) == ()  # of ranks that are gone
    assert gang.hear(0, Ready(0), 1.2) == ()
    assert _all_say(gang, Ready(1)) == (Start(1),)
    assert _all_say(gang, Done(1)) == (End(None),)


def test_a_lost_peer_waits_for_its_cause() -> None:
    gang = _gang()
    gang.hear(0, Failed(0, LOST), 1.0)
    assert gang.deadline == 1.0 + CAUSE_SECONDS
    assert gang.expire(1.0 + CAUSE_SECONDS / 2) == ()
    assert gang.expire(1.0 + CAUSE_SECONDS) == (Restart(1, LOST),)
    assert _all_say(gang, Ready(1)) == (Start(1),)
    gang.hear(0, Failed(1, LOST), 5.0)
    assert gang.hear(1, Failed(1, BUG), 5.5) == (End(BUG),)


def test_restarts_are_bounded_until_a_newer_checkpoint() -> None:
    gang = _gang(most=2)
    gang.saved(10)
    for generation in range(2):
        failed = gang.hear(1, Failed(generation, KILLED), 1.0)
        assert failed == (Restart(generation + 1, KILLED),)
        _all_say(gang, Ready(generation + 1))
    gang.saved(10)  # found again, not newer
    saved = _gang(most=0)
    assert saved.hear(1, Failed(0, KILLED), 1.0) == (End(KILLED),)
    gang.saved(12)
    assert gang.hear(1, Failed(2, KILLED), 1.0) == (Restart(3, KILLED),)
    _all_say(gang, Ready(3))
    assert gang.hear(1, Failed(3, KILLED), 1.0) == (Restart(4, KILLED),)
    _all_say(gang, Ready(4))
    assert gang.hear(1, Failed(4, KILLED), 1.0) == (End(KILLED),)


def test_a_launcher_that_is_gone_ends_the_gang() -> None:
    gang = _gang()
    (end,) = gang.lose(1)
    assert isinstance(end, End) and end.cause is not None
    assert end.cause.exit_code == 200 and "ranks 2, 3" in end.cause.message
    assert gang.hear(0, Failed(0, LOST), 0.0) == () and gang.lose(0) == ()


def test_who_does_not_get_ready_is_named() -> None:
    gang = Agreement(4, 2, startup=60.0, saves=True)
    gang.hear(0, Joined((0, 1)), 0.0)
    gang.hear(0, Ready(0), 5.0)
    assert gang.expire(64.0) == ()
    (end,) = gang.expire(65.0)
    assert isinstance(end, End) and end.cause is not None
    assert end.cause.exit_code == 200 and "ranks 2, 3" in end.cause.message


def test_all_save_after_the_latest_step_that_any_rank_has_started() -> None:
    gang = _gang()
    assert gang.hear(1, Asked(), 1.0) == (Hold(0),)
    assert gang.hear(0, Asked(), 1.0) == ()
    assert gang.hear(0, Held(0, 41), 1.0) == ()
    assert gang.hear(1, Held(0, 42), 1.0) == (Finish(0, 42),)
    (end,) = _all_say(gang, Done(0))
    assert isinstance(end, End) and end.cause is not None
    assert end.cause.exit_code == 143 and "step 42" in end.cause.message


def test_a_gang_is_stopped_in_the_middle_of_a_question_as_well() -> None:
    gang = _gang()
    gang.hear(0, Silent(0, 0, 9.0, 8.0), 10.0)
    assert gang.hear(1, Asked(), 10.1) == (Hold(0),)
    gang.hear(0, Stated(0, (_stated(0), _stated(1)), 9.0), 10.2)
    assert _all_say(gang, Held(0, 7), 10.3) == (Finish(0, 7),)


def test_no_rank_is_waited_for_before_its_first_step() -> None:
    gang = _gang()
    assert gang.hear(1, Asked(), 1.0) == (Hold(0),)
    (end,) = _all_say(gang, Held(0, 0))
    assert isinstance(end, End) and end.cause is not None
    assert end.cause.exit_code == 143
    assert "before it had anything to save" in end.cause.message


@pytest.mark.parametrize("saves", [False, True])
def test_nothing_is_waited_for_where_nothing_can_be_saved(saves: bool) -> None:
    gang = _gang(saves=saves)
    if saves:  # in the middle of a restart
        gang.hear(1, Failed(0, KILLED), 1.0)
    (end,) = gang.hear(1, Asked(), 1.0)
    assert isinstance(end, End) and end.cause is not None and end.cause.exit_code == 143


def test_a_rank_that_fails_while_all_save_ends_the_gang() -> None:
    gang = _gang()
    gang.hear(1, Asked(), 1.0)
    assert gang.hear(1, Failed(0, KILLED), 1.0) == (End(KILLED),)


def test_a_hang_is_explained_before_it_is_acted_on() -> None:
    gang = _gang()
    assert gang.hear(0, Silent(0, 0, 9.0, 8.0), 10.0) == (Explain(0),)
    assert gang.hear(1, Silent(0, 2, 9.0, 8.0), 10.0) == ()
    gang.hear(0, Stated(0, (_stated(0), _stated(1)), 9.0), 10.5)
    mute = _stated(3, state="stopped", waits=False)
    (order,) = gang.hear(1, Stated(0, (_stated(2), mute), 8.5), 11.0)
    assert isinstance(order, Restart)
    assert (order.cause.rank, order.cause.exit_code) == (3, 201)
    assert "dp all_gather #51 (rank 0, 1, 2)" in order.cause.message


def test_a_rank_that_gets_on_is_waited_for() -> None:
    """It writes what takes longer than a step; the ranks of another launcher have ended already."""
    gang = _gang()
    gang.hear(1, Done(0), 9.0)
    assert gang.hear(0, Silent(0, 1, 9.0, 8.0), 10.0) == (Explain(0),)
    gang.hear(0, Stated(0, (_stated(0), _stated(1)), 0.5), 10.5)
    assert gang.hear(1, Stated(0, (), None), 10.6) == (Patience(0, 0.5),)
    assert gang.deadline is None
    assert gang.hear(0, Silent(0, 1, 8.1, 8.0), 18.0) == (Explain(0),)
    gang.hear(0, Stated(0, (_stated(0), _stated(1)), 8.0), 18.5)
    (order,) = gang.hear(1, Stated(0, (), None), 18.6)
    assert isinstance(order, Restart)


def test_a_peer_lost_in_the_middle_of_a_question_is_not_forgotten() -> None:
    gang = _gang()
    gang.hear(0, Silent(0, 0, 9.0, 8.0), 10.0)
    gang.hear(0, Failed(0, LOST), 10.1)
    gang.hear(0, Stated(0, (_stated(1),), 0.5), 10.5)
    assert gang.hear(1, Stated(0, (_stated(2), _stated(3)), 0.5), 10.6) == (Restart(1, LOST),)


def test_what_ended_before_a_question_stays_ended() -> None:
    gang = _gang()
    gang.hear(1, Done(0), 9.0)
    gang.hear(0, Silent(0, 1, 9.0, 8.0), 10.0)
    gang.hear(0, Stated(0, (_stated(0), _stated(1)), 0.5), 10.5)
    gang.hear(1, Stated(0, (), None), 10.6)
    assert gang.hear(0, Done(0), 12.0) == (End(None),)


def test_a_launcher_that_cannot_say_anything_does_not_hold_up_the_others() -> None:
    gang = _gang()
    gang.hear(0, Silent(0, 0, 9.0, 8.0), 10.0)
    gang.hear(0, Stated(0, (_stated(0), _stated(1)), 9.0), 10.5)
    assert gang.deadline is not None
    (order,) = gang.expire(gang.deadline)
    assert isinstance(order, Restart) and "rank 2 could not be asked" in order.cause.message


@pytest.mark.parametrize(
    ("statements", "rank", "text"),
    [
        ([_stated(0), _stated(1, state="mute", waits=False)], 1, "does not answer"),
        ([_stated(0), _stated(1, waits=False, operations=())], 1, "in a.py:1 f"),
        ([_stated(0, waits=False), _stated(1, waits=False, step=6), _stated(2)], 1, "past step 6"),
        ([_stated(0), _stated(1)], None, "no single rank"),
        ([_stated(0, waits=False), _stated(1, waits=False)], None, "no single rank"),
    ],
    ids=["mute", "busy", "the one behind", "all wait", "none waits"],
)
def test_who_holds_the_others_up(statements: list[Statement], rank: int | None, text: str) -> None:
    cause = accuse(statements, [], 9.0)
    assert cause.rank == rank and text in cause.message and len(cause.message) < 2000


@pytest.mark.parametrize(
    ("member", "word"),
    [(2, Ready(0)), (2, Joined((3,))), (0, Joined((1,))), (2, Joined((4,)))],
    ids=["a stranger", "ranks of another", "twice", "no such rank"],
)
def test_words_without_sense_are_refused(member: int, word: Word) -> None:
    with pytest.raises(ValueError):
        _gang().hear(member, word, 0.0)


def test_messages_survive_the_wire() -> None:
    for word in (Joined((0, 1)), Failed(1, KILLED), Stated(2, (_stated(0),), None), Asked()):
        assert read_word(encode(word)) == word
    for order in (
        Start(1, 4000),
        Restart(2, LOST),
        Finish(0, 7),
        Patience(0, 1.5),
        End(None),
        End(BUG),
    ):
        assert read_order(encode(order)) == order
    for line in (b"{}\n", b'{"kind": "end"}\n', b"\xff\n", b"[" * 10_000):
        with pytest.raises(ValueError):
            read_word(line)
