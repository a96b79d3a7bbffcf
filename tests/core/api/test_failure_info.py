"""The termination message of a failed pod, written and read."""

from __future__ import annotations

import json

import pytest

from llmtrain_core.api.defaults import TERMINATION_MESSAGE_BYTES
from llmtrain_core.api.failure_info import FailureInfo

pytestmark = pytest.mark.unit


def test_a_failure_survives_its_termination_message() -> None:
    failure = FailureInfo("CorpusMissing", "no such file", "spec.data", "mount it", 2, 3)
    assert FailureInfo.from_termination_message(failure.to_termination_message()) == failure
    bare = FailureInfo("Signal", "rank 1 was killed by SIGKILL", exit_code=137)
    assert FailureInfo.from_termination_message(bare.to_termination_message()) == bare


@pytest.mark.parametrize("text", ["x" * 100_000, "\U0001f525" * 9000, "\x00\x1b[2J\n" * 999, ""])
def test_a_termination_message_is_bounded_and_printable(text: str) -> None:
    data = FailureInfo(text, text, text, text, 1, 3).to_termination_message()
    assert len(data) <= TERMINATION_MESSAGE_BYTES
    error = json.loads(data)["error"]
    assert set(error) == {"reason", "message", "field", "remedy", "rank", "exitCode"}
    texts = [value for value in error.values() if isinstance(value, str)]
    assert all(value.isprintable() for value in texts)
    assert (error["rank"], error["exitCode"]) == (3, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Killed",
        "[" * 100_000,
        "[1]",
        '{"result": {}}',
        '{"error": "text"}',
        '{"error": {"reason": "A"}}',
        '{"error": {"reason": 1, "message": "m"}}',
    ],
)
def test_other_termination_messages_are_no_failure(text: str) -> None:
    assert FailureInfo.from_termination_message(text) is None


def test_values_of_a_wrong_type_are_left_out() -> None:
    text = '{"error": {"reason": "A", "message": "m", "field": 1, "rank": "2", "exitCode": true}}'
    assert FailureInfo.from_termination_message(text) == FailureInfo("A", "m")


def test_xids_survive_a_termination_message_and_other_values_do_not() -> None:
    failure = FailureInfo("GpuError", "m", exit_code=202, rank=1, xids=(79, 48))
    assert FailureInfo.from_termination_message(failure.to_termination_message()) == failure
    for found, codes in (
        ([79, "48", True, None, -1, 0, 10**30, 48.0, [1]], (79,)),
        ([79] * 1000, (79,) * 8),
        ({"79": 1}, ()),
        ("79", ()),
    ):
        text = json.dumps({"error": {"reason": "A", "message": "m", "xids": found}})
        read = FailureInfo.from_termination_message(text)
        assert read is not None and read.xids == codes


def test_a_failure_is_retryable_by_its_exit_code_or_because_it_is_transient() -> None:
    assert FailureInfo("NodeLost", "m").retryable
    assert FailureInfo("Signal", "m", exit_code=128).retryable
    assert not FailureInfo("ExitCode", "m", exit_code=127).retryable
    assert FailureInfo("OutOfMemory", "m", exit_code=1, transient=True).retryable


def test_only_a_lost_peer_with_its_exit_code_is_a_consequence() -> None:
    assert FailureInfo("PeerLost", "m", exit_code=200).is_consequence
    assert not FailureInfo("ExitCode", "m", exit_code=200).is_consequence
    assert not FailureInfo("PeerLost", "m", exit_code=137).is_consequence
