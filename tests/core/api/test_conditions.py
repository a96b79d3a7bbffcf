"""Conditions keep the promises of metav1.Condition."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.api.conditions import (
    ConditionType,
    Reason,
    clean_text,
    get_condition,
    is_true,
    set_condition,
)
from llmtrain_core.api.defaults import MESSAGE_LENGTH
from llmtrain_core.api.status.job import Condition

pytestmark = pytest.mark.unit

EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def put(
    conditions: list[dict[str, Any]],
    kind: ConditionType,
    status: bool,
    *,
    reason: str = Reason.PLACED,
    message: str = "",
    generation: int = 1,
    now: str = EARLY,
) -> list[dict[str, Any]]:
    return set_condition(conditions, kind, status, reason, message, generation=generation, now=now)


def test_a_condition_is_added() -> None:
    conditions = put([], ConditionType.PLACED, True, message="on 2 nodes")
    assert conditions == [
        {
            "type": "Placed",
            "status": "True",
            "reason": "Placed",
            "message": "on 2 nodes",
            "observedGeneration": 1,
            "lastTransitionTime": EARLY,
        }
    ]
    Condition.from_wire(conditions[0])


def test_the_time_moves_only_when_the_status_flips() -> None:
    conditions = put([], ConditionType.PLACED, False, reason=Reason.QUEUED)
    conditions = put(
        conditions,
        ConditionType.PLACED,
        False,
        reason=Reason.INSUFFICIENT_GPUS,
        now=LATE,
        generation=2,
    )
    assert conditions[0]["lastTransitionTime"] == EARLY
    assert conditions[0]["reason"] == "InsufficientGpus"
    assert conditions[0]["observedGeneration"] == 2
    conditions = put(conditions, ConditionType.PLACED, True, now=LATE)
    assert conditions[0]["lastTransitionTime"] == LATE


def test_setting_a_condition_again_changes_nothing() -> None:
    once = put([], ConditionType.RUNNING, True)
    assert put(once, ConditionType.RUNNING, True, now=LATE) == once


def test_the_input_is_left_alone() -> None:
    before = put([], ConditionType.RUNNING, True)
    put(before, ConditionType.RUNNING, False, now=LATE)
    assert before[0]["status"] == "True"


def test_conditions_keep_the_order_of_their_types_and_foreign_ones_come_last() -> None:
    foreign = {**put([], ConditionType.RUNNING, True)[0], "type": "example.com/Checked"}
    conditions = [foreign]
    for kind in reversed(ConditionType):
        conditions = put(conditions, kind, False)
    assert [c["type"] for c in conditions] == [*map(str, ConditionType), "example.com/Checked"]


def test_reading() -> None:
    conditions = put([], ConditionType.ACCEPTED, True)
    conditions = put(conditions, ConditionType.PLACED, False)
    assert is_true(conditions, ConditionType.ACCEPTED)
    assert not is_true(conditions, ConditionType.PLACED)
    assert not is_true(conditions, ConditionType.FAILED)
    assert get_condition(conditions, ConditionType.FAILED) is None
    found = get_condition(conditions, ConditionType.PLACED)
    assert found is not None
    assert found["status"] == "False"


def test_every_reason_is_one_that_the_api_server_takes() -> None:
    for reason in Reason:
        Condition.from_wire(put([], ConditionType.ACCEPTED, True, reason=reason)[0])


@given(st.text())
def test_text_of_others_is_safe_to_show(text: str) -> None:
    clean = clean_text(text, limit=40)
    assert len(clean) <= 40
    assert clean.isprintable()
    assert clean_text(clean, limit=40) == clean


def test_a_long_message_is_cut_visibly() -> None:
    conditions = put([], ConditionType.FAILED, True, message="x" * 5000)
    assert len(conditions[0]["message"]) == MESSAGE_LENGTH
    assert conditions[0]["message"].endswith("…")


def test_escape_sequences_do_not_reach_a_terminal() -> None:
    assert clean_text("\x1b[31mred\nalert\u202e") == "[31mred alert"
