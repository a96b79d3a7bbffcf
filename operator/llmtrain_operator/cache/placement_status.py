"""A placement as the status holds it: compressed, bounded, and enough to go on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import REASON_LENGTH
from llmtrain_core.api.status import LevelUse, PlacedBlock, PlacementStatus
from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement
from llmtrain_core.placement.place import describe
from llmtrain_core.placement.tree import Path
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.topology.levels import FabricLevel

_SPARES_SHOWN = 4


def stored(
    answer: Placement, spares: Sequence[Path], attempt: int, gpus_per_node: int, note: str = ""
) -> PlacementStatus:
    """Write a placement down; `spares` are the paths of its spare nodes, nearest first."""
    names = [path[-1] for path in spares]
    more = f" and {len(names) - _SPARES_SHOWN} more" if len(names) > _SPARES_SHOWN else ""
    held = f"; spare: {', '.join(names[:_SPARES_SHOWN])}{more}" if names else ""
    return PlacementStatus(
        attempt=attempt,
        gpus_per_node=gpus_per_node,
        blocks=_blocks(tuple(node.path.values()) for node in answer.nodes),
        levels=[
            LevelUse(
                level=level,
                domains=count,
                crossings=dict(answer.crossings.get(level, {})) or None,
            )
            for level, count in answer.domains.items()
        ],
        spares=_blocks(spares) or None,
        explanation=clean_text(answer.explanation + held + note),
    )


def summary(found: PlacementStatus) -> str:
    """Return the text of the PLACEMENT column."""
    count = sum(len(block.nodes) for block in found.blocks)
    parts = [f"{count} node" + ("" if count == 1 else "s")]
    parts += [f"{use.domains} {use.level}" for use in reversed(found.levels[:-1])]
    spare = sum(len(block.nodes) for block in found.spares or ())
    parts += [f"{spare} spare"] if spare else []
    return clean_text(" · ".join(parts), REASON_LENGTH)


def paths_of(blocks: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Return the paths of nodes, far to near, from the blocks of a stored placement."""
    return [
        (*(block["path"].split("/") if block["path"] else ()), node)
        for block in blocks
        for node in block["nodes"]
    ]


def with_stand_ins(
    placement: Mapping[str, Any], find_replacements: Mapping[str, str], layout: Layout, attempt: int
) -> PlacementStatus:
    """Return a stored placement in which spare nodes have the places of others, by name."""
    near = {path[-1]: path for path in paths_of(placement.get("spares") or ())}
    paths = [
        near[find_replacements.get(p[-1], "")] if p[-1] in find_replacements else p
        for p in paths_of(placement["blocks"])
    ]
    levels = tuple(FabricLevel(use["level"], "") for use in placement["levels"])
    gpus = int(placement["gpusPerNode"])
    answer = describe(layout, gpus, Snapshot(levels, ()), paths)
    left = [path for name, path in near.items() if name not in find_replacements.values()]
    return stored(answer, left, attempt, gpus)


def _blocks(paths: Iterable[Path]) -> list[PlacedBlock]:
    return [
        PlacedBlock(path="/".join(domain), nodes=[path[-1] for path in members])
        for domain, members in groupby(paths, key=lambda path: path[:-1])
    ]
