"""Policy: a spare node replaces a failed one.

The spare that is nearest to the failed node gets its ranks. The rank order stays the same, and so
does the traffic between domains if the spare is in the same domain. The new placement and the new
attempt are written together, so no waiting job can take the nodes in between.
"""

from __future__ import annotations

from collections.abc import Collection

from llmtrain_operator.cache.placement_status import (
    fixed_terms,
    paths_of,
    with_replacements,
    with_shortage,
    without_spares,
)
from llmtrain_operator.job_state.status_draft import StatusDraft


def give_up_taken_spares(draft: StatusDraft) -> bool:
    """Remove the spare nodes that other jobs have got. The job goes on with fewer of them."""
    taken = draft.observed.taken_spares & set(draft.view.spare_nodes)
    if draft.placement is not None and taken:
        text = str(draft.status.get("placementSummary", ""))
        found = without_spares(draft.placement, text, taken, draft.view.wanted_spares)
        draft.set_field("placement", found[0])
        draft.set_field("placementSummary", found[1])
    return False


def find_replacements(draft: StatusDraft, failed: Collection[str]) -> dict[str, str]:
    """Return a spare for each failed node; empty if there are too few where a pod can start."""
    placement = draft.placement or {}
    spares = [
        path
        for path in paths_of(placement.get("spares") or ())
        if not draft.observed.obstacles(path[-1])
    ]
    chosen: dict[str, str] = {}
    for path in paths_of(placement.get("blocks", ())):
        if path[-1] not in failed:
            continue
        if not spares:
            return {}
        nearest = max(spares, key=lambda spare: _shared_domains(spare, path))  # first of equals
        spares.remove(nearest)
        chosen[path[-1]] = nearest[-1]
    return chosen


def replace_nodes(draft: StatusDraft, replacements: dict[str, str]) -> None:
    """Start the next attempt with the failed nodes replaced."""
    placement = draft.placement
    assert placement is not None
    draft.set_field("attempt", draft.attempt + 1)
    found = with_replacements(placement, replacements, draft.job.layout, draft.attempt)
    placed, text = with_shortage(found, draft.view.wanted_spares)
    draft.set_field("placement", {**placed, **fixed_terms(placement)})
    draft.set_field("placementSummary", text)
    draft.set_field("attemptStartTime", draft.now)


def _shared_domains(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return the number of domains that two nodes share, from far to near."""
    count = 0
    for a, b in zip(one, other, strict=True):
        if a != b:
            break
        count += 1
    return count
