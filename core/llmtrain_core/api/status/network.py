"""Status of the network of an `LLMTrainingJob`: what its pods get, and who set it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel
from llmtrain_core.api.defaults import (
    MAX_NCCL_DEVICES,
    MAX_NETWORK_NOTES,
    MAX_NETWORK_SETTINGS,
    MESSAGE_LENGTH,
    NCCL_TEXT_LENGTH,
    REASON_LENGTH,
)

_NcclText = Annotated[str, Field(min_length=1, max_length=NCCL_TEXT_LENGTH)]


class NetworkSetting(ApiModel):
    """A value of the pods."""

    kind: Literal[
        "Resource", "Variable", "Annotation", "Toleration", "Sidecar", "HostPath", "Security"
    ]
    """What the value sets."""
    name: Annotated[str, Field(min_length=1, max_length=317)]
    """Name of the resource, variable, annotation, taint or container, or path of the node."""
    value: Annotated[str, Field(max_length=32768)]
    """Value. Those that the job sets are shortened to 256 characters here."""
    set_by: Annotated[str, Field(max_length=REASON_LENGTH)]
    """Row of the table of networks, or field of the job."""
    source: Annotated[str, Field(max_length=256)]
    """Document that the value is taken from; "the job" for values of the job."""


class NcclNetwork(ApiModel):
    """What NCCL says it uses, from the log of rank 0."""

    version: _NcclText | None = None
    """Version of NCCL or RCCL."""
    network: _NcclText
    """Name that NCCL, or its plugin, gives the network: IB, Socket, Libfabric."""
    devices: Annotated[list[_NcclText], Field(max_length=MAX_NCCL_DEVICES)] | None = None
    """Devices of rank 0 for this network: NICs with port and link layer, or interfaces."""
    provider: _NcclText | None = None
    """Provider of Libfabric, for example efa."""


class NetworkStatus(ApiModel):
    """Network of the pods on the nodes of the placement."""

    row: Annotated[str, Field(max_length=REASON_LENGTH)]
    """Row of the table of networks that applies to all nodes. tcp: no other network."""
    fact: Annotated[str, Field(max_length=MESSAGE_LENGTH)]
    """Label or resource of the nodes that matched."""
    topology_preset: Annotated[str, Field(max_length=REASON_LENGTH)] | None = None
    """Topology preset of the environment, if the nodes have its labels."""
    settings: Annotated[list[NetworkSetting], Field(max_length=MAX_NETWORK_SETTINGS)]
    """Values of the pods, those of the table first."""
    notes: (
        Annotated[
            list[Annotated[str, Field(max_length=MESSAGE_LENGTH)]],
            Field(max_length=MAX_NETWORK_NOTES),
        ]
        | None
    ) = None
    """Networks of the nodes that the job does not use, with the reason."""
    nccl: NcclNetwork | None = None
    """What NCCL says it uses, after the first step. Absent if the user has set the log of NCCL."""


def read_nccl_network(value: Any) -> NcclNetwork | None:
    """Return what a trainer says that NCCL uses; None if it is not valid."""
    found = NcclNetwork.from_untrusted(value)
    if found is None:
        return None
    texts = (found.network, found.version or "", found.provider or "", *(found.devices or ()))
    return found if all(map(str.isprintable, texts)) else None
