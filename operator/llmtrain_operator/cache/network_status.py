"""`status.network`: a bounded form of a network, complete enough to make pods from."""

from __future__ import annotations

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import MAX_NETWORK_NOTES, MAX_NETWORK_SETTINGS
from llmtrain_core.api.status.network import NetworkSetting, NetworkStatus
from llmtrain_core.network import NodeNetwork, Setting
from llmtrain_core.network.settings import OWN_FIELDS

_OWN_LENGTH = 256


def network_status(network: NodeNetwork) -> NetworkStatus:
    """Return the status of the network that was decided with a placement."""
    table = [item for item in network.settings if item.set_by not in OWN_FIELDS]
    own = [item for item in network.settings if item.set_by in OWN_FIELDS]
    left = len(own) - (MAX_NETWORK_SETTINGS - len(table))
    notes = [clean_text(note) for note in network.notes]
    if left > 0:
        own = own[:-left]
        notes = [*notes[: MAX_NETWORK_NOTES - 1], f"{left} more values of the job are not shown"]
    return NetworkStatus(
        row=network.row,
        fact=clean_text(network.fact),
        topology_preset=network.topology,
        settings=[
            *(NetworkSetting.from_wire(item.to_wire()) for item in table),
            *(NetworkSetting.from_wire(_short(item)) for item in own),
        ],
        notes=notes[:MAX_NETWORK_NOTES] or None,
    )


def _short(item: Setting) -> dict[str, str]:
    """Return a value of the job, shortened: pods get it from the spec."""
    wire = item.to_wire()
    return {**wire, **{key: clean_text(wire[key], _OWN_LENGTH) for key in ("name", "value")}}
