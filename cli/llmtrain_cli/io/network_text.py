"""The network of a gang, as JSON and as text of 80 columns.

The operator does not apply it yet, so that it does not change the placement that is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from llmtrain_cli.io.output import bullets
from llmtrain_core.api.conditions import clean_text
from llmtrain_core.placement import Request


def network_to_wire(request: Request) -> dict[str, Any] | None:
    """Return the network that a gang has on its nodes; None if no node has one that it can use."""
    chosen = request.network and request.network.network
    return {**chosen.to_wire(), "applied": False} if chosen else None


def network_findings(request: Request) -> Iterator[str]:
    """Yield why nodes have no network that the job can use, if that is true of all."""
    if request.network is not None and request.network.network is None:
        for cause, count in sorted(Counter(request.network.excluded.values()).items()):
            yield f"spec.network.profile: {count} node{'' if count == 1 else 's'}: {cause}"


def network_lines(wire: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the row, the fact that matched, and every value with who set it."""
    if wire is None:
        return
    yield f"NETWORK  {wire['row']}: {clean_text(wire['fact'])}"
    yield from bullets(["by the facts of the nodes; the operator does not apply it yet"])
    for item in wire["settings"]:
        value = f"{item['name']}={item['value']}"
        yield from bullets([clean_text(f"{item['kind']} {value}, set by {item['setBy']}")])
    if wire["topologyPreset"]:
        yield from bullets([f"topology preset {wire['topologyPreset']}"])
    yield from bullets([clean_text(note) for note in wire["notes"]])
