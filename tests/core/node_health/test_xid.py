"""The table of Xids, and the lines of the kernel log."""

from __future__ import annotations

import re

import pytest

from llmtrain_core.node_health.xid import (
    ACTIONS,
    Xid,
    XidAction,
    action_of_codes,
    read_kernel_log,
    worst_action,
)
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (13, "restart the job"),
        (31, "restart the job"),
        (43, "ignore"),
        (45, "ignore"),
        (48, "reset the GPU"),
        (63, "ignore"),
        (64, "reset the GPU"),
        (74, "reset the GPU"),
        (79, "replace the node"),
        (94, "restart the job"),
        (95, "reset the GPU"),
        (109, "reset the GPU"),
        (119, "reset the GPU"),
        (144, "restart the job"),
        (154, "ignore"),  # its text says more
        (9999, "ignore"),
    ],
)
def test_what_helps(code: int, action: str) -> None:
    assert Xid(code).action == action_of_codes([code]) == action


def test_the_docs_have_the_codes_of_the_table() -> None:
    page = (ROOT / "docs" / "node-health.md").read_text().partition("## Xids")[2]
    shown: dict[int, str] = {}
    for action, codes in re.findall(r"^\| ([a-z]+(?: [a-zA-Z]+)*) \| ([0-9, -]+) \|", page, re.M):
        for part in codes.split(","):
            first, _, last = part.strip().partition("-")
            for code in range(int(first), int(last or first) + 1):
                assert code not in shown, code
                shown[code] = action
    assert shown == {code: str(action) for code, action in ACTIONS.items()}


def test_the_most_severe_action_counts() -> None:
    assert action_of_codes([45, 31]) == XidAction.RESTART_JOB
    assert action_of_codes([31, 79, 119]) == XidAction.REPLACE_NODE
    assert worst_action([]) == XidAction.IGNORE
    assert [action.is_severe for action in XidAction] == [False, False, True, True]


LOG = """\
6,1021,2041,-;nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context
4,1022,2042,-;NVRM: Xid (PCI:0000:b3:00.0): 79, pid=1234, name=python, GPU has fallen off the bus.
4,1023,2043,-;NVRM: Xid (PCI:0000:cb:00): 109, pid=1158578, name=pt_main_thread, Ch 00000008
4,1024,2044,-;NVRM: Xid (PCI:0000:cb:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)
4,1025,2045,-;NVRM: Xid (PCI:0000:b3:00): 154, GPU recovery action changed from 0x1 (GPU Reset Required) to 0x2 (Node Reboot Required)
4,1026,2046,-;NVRM: Xid (PCI:0000:b3:00): 154, GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)
4,1027,2047,-;NVRM: Xid (PCI:0000:c3:00): 45
4,1028,2048,-;NVRM: Xid is mentioned here: 79, but not reported
"""  # noqa: E501


def test_the_lines_of_the_kernel_log() -> None:
    found = read_kernel_log(LOG)
    assert [(xid.code, str(xid.action)) for xid in found] == [
        (79, "replace the node"),
        (109, "reset the GPU"),
        (154, "reset the GPU"),
        (154, "replace the node"),
        (154, "ignore"),
        (45, "ignore"),
    ]
    assert found[0].text == "pid=1234, name=python, GPU has fallen off the bus."
    [long] = read_kernel_log("NVRM: Xid (PCI:0): 79, " + "x" * 10_000)
    assert len(long.text) == 400
