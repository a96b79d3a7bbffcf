"""Find the rank that blocks all others, from what each rank is doing. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmtrain_core.api.env import EXIT_HUNG
from llmtrain_core.api.failure_info import FailureInfo
from llmtrain_trainer.runtime.reports import RankDump

_MOST_SHOWN = 4
"""Stack frames, and kinds of collectives."""


def find_culprit(dumps: Sequence[RankDump], missing: Sequence[int], seconds: float) -> FailureInfo:
    """Return the cause of a hang, with the rank that blocks the others if one stands out.

    That is a rank that cannot respond (stopped, or in a call that does not return), else one that
    does something else while the others wait in a collective. If all ranks wait for each other, no
    rank is named: either the network lost a message, or the ranks disagree on the next collective.
    `missing` are the ranks without a dump.
    """
    ordered = sorted(dumps, key=lambda dump: dump.rank)
    unresponsive = [dump for dump in ordered if dump.state != "responsive"]
    busy = [dump for dump in ordered if dump.state == "responsive" and not dump.waiting]
    waiting = [dump for dump in ordered if dump.waiting]
    culprit: RankDump | None = None
    if unresponsive:
        culprit = unresponsive[0]
    elif busy and waiting:
        culprit = min(busy, key=lambda dump: (dump.step, dump.rank))
    others = _summary(waiting)
    if culprit is not None:
        text = f"rank {culprit.rank} {_condition(culprit)} for {seconds:.0f} s"
        frames = " < ".join(culprit.stack[:_MOST_SHOWN])
        text += f", in {frames}" if frames else ""
        text += f"; {others}" if others else ""
    elif missing:
        text = f"no step for {seconds:.0f} s, and rank {missing[0]} sent no stack; {others}"
    else:
        text = f"no step for {seconds:.0f} s, and no single rank blocks the others; {others}"
    rank = culprit.rank if culprit else None
    return FailureInfo("RankHung", text, exit_code=EXIT_HUNG, rank=rank)


def _condition(dump: RankDump) -> str:
    if dump.state == "stopped":
        return f"is stopped by a signal and has not moved past step {dump.step}"
    if dump.state == "unresponsive":
        return f"does not respond and has not moved past step {dump.step}"
    return f"has not moved past step {dump.step} and waits for no other rank"


def _summary(waiting: Sequence[RankDump]) -> str:
    """List what the waiting ranks wait for, most frequent first, from their flight recorders."""
    kinds: dict[str, list[int]] = {}
    for dump in waiting:
        operations = ", ".join(dump.operations[:2]) or "a transfer"
        kinds.setdefault(operations, []).append(dump.rank)
    counted = Counter({operation: len(ranks) for operation, ranks in kinds.items()})
    parts = []
    for operation, count in counted.most_common(_MOST_SHOWN):
        ranks = ", ".join(map(str, kinds[operation][:8])) + (" ..." if count > 8 else "")
        parts.append(f"{operation} (rank {ranks})")
    return "waiting: " + "; ".join(parts) if parts else ""
