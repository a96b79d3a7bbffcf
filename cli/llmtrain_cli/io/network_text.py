"""The network of a gang, as JSON and as text of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmtrain_cli.io.output import bullets
from llmtrain_core.api.conditions import clean_text
from llmtrain_core.placement import Request


def network_to_wire(request: Request) -> dict[str, Any] | None:
    """Return the network that a gang has on its nodes; None if no node has one that it can use."""
    return request.chosen_network.to_wire() if request.chosen_network else None


def network_lines(wire: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the row, the fact that matched, and every value with who set it."""
    if wire is None:
        return
    yield f"NETWORK  {wire['row']}: {clean_text(wire['fact'])}"
    for item in wire["settings"]:
        value = f"{item['name']}={item['value']}"
        yield from bullets([clean_text(f"{item['kind']} {value}, set by {item['setBy']}")])
    if wire["topologyPreset"]:
        yield from bullets([f"topology preset {wire['topologyPreset']}"])
    yield from bullets([clean_text(note) for note in wire["notes"]])
