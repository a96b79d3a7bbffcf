"""Status of the network of an `LLMTrainingJob`: what its pods get, and who set it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtrain_core.api.base import ApiModel
from llmtrain_core.api.defaults import (
    MAX_NETWORK_NOTES,
    MAX_NETWORK_SETTINGS,
    MESSAGE_LENGTH,
    REASON_LENGTH,
)


class NetworkSetting(ApiModel):
    """A value of the pods."""

    kind: Literal["Resource", "Variable", "Annotation", "Toleration"]
    """What the value sets."""
    name: Annotated[str, Field(min_length=1, max_length=317)]
    """Name of the resource, variable, annotation, or taint."""
    value: Annotated[str, Field(max_length=32768)]
    """Value. Those that the job sets are shortened to 256 characters here."""
    set_by: Annotated[str, Field(max_length=REASON_LENGTH)]
    """Row of the table of networks, or field of the job."""
    source: Annotated[str, Field(max_length=256)]
    """Document that the value is taken from; "the job" for values of the job."""


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
