"""Policy: report a change of the topology labels of nodes under a running job.

The job keeps its placement: a changed label does not move ranks. NetworkDegraded is set only if
nodes that shared a domain no longer do. A renamed domain has no effect.
"""

from __future__ import annotations

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.placement.tree import Path
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_operator.cache.placement_status import paths_of
from llmtrain_operator.job_state.status_draft import StatusDraft

MAX_NODES_SHOWN = 4
"""Number of nodes that the message names."""


def detect_topology_change(draft: StatusDraft) -> bool:
    """Compare the domains of the placement with the current labels of its nodes."""
    placement, levels = draft.placement, draft.observed.levels
    if placement is None:
        if draft.is_true(ConditionType.NETWORK_DEGRADED):
            draft.set_condition(
                ConditionType.NETWORK_DEGRADED, False, Reason.NOT_PLACED, "the job is not placed"
            )
        return False
    names = [use["level"] for use in placement["levels"]]
    if names != [level.name for level in levels]:
        return False  # The Fabric has other levels now, so the paths cannot be compared.
    snapshot, nodes = Snapshot(levels, ()), draft.observed.nodes
    pairs = [
        (path, snapshot.path(nodes[path[-1]].node))
        for path in paths_of(placement["blocks"])
        if path[-1] in nodes
    ]
    message = _split_domain_message(names, pairs)
    if message is not None:
        draft.set_condition(ConditionType.NETWORK_DEGRADED, True, Reason.TOPOLOGY_CHANGED, message)
    elif draft.is_true(ConditionType.NETWORK_DEGRADED):
        draft.set_condition(
            ConditionType.NETWORK_DEGRADED,
            False,
            Reason.TOPOLOGY_AS_PLACED,
            "the nodes share the same domains as when the job was placed",
        )
    return False


def _split_domain_message(names: list[str], pairs: list[tuple[Path, Path]]) -> str | None:
    """Return which nodes left a domain of the placement, at the farthest level; None if none."""
    for depth, level in enumerate(names[:-1], 1):
        by_domain: dict[Path, dict[Path, list[str]]] = {}
        for old, new in pairs:
            by_domain.setdefault(old[:depth], {}).setdefault(new[:depth], []).append(old[-1])
        for old_domain, now in by_domain.items():
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
