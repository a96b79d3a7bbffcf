"""Which failures the Xids of a pod's GPUs explain, and for how long."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_core.node_health.xid import Xid
from llmtrain_trainer.launcher.gpu_errors import RECENT_SECONDS, XidLog, explained
from llmtrain_trainer.metrics.kernel_log import KernelLog, open_kernel_log

pytestmark = pytest.mark.unit

CUDA = FailureInfo("Exception", "CUDA error: unspecified launch failure", exit_code=1, rank=3)
LOST = FailureInfo("PeerLost", "a peer is gone", exit_code=200, rank=0)
INPUT = FailureInfo("CorpusMissing", "no such file", exit_code=2, rank=0)
STOPPED = FailureInfo("Terminated", "the pod received a stop signal", exit_code=143)


def test_a_gpu_that_cannot_be_used_is_the_cause() -> None:
    found = explained(CUDA, [Xid(79), Xid(31), Xid(31, "other text")])
    assert (found.reason, found.exit_code, found.rank) == ("GpuError", 202, 3)
    assert found.xids == (79, 31) and not found.keeps_nodes and found.retryable
    assert found.message == (
        "Xid 79 (replace the node), Xid 31 (restart the job); Exception: CUDA error: unspecified"
        " launch failure"
    )
    assert explained(found, [Xid(79)]) is found, "it is not explained again"
    error = json.loads(found.to_termination_message())["error"]
    assert error["xids"] == [79, 31]


@pytest.mark.parametrize(
    ("failure", "codes", "reason", "keeps"),
    [
        (CUDA, (31,), "GpuError", True),
        (CUDA, (43, 45), "Exception", True),
        (CUDA, (), "Exception", True),
        (LOST, (31,), "PeerLost", True),
        (LOST, (119,), "GpuError", False),
        (INPUT, (79,), "CorpusMissing", True),
        (STOPPED, (79,), "Terminated", True),
    ],
)
def test_what_xids_explain(
    failure: FailureInfo, codes: Sequence[int], reason: str, keeps: bool
) -> None:
    found = explained(failure, [Xid(code) for code in codes])
    assert (found.reason, found.keeps_nodes) == (reason, keeps)
    assert (found is failure) == (reason == failure.reason)


def test_an_xid_that_needs_a_restart_explains_failures_for_a_minute_only() -> None:
    now, reports = 100.0, [[Xid(31), Xid(43)], [], [Xid(79)], []]
    log = XidLog([lambda: reports.pop(0) if reports else []], lambda: now)
    log.poll()
    assert [xid.code for xid in log.current()] == [31]
    now += RECENT_SECONDS + 1
    assert [xid.code for xid in log.current()] == [79]
    now += 100_000.0
    assert [xid.code for xid in log.current()] == [79], "the GPU stays unusable"


def test_a_source_that_fails_hides_no_other_one() -> None:
    def broken() -> list[Xid]:
        raise RuntimeError("no driver")

    assert [xid.code for xid in XidLog([broken, lambda: [Xid(48)]]).current()] == [48]


def test_the_kernel_log_is_read_from_now_on(tmp_path: Path) -> None:
    """A pipe, as /dev/kmsg, ends a read where there is no record yet."""
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    keeper = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    log = KernelLog(path)
    assert log.read() == []
    os.write(keeper, b"4,1,2,-;NVRM: Xid (PCI:0000:b3:00): 79, GPU has fallen off \xff\n")
    assert [xid.code for xid in log.read()] == [79] and log.read() == []
    os.close(keeper)
    assert open_kernel_log(tmp_path / "none") == []


def test_a_log_that_was_written_before_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("NVRM: Xid (PCI:0): 79, before\n")
    [read] = open_kernel_log(path)
    with path.open("a") as file:
        file.write("NVRM: Xid (PCI:0): 48, after\n")
    assert [xid.code for xid in read()] == [48]


def test_the_number_of_codes_in_a_message_is_bounded() -> None:
    found = explained(CUDA, [replace(Xid(79), text=str(index)) for index in range(99)])
    assert found.xids == (79,) and found.message.count("Xid 79") == 1
    assert len(explained(CUDA, [Xid(code) for code in range(96, 106)]).xids) == 8
