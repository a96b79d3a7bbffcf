"""The texts of a trainer are in the status: its network, and its chat template. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain_core.api.conditions import ConditionType
from llmtrain_core.api.status.job import JobStatus
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.reconcile.checklist import COSMETIC_SECONDS, decide
from tests.support.operator_harness.observed import make_observed, pod, settle, status

pytestmark = pytest.mark.unit


def running(**more: Any) -> Observed:
    return settle(make_observed(status(ConditionType.RUNNING, **more), pods=(pod(0), pod(1))))[1]


def status_after(observed: Observed, *reports: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for report in reports:
        actions, observed = settle(replace(observed, report={"step": 1, **report}))
        found = dict(actions.status)
    JobStatus.from_wire(found)
    return found


def progress_after(*reports: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = status_after(running(), *reports)["progress"]
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


NETWORK = {
    "row": "azure-infiniband",
    "fact": "allocatable rdma/ib: 8",
    "settings": [
        {"kind": "Resource", "name": "rdma/ib", "value": "8", "setBy": "x", "source": "y"},
    ],
}
NCCL = {"version": "2.30.7+cuda13.0", "network": "IB", "devices": ["mlx5_0:1/IB"]}


def test_what_nccl_uses_is_beside_the_network_that_was_decided() -> None:
    placed = running(network=NETWORK)
    said = {"nccl": NCCL}
    assert status_after(placed, said)["network"] == {**NETWORK, "nccl": NCCL}
    libfabric = {"network": "Libfabric", "provider": "efa"}
    shown = status_after(placed, said, {"nccl": libfabric})["network"]
    assert shown == {**NETWORK, "nccl": libfabric}
    assert status_after(placed, said, {"nccl": None})["network"] == NETWORK
    assert status_after(placed, said, {})["network"] == NETWORK


@pytest.mark.parametrize(
    "lie",
    [
        "IB",
        {"version": "2.30.7"},
        {"network": ""},
        {**NCCL, "network": "x" * 65},
        {**NCCL, "network": "a\x1b[31m"},
        {**NCCL, "devices": ["mlx5_0\n"]},
        {**NCCL, "devices": ["mlx5_0"] * 33},
        {**NCCL, "settings": [], "row": "tcp"},
    ],
    ids=lambda lie: repr(lie)[:40],
)
def test_what_is_not_valid_changes_no_network(lie: Any) -> None:
    found = status_after(running(network=NETWORK), {"nccl": lie, "row": "tcp", "settings": []})
    assert found["network"] == NETWORK and found["progress"]["step"] == 1


def test_a_placement_of_an_older_release_has_no_network_to_add_to() -> None:
    assert "network" not in status_after(running(), {"nccl": NCCL})


def test_what_nccl_uses_is_written_no_more_often_than_other_texts() -> None:
    """Or a pod that says something else in each report would cause a write for each."""
    said = replace(running(network=NETWORK), report={"step": 1, "nccl": NCCL})
    assert not decide(replace(said, seconds_since_write=COSMETIC_SECONDS / 2)).changed
    assert decide(replace(said, seconds_since_write=COSMETIC_SECONDS)).changed


@pytest.mark.parametrize("nonsense", [None, "", 7, ["x"], {"reason": "x"}])
def test_other_values_say_nothing(nonsense: Any) -> None:
    assert "networkFallback" not in progress_after({"networkFallback": nonsense})
