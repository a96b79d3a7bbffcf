"""Policy: a spare node takes the place of a failed one.

The node nearest to the failed one stands in for it, with the same ranks: the order of ranks stays,
and so do the groups that cross domains where the spare is in the same one. The place changes hands
in the write that starts the next attempt, so no waiting job can get in between.
"""

from __future__ import annotations

from collections.abc import Collection

from llmtrain_operator.cache.placement_status import paths_of, summary, with_stand_ins
from llmtrain_operator.job_state.status_draft import StatusDraft


def find_replacements(draft: StatusDraft, failed: Collection[str]) -> dict[str, str]:
    """Return a spare for each failed node, by name; empty where there are too few good ones."""
    placement = draft.placement or {}
    spares = [
        path for path in paths_of(placement.get("spares") or ()) if draft.is_schedulable(path[-1])
    ]
    chosen: dict[str, str] = {}
    for path in paths_of(placement.get("blocks", ())):
        if path[-1] not in failed:
            continue
        if not spares:
            return {}
        near = max(spares, key=lambda spare: _shared_domains(spare, path))  # the first of equals
        spares.remove(near)
        chosen[path[-1]] = near[-1]
    return chosen


def replace_nodes(draft: StatusDraft, chosen: dict[str, str]) -> None:
    """Start the next attempt with the spares in the places of the failed nodes."""
    placement = draft.placement
    assert placement is not None
    draft.set_field("attempt", draft.attempt + 1)
    found = with_stand_ins(placement, chosen, draft.job.layout, draft.attempt)
    draft.set_field("placement", found.to_wire())
    draft.set_field("placementSummary", summary(found))
    draft.set_field("attemptStartTime", draft.now)


def _shared_domains(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Count the domains that two nodes share, from far to near."""
    count = 0
    for mine, its in zip(one, other, strict=True):
        if mine != its:
            break
        count += 1
    return count
