"""Text output of `llmtrain layout`."""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain_core.layout import GroupKind, Layout

_SHOWN = 8


def layout_text(layout: Layout, groups: Mapping[GroupKind, list[list[int]]]) -> str:
    """Format the groups of each kind that has more than one rank per group."""
    lines = [f"{layout}: {layout.world_size} ranks"]
    for kind, members in groups.items():
        if len(members[0]) == 1:
            continue
        lines.append(f"{kind}: {len(members)} groups of {len(members[0])}")
        lines += [f"  {' '.join(map(str, group))}" for group in members[:_SHOWN]]
        if len(members) > _SHOWN:
            lines.append(f"  ... {len(members) - _SHOWN} more (-o json prints all)")
    return "\n".join(lines)
