"""Policy: a job whose nodes' topology labels change under it keeps its place, and says so.

The placement stays as it was written: ranks do not move because a label does. It counts as degraded
only where nodes that shared a domain no longer do; another name for the same domain harms nobody.
"""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.placement.tree import Path
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_operator.cache.placement_status import paths_of
from llmtrain_operator.job_state.status_draft import StatusDraft

MAX_NODES_SHOWN = 4
"""Nodes that the message names."""


def detect_topology_change(draft: StatusDraft) -> bool:
    """Compare the domains of the placement with what the nodes' labels say now."""
    placement, levels = draft.placement, draft.observed.levels
    if placement is None:
        if draft.is_true(ConditionType.NETWORK_DEGRADED):
            draft.set_condition(
                ConditionType.NETWORK_DEGRADED, False, Reason.NOT_PLACED, "the job has no place"
            )
        return False
    names = [use["level"] for use in placement["levels"]]
    if names != [level.name for level in levels]:
        return False  # another map: nothing on it can be compared
    view, nodes = Snapshot(levels, ()), draft.observed.nodes
    pairs = [
        (path, view.path(nodes[path[-1]].node))
        for path in paths_of(placement["blocks"])
        if path[-1] in nodes
    ]
    split = _split_domain(names, pairs)
    if split is not None:
        draft.set_condition(ConditionType.NETWORK_DEGRADED, True, Reason.TOPOLOGY_CHANGED, split)
    elif draft.is_true(ConditionType.NETWORK_DEGRADED):
        why = "the nodes share the domains that the placement rests on"
        draft.set_condition(ConditionType.NETWORK_DEGRADED, False, Reason.TOPOLOGY_AS_PLACED, why)
    return False


def _split_domain(names: list[str], pairs: list[tuple[Path, Path]]) -> str | None:
    """Say which nodes left which domain of the placement, by the farthest level; None: none did."""
    for depth, level in enumerate(names[:-1], 1):
        homes: dict[Path, dict[Path, list[str]]] = {}
        for old, new in pairs:
            homes.setdefault(old[:depth], {}).setdefault(new[:depth], []).append(old[-1])
        for old_domain, now in homes.items():
            if len(now) > 1:
                most = max(now.values(), key=len)
                return _message(level, old_domain, {d: n for d, n in now.items() if n is not most})
    return None


def _message(level: str, old: Path, left: dict[Path, list[str]]) -> str:
    moved = [f"{node} in {domain[-1]}" for domain, nodes in left.items() for node in nodes]
    more = f" and {len(moved) - MAX_NODES_SHOWN} more" if len(moved) > MAX_NODES_SHOWN else ""
    return (
        f"nodes that shared {level} {old[-1]} when the job was placed no longer share it by their"
        f" labels: {', '.join(moved[:MAX_NODES_SHOWN])}{more}; the job keeps its nodes, and more of"
        " its traffic may cross the network; correct the labels, or suspend and resume the job to"
        " place it again"
    )
