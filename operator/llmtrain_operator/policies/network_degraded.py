"""Policy: the condition NetworkDegraded, from changed topology labels and from slow links.

The job keeps its placement. A change of labels counts only if nodes that shared a domain no longer
do; a renamed domain has no effect. A slow link is one that the jobs of the namespace show
(`progress/link_monitor.py`). If both hold, the labels are the reason, and the message has both.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain_core.api.conditions import ConditionType, Reason
from llmtrain_core.network.links import LinkPath
from llmtrain_core.network.slow_links import MAX_ALIKE, Claim
from llmtrain_core.placement.tree import Path
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_operator.cache.placement_status import paths_of
from llmtrain_operator.job_state.status_draft import StatusDraft

MAX_NODES_SHOWN = 4
"""Number of nodes that the message names."""
_SLOW_LINKS = (Reason.CONGESTED_UPLINK, Reason.SLOW_NODE)


def set_network_degraded(draft: StatusDraft) -> bool:
    """Set the condition to what the labels of the nodes and the transfers show now."""
    placement = draft.placement
    if placement is None:
        _clear(draft, Reason.NOT_PLACED, "the job is not placed")
        return False
    names = [use["level"] for use in placement["levels"]]
    comparable = names == [level.name for level in draft.observed.levels]
    if not comparable and _shown(draft, Reason.TOPOLOGY_CHANGED):
        return False  # The Fabric has other levels now, so the paths cannot be compared.
    split = _split_domain(draft, names) if comparable else None
    found = [each for each in (split, _slow_link(draft, names)) if each is not None]
    if found:
        message = "; ".join(text for _, text in found)
        draft.set_condition(ConditionType.NETWORK_DEGRADED, True, found[0][0], message)
    elif _shown(draft, *_SLOW_LINKS):
        text = "no transfer of the job is known to be slower than usual"
        _clear(draft, Reason.TRANSFERS_AS_USUAL, text)
    else:
        text = "the nodes share the same domains as when the job was placed"
        _clear(draft, Reason.TOPOLOGY_AS_PLACED, text)
    return False


def _clear(draft: StatusDraft, reason: Reason, message: str) -> None:
    if draft.is_true(ConditionType.NETWORK_DEGRADED):
        draft.set_condition(ConditionType.NETWORK_DEGRADED, False, reason, message)


def _shown(draft: StatusDraft, *reasons: Reason) -> tuple[str, str] | None:
    """Return the reason and the message of the condition while it is true for such a reason."""
    found = draft.view.condition(ConditionType.NETWORK_DEGRADED)
    if found is None or found["status"] != "True" or found["reason"] not in reasons:
        return None
    return found["reason"], found["message"]


def _split_domain(draft: StatusDraft, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the reason and the message if nodes have left a domain of the placement."""
    placement, levels, nodes = draft.placement, draft.observed.levels, draft.observed.nodes
    assert placement is not None
    snapshot = Snapshot(levels, ())
    pairs = [
        (path, snapshot.path(nodes[path[-1]].node))
        for path in paths_of(placement["blocks"])
        if path[-1] in nodes
    ]
    message = _split_domain_message(names, pairs)
    return None if message is None else (Reason.TOPOLOGY_CHANGED, message)


def _slow_link(draft: StatusDraft, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the reason and the message if a link of the job is slow.

    A process that has just started to lead knows no links: what another one has found stays.
    """
    links = draft.observed.links
    if links.claim is None:
        return None if links.known else _shown(draft, *_SLOW_LINKS)
    found = links.claim.found.links
    nodes_only = all(len(link) >= len(names) for link in found)
    reason = Reason.SLOW_NODE if nodes_only else Reason.CONGESTED_UPLINK
    return reason, _slow_link_message(names, links.claim)


def _slow_link_message(names: Sequence[str], claim: Claim) -> str:
    found = claim.found
    shown = [_link_name(names, link) for link in found.links[:MAX_ALIKE]]
    more = len(found.links) - len(shown)
    slow, all_groups = len(found.slow_groups), len(found.slow_groups) + len(found.other_groups)
    which = " or ".join(shown) + (f" or one of {more} others" if more else "")
    alike = ", which the same groups cross," if len(found.links) > 1 else ""
    later = "later placements of this namespace avoid it" if not more else "no placement changes"
    return (
        f"transfers over {which}{alike} take {found.factor:.1f} times as long as usual:"
        f" {slow} of {all_groups} groups there are slower (confidence {found.confidence:.0%});"
        f" the job keeps its nodes, and {later}"
    )


def _link_name(names: Sequence[str], link: LinkPath) -> str:
    depth = min(len(link), len(names))
    uplink = "the uplink of " if depth < len(names) else ""
    return f"{uplink}{names[depth - 1]} {link[depth - 1]}"


def _split_domain_message(names: Sequence[str], pairs: list[tuple[Path, Path]]) -> str | None:
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
