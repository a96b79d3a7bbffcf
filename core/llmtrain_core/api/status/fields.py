"""Types of the fields of a status: bounded texts, times and amounts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmtrain_core.api.defaults import MESSAGE_LENGTH, REASON_LENGTH

Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
ShortText = Annotated[str, Field(max_length=REASON_LENGTH)]
NodeName = Annotated[str, Field(max_length=253)]
LongText = Annotated[str, Field(max_length=MESSAGE_LENGTH)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""Integers up to 2^53, which JSON numbers represent exactly."""
Amount = Annotated[float, Field(ge=0)]
