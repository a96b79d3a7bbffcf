"""Xids: errors that the NVIDIA driver reports of a GPU, and what helps against each.

The table follows the immediate resolution of NVIDIA's catalog ("Analyzing Xid Errors with the Xid
Catalog", as of October 2025). Where the catalog names a workflow: 48 (double-bit ECC error) and 74
(NVLink error) need a reset of the GPU by the "GPU Debug Guidelines". 45 only follows another Xid.
The codes 144 to 150 (NVLink 5) are fatal for some of their details only, and a fatal one comes with
an Xid 48, so they alone are not held against the GPU. A code that is not in the table says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

RECOVERY_ACTION_CHANGED = 154
FALLEN_OFF = 79
"""The GPU has fallen off the bus: what NVML means by a lost GPU."""


class XidAction(StrEnum):
    """What helps against an Xid, the least severe first."""

    IGNORE = "ignore"
    """Nothing is needed, or the code is not known."""
    RESTART_JOB = "restart the job"
    """The fault was contained in the application, or was its own."""
    RESET_GPU = "reset the GPU"
    """The GPU cannot be used before a reset, which jobs cannot do."""
    REPLACE_NODE = "replace the node"
    """The machine must be restarted, repaired or replaced."""

    @property
    def is_severe(self) -> bool:
        """Whether another attempt on the same node would fail, too."""
        return self in (XidAction.RESET_GPU, XidAction.REPLACE_NODE)

    @property
    def severity(self) -> int:
        """The place of this action among all, from 0."""
        return _ORDER.index(self)


_ORDER = tuple(XidAction)


def _codes(text: str) -> frozenset[int]:
    """Return the codes of a list of codes and ranges: `8, 39-41`."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


_BY_ACTION = {
    XidAction.IGNORE: _codes(
        "37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 107, 108, 121, 137, 141, 152, 153, 157, 160,"
        " 161"
    ),
    XidAction.RESTART_JOB: _codes(
        "8, 11, 13, 25, 31, 32, 39-41, 60, 68-72, 75-77, 80, 82-86, 88, 89, 94, 96-105, 126-135,"
        " 139, 144-150"
    ),
    XidAction.RESET_GPU: _codes(
        "46, 48, 62, 64, 74, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158"
    ),
    XidAction.REPLACE_NODE: _codes("54, 79, 142, 151"),
}
ACTIONS = {code: action for action, codes in _BY_ACTION.items() for code in codes}
"""What helps, by code."""
_RECOVERY = (
    ("reboot", XidAction.REPLACE_NODE),
    ("reset", XidAction.RESET_GPU),
    ("drain", XidAction.RESET_GPU),
)
"""What an Xid 154 says after `to`, by a word of its text."""


@dataclass(frozen=True, slots=True)
class Xid:
    """One report of the driver."""

    code: int
    text: str = ""
    """What the kernel log says after the code; NVML gives none."""

    @property
    def action(self) -> XidAction:
        """What helps."""
        if self.code == RECOVERY_ACTION_CHANGED:
            after = self.text.lower().rpartition(" to ")[2]
            return next((action for word, action in _RECOVERY if word in after), XidAction.IGNORE)
        return ACTIONS.get(self.code, XidAction.IGNORE)


def worst_action(actions: Iterable[XidAction]) -> XidAction:
    """Return the most severe action; `IGNORE` without any."""
    return max(actions, key=lambda action: action.severity, default=XidAction.IGNORE)


def action_of_codes(codes: Iterable[int]) -> XidAction:
    """Return the most severe action of the codes that a termination message carries."""
    return worst_action(ACTIONS.get(code, XidAction.IGNORE) for code in codes)


_LINE = re.compile(r"NVRM: Xid \([^)\n]{1,64}\): ([0-9]{1,4})(?:, ?([^\n]{0,400}))?")


def read_kernel_log(text: str) -> list[Xid]:
    """Return the Xids in lines of the kernel log, in their order.

    A line is `NVRM: Xid (PCI:0000:b3:00): 79, pid=..., GPU has fallen off the bus.`
    """
    return [Xid(int(found[1]), found[2] or "") for found in _LINE.finditer(text)]
