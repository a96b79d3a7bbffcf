"""`status.placement`: a bounded form of a placement, complete enough to continue from."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from llmtrain_core.api import labels
from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import MAX_RESOURCES, REASON_LENGTH
from llmtrain_core.api.status.job import LevelUse, PlacedBlock, PlacementStatus
from llmtrain_core.layout import Layout
from llmtrain_core.placement import Placement
from llmtrain_core.placement.place import describe
from llmtrain_core.placement.tree import Path
from llmtrain_core.queueing import Assignment
from llmtrain_core.topology.inventory import Snapshot
from llmtrain_core.topology.levels import FabricLevel

_MAX_SPARES_NAMED = 4
_SPARES = re.compile(r"; spares?: [^;]*")
_SPARES_SHOWN = re.compile(r" · (\d+ spare|spares: \d+ of \d+)$")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
"""The name part of a label key, and a value that is not empty: at most 63 characters."""


_FIXED = ("priority", "priorityClassName", "deadline", "resources")
"""What a job keeps while it has its nodes, whatever its spec becomes."""


def placement_status(assignment: Assignment) -> PlacementStatus:
    """Return the status of the placement that the scheduler assigned."""
    placement = assignment.placement
    spares = [tuple(node.path.values()) for node in placement.spares]
    found = _status(
        placement, spares, assignment.attempt, assignment.gpus_per_node, assignment.note
    )
    resources = dict(assignment.resources)
    known = resources if len(resources) <= MAX_RESOURCES else None
    return found.model_copy(update={"resources": known})


def fixed_terms(placement: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a stored placement that hold as long as the job has its nodes."""
    return {key: placement[key] for key in _FIXED if key in placement}


def _status(
    placement: Placement, spares: Sequence[Path], attempt: int, gpus_per_node: int, note: str = ""
) -> PlacementStatus:
    """Return the status. `spares` are the paths of the spare nodes, nearest first."""
    names = [path[-1] for path in spares]
    more = len(names) - _MAX_SPARES_NAMED
    named = ", ".join(names[:_MAX_SPARES_NAMED]) + (f" and {more} more" if more > 0 else "")
    held = f"; spare: {named}" if names else ""
    return PlacementStatus(
        attempt=attempt,
        gpus_per_node=gpus_per_node,
        blocks=_blocks(tuple(node.path.values()) for node in placement.nodes),
        levels=[
            LevelUse(
                level=level,
                domains=count,
                crossings=dict(placement.crossings.get(level, {})) or None,
            )
            for level, count in placement.domains.items()
        ],
        spares=_blocks(spares) or None,
        explanation=clean_text(placement.explanation + held + note),
    )


def summary(placement: PlacementStatus) -> str:
    """Return the text of the PLACEMENT column."""
    count = sum(len(block.nodes) for block in placement.blocks)
    parts = [f"{count} node" + ("" if count == 1 else "s")]
    parts += [f"{use.domains} {use.level}" for use in reversed(placement.levels[:-1])]
    spare = sum(len(block.nodes) for block in placement.spares or ())
    parts += [f"{spare} spare"] if spare else []
    return clean_text(" · ".join(parts), REASON_LENGTH)


def paths_of(blocks: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Return the paths of nodes, far to near, from the blocks of a stored placement."""
    return [
        (*(block["path"].split("/") if block["path"] else ()), node)
        for block in blocks
        for node in block["nodes"]
    ]


def level_labels(placement: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return labels for each pod of a stored placement: the domain of its node at each level.

    The node itself is no level here. A node without the label of a level gets no label for it, nor
    does a level whose name is too long for the key of a label.
    """
    names = [use["level"] for use in placement["levels"][:-1]]
    return [
        {
            f"{labels.LEVEL_PREFIX}{name}": domain
            for name, domain in zip(names, path, strict=False)
            if _LABEL_NAME.fullmatch(f"level-{name}") and _LABEL_NAME.fullmatch(domain)
        }
        for path in paths_of(placement["blocks"])
    ]


def with_replacements(
    placement: Mapping[str, Any], replacements: Mapping[str, str], layout: Layout, attempt: int
) -> PlacementStatus:
    """Return a stored placement with failed nodes replaced by spare ones.

    `replacements` maps the name of each failed node to that of its spare.
    """
    spares = {path[-1]: path for path in paths_of(placement.get("spares") or ())}
    paths = [
        spares[replacements[path[-1]]] if path[-1] in replacements else path
        for path in paths_of(placement["blocks"])
    ]
    levels = tuple(FabricLevel(use["level"], "") for use in placement["levels"])
    gpus = int(placement["gpusPerNode"])
    described = describe(layout, gpus, Snapshot(levels, ()), paths)
    used = replacements.values()
    left = [path for name, path in spares.items() if name not in used]
    return _status(described, left, attempt, gpus)


def with_shortage(placement: PlacementStatus, wanted: int) -> tuple[dict[str, Any], str]:
    """Return a placement and its summary, which say so if it has fewer spares than wanted."""
    found, text = placement.to_wire(), summary(placement)
    count = sum(len(block.nodes) for block in placement.spares or ())
    return without_spares(found, text, (), wanted) if count < wanted else (found, text)


def without_spares(
    placement: Mapping[str, Any], text: str, taken: Collection[str], wanted: int
) -> tuple[dict[str, Any], str]:
    """Return a stored placement and its summary without spare nodes that other jobs have got."""
    left = [path for path in paths_of(placement.get("spares") or ()) if path[-1] not in taken]
    shown = f"spares: {len(left)} of {wanted}"
    rest = {key: value for key, value in placement.items() if key != "spares"}
    if left:
        rest["spares"] = [block.to_wire() for block in _blocks(left)]
    explanation = _SPARES.sub("", str(placement.get("explanation", "")))
    rest["explanation"] = clean_text(f"{explanation}; {shown}")
    return rest, clean_text(f"{_SPARES_SHOWN.sub('', text)} · {shown}", REASON_LENGTH)


def _blocks(paths: Iterable[Path]) -> list[PlacedBlock]:
    return [
        PlacedBlock(path="/".join(domain), nodes=[path[-1] for path in members])
        for domain, members in groupby(paths, key=lambda path: path[:-1])
    ]
