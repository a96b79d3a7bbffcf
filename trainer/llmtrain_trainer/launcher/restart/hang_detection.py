"""Who holds all others up, from what ranks say they are doing. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmtrain_core.api.env import EXIT_HUNG
from llmtrain_core.api.failure import FailureInfo
from llmtrain_trainer.runtime.reports import Statement

_SHOWN = 4


def accuse(statements: Sequence[Statement], absent: Sequence[int], seconds: float) -> FailureInfo:
    """Return the cause of a hang, with the rank that holds the others up where one stands out.

    That is one that cannot answer (stopped, or deep in a call that never returns), else one that
    does something else while others wait in a collective. Where all wait for each other, nobody is
    named: the network lost something, or ranks disagree on what comes next.
    """
    ordered = sorted(statements, key=lambda statement: statement.rank)
    mute = [one for one in ordered if one.state != "answers"]
    busy = [one for one in ordered if one.state == "answers" and not one.waits]
    waiting = [one for one in ordered if one.waits]
    accused: Statement | None = None
    if mute:
        accused = mute[0]
    elif busy and waiting:
        accused = min(busy, key=lambda statement: (statement.step, statement.rank))
    others = _summary(waiting)
    if accused is not None:
        text = f"rank {accused.rank} {_condition(accused)} for {seconds:.0f} s"
        where = _where(accused)
        text += f", in {where}" if where else ""
        text += f"; {others}" if others else ""
    elif absent:
        text = f"no step for {seconds:.0f} s, and rank {absent[0]} could not be asked; {others}"
    else:
        text = f"no step for {seconds:.0f} s, and no single rank holds up the others; {others}"
    rank = accused.rank if accused else None
    return FailureInfo("RankHung", text, exit_code=EXIT_HUNG, rank=rank)


def _condition(statement: Statement) -> str:
    if statement.state == "stopped":
        return f"is stopped by a signal and has not moved past step {statement.step}"
    if statement.state == "mute":
        return f"does not answer and has not moved past step {statement.step}"
    return f"has not moved past step {statement.step} and waits for nobody"


def _where(statement: Statement) -> str:
    return " < ".join(statement.stack[:_SHOWN])


def _summary(waiting: Sequence[Statement]) -> str:
    """Say what the waiting ranks wait for, most frequent first: their flight recorders' end."""
    kinds: dict[str, list[int]] = {}
    for statement in waiting:
        kinds.setdefault(", ".join(statement.operations[:2]) or "a transfer", []).append(
            statement.rank
        )
    counted = Counter({operation: len(ranks) for operation, ranks in kinds.items()})
    parts = []
    for operation, count in counted.most_common(_SHOWN):
        ranks = ", ".join(map(str, kinds[operation][:8])) + (" ..." if count > 8 else "")
        parts.append(f"{operation} (rank {ranks})")
    return "waiting: " + "; ".join(parts) if parts else ""
