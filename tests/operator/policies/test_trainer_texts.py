"""The texts of a trainer are in the status: why it uses TCP, and its chat template. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.api.status.job import JobStatus
from tests.support.operator_harness.observed import make_observed, pod, settle, status

pytestmark = pytest.mark.unit


def progress_after(*reports: dict[str, Any]) -> dict[str, Any]:
    observed = make_observed(status(ConditionType.RUNNING), pods=(pod(0), pod(1)))
    actions, observed = settle(observed)
    for report in reports:
        actions, observed = settle(replace(observed, report={"step": 1, **report}))
    JobStatus.from_wire(actions.status)
    found: dict[str, Any] = actions.status["progress"]
    return found


def test_the_words_of_the_trainer_are_shown_and_bounded() -> None:
    said = "MemlockTooLow: ranks 0, 1: the pod may lock 8192 KiB"
    assert progress_after({"networkFallback": said})["networkFallback"] == said
    long = progress_after({"networkFallback": "a\x1b[31m\n" + "x" * 9000})["networkFallback"]
    assert len(long) == 512 and long.isprintable()


def test_the_chat_template_is_named_and_bounded() -> None:
    assert progress_after({"chatTemplate": "preset chatml"})["chatTemplate"] == "preset chatml"
    long = progress_after({"chatTemplate": "/a\x1b[31m\n" + "x" * 9000})["chatTemplate"]
    assert len(long) == 300 and long.isprintable()
    assert "chatTemplate" not in progress_after({"chatTemplate": ["x"]})


def test_they_go_with_the_fallback() -> None:
    said = {"networkFallback": "MemlockTooLow: ranks 0, 1"}
    assert "networkFallback" in progress_after(said, {})
    assert "networkFallback" not in progress_after(said, {"networkFallback": None})


def test_trials_of_communication_settings_are_shown() -> None:
    setting = {"copiesPerRack": 2, "overlap": True, "bucketBytes": 0, "chunks": 1}
    trials = [{**setting, "copiesPerRack": 1, "stepSeconds": 0.5}, {**setting, "stepSeconds": 0.3}]
    said = {"state": "Chosen", "setting": setting, "fromStep": 12, "trials": trials}
    assert progress_after({"communication": said})["communication"] == said
    assert progress_after({"communication": said}, {})["communication"] == said
    for other in (None, "x", {**said, "trials": trials * 9}, {**said, "state": "x" * 9000}):
        later = progress_after({"communication": said}, {"communication": other})
        assert "communication" not in later and later["step"] == 1


def test_trials_of_variables_are_shown_and_kept() -> None:
    trials = [{"variables": {}, "stepSeconds": 0.5}]
    said = {"state": "Trying", "placement": "ab", "fastest": {}, "trials": trials}
    assert progress_after({"networkTuning": said})["networkTuning"] == said
    for other in (None, "x", {**said, "trials": trials * 17}, {**said, "fastest": {"HOME": "/"}}):
        later = progress_after({"networkTuning": said}, {"networkTuning": other})
        assert later["networkTuning"] == said and later["step"] == 1


@pytest.mark.parametrize("nonsense", [None, "", 7, ["x"], {"reason": "x"}])
def test_other_values_say_nothing(nonsense: Any) -> None:
    assert "networkFallback" not in progress_after({"networkFallback": nonsense})
