"""The rows of the node health table, and what they find on a node."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CORDON_ROW = "kubernetes/cordon"


class Strength(StrEnum):
    """What follows for jobs from a row that matches a node."""

    AVOID = "avoid"
    """No pod of a job starts on the node. Jobs that run there stay."""
    LEAVE = "leave"
    """No pod starts on the node, and jobs that run there relocate, as for a drain."""
    OFF = "off"
    """Nothing: the row is switched off."""


class RowKind(StrEnum):
    """What a row looks at."""

    CONDITION = "condition"
    """The type of a condition of the node."""
    TAINT = "taint"
    """The key of a taint."""
    LABEL = "label"
    """The key of a label."""
    RESOURCE = "resource"
    """A resource of which less is allocatable than the node's capacity."""
    CORDON = "cordon"
    """Whether the node is unschedulable."""


@dataclass(frozen=True, slots=True)
class HealthRow:
    """One row of the table. `*` in `key` stands for any characters."""

    name: str
    """`family/name`, unique in the table."""
    kind: RowKind
    key: str
    strength: Strength
    status: str = "True"
    """The bad status of a condition. Families differ: some conditions are bad if True, others if
    False."""
    values: tuple[str, ...] = ()
    """Values of the label or taint that match. Empty: any value."""
    move_within: float | None = None
    """Seconds after which a job moves even without a newer checkpoint, if that is less than the
    drain timeout: the node stops soon."""
    source: str = ""
    """Where the meaning of the key is documented."""


@dataclass(frozen=True, slots=True)
class HealthFinding:
    """A row that matches a node."""

    row: str
    evidence: str
    """What matched, such as `condition GPUMissing=True`. Its length is bounded."""
    leave: bool = False
    """Whether jobs that run on the node relocate."""
    move_within: float | None = None
    since: str = ""
    """API timestamp of the last change of a condition; empty if it is not known."""
    bounded: bool = True
    """Whether the limit on excluded nodes applies. Not to a cordon, or a taint that kube-scheduler
    respects anyway."""
    in_force: bool = True
    """Whether it has an effect. Not if too many nodes have findings."""

    @property
    def text(self) -> str:
        """The row and the evidence; only `cordoned` for a cordon."""
        return self.evidence if self.row == CORDON_ROW else f"{self.row}: {self.evidence}"
