"""Base class and types of the models of the chart's values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from llmtrain_core.api.base import LABEL_KEY

LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
SUBDOMAIN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"


class ChartModel(BaseModel):
    """A map of values: camelCase keys, no unknown keys."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )


Manifest = dict[str, Any]
"""A part of a Kubernetes object, which the API server checks."""
Manifests = list[Manifest]
Texts = dict[str, str]
"""Labels or annotations."""
Labels = Annotated[
    dict[
        Annotated[str, Field(pattern=LABEL_KEY)],
        Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)],
    ],
    Field(json_schema_extra={"additionalProperties": False}),
]
OptionalName = Annotated[str, Field(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")]
"""A DNS label, or nothing."""
OptionalSubdomain = Annotated[str, Field(max_length=253, pattern=SUBDOMAIN)]
"""A DNS subdomain, which most names of objects are, or nothing."""
NamespaceName = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]
NamespaceList = Annotated[list[NamespaceName], Field(json_schema_extra={"uniqueItems": True})]
OptionalInterval = Annotated[str, Field(pattern=r"^([0-9]+(ms|s|m|h|d|w|y))*$")]
"""A duration of Prometheus, or nothing."""
Percentage = Annotated[str, Field(pattern="^[0-9]+%$")]
OptionalPercentage = Annotated[str, Field(pattern="^([0-9]+%)?$")]
Count = Annotated[int, Field(ge=0)]


class PullSecret(ChartModel):
    """A Secret with credentials of a registry."""

    name: Annotated[OptionalSubdomain, Field(min_length=1)]
    """Name."""


PullSecrets = list[Annotated[OptionalSubdomain, Field(min_length=1)] | PullSecret]
