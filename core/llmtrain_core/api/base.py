"""Base classes and types of the API models, for validation in Python and in the API server.

A rule over several fields is written in CEL for the API server and in Python, which is
authoritative. A `Rule` has both, with one message. The schema generator uses the CEL text,
`ApiModel` runs the Python function, and the corpus of manifests in the tests compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

GROUP = "llmtrain.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

_QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
_QUANTITY_MAXIMUM = 10**15
_DURATION = r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$"
LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"

_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_EXTENDED_RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


def invalid(message: str, field: str = "") -> PydanticCustomError:
    """Return the error of a rule; `field` is the path of the error, relative to the value."""
    return PydanticCustomError("rule", "{rule}", {"rule": message, "field": field})


def _quantity(value: Any) -> int | str:
    if isinstance(value, str) and re.fullmatch(_QUANTITY[1:-1], value, re.ASCII):
        return value
    if type(value) is int and 0 <= value <= _QUANTITY_MAXIMUM:
        return value
    raise invalid(
        f"not a quantity: use a whole number from 0 to {_QUANTITY_MAXIMUM}, or text such as 500m"
        " or 16Gi"
    )


def without_nulls(value: Any) -> Any:
    """Return the mapping without null values, which the API server drops as well."""
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item is not None}
    return value


Name = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]
"""A DNS label."""
ObjectName = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
"""A DNS subdomain: the name of a Kubernetes object."""
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=LABEL_KEY)]
ExtendedResource = Annotated[str, Field(min_length=3, max_length=317, pattern=_EXTENDED_RESOURCE)]
"""Name of an extended resource of a device plugin, such as `nvidia.com/gpu`."""
Text = Annotated[str, Field(max_length=1024)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
Duration = Annotated[str, Field(min_length=2, max_length=24, pattern=_DURATION)]
"""Duration in hours, minutes and seconds, such as `30s`, `5m` or `1h30m`."""
Quantity = Annotated[
    int | str,
    PlainValidator(_quantity),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 0,
            "maximum": _QUANTITY_MAXIMUM,
            "maxLength": 32,
            "pattern": _QUANTITY,
            "x-kubernetes-int-or-string": True,
            "x-kubernetes-validations": [
                {
                    "rule": "type(self) == int || type(self) == string",
                    "message": "not a quantity: use a whole number, or text such as 500m or 16Gi",
                }
            ],
        }
    ),
]
"""A Kubernetes quantity: `4`, `500m`, `16Gi`."""
Quantities = Annotated[dict[str, Quantity], Field(max_length=32), BeforeValidator(without_nulls)]
"""Quantities by resource name."""
Labels = Annotated[
    dict[str, Annotated[str, Field(max_length=63, pattern=_LABEL_VALUE)]],
    Field(max_length=32),
    BeforeValidator(without_nulls),
]
"""Label values by key."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A validation rule over several fields of a model.

    `cel` is the rule for the API server, `holds` the rule for Python. `field` is the path of the
    error, relative to the model (`.kvHeads`); empty for the model itself.
    """

    cel: str
    message: str
    field: str
    holds: Callable[[Any], bool]
    reason: Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"] = (
        "FieldValueInvalid"
    )

    def schema(self) -> dict[str, Any]:
        """Return the entry of `x-kubernetes-validations`."""
        path = {"fieldPath": self.field} if self.field else {}
        return {"rule": self.cel, "message": self.message, "reason": self.reason, **path}


def _schema_extras(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add rules, and the defaults of nested models, to the JSON schema of a model."""
    rules: tuple[Rule, ...] = getattr(model, "cel_rules", ())
    if rules:
        schema["x-kubernetes-validations"] = [rule.schema() for rule in rules]
    if issubclass(model, OneOf):
        fields = sum(field.is_required() for field in model.model_fields.values()) + 1
        schema |= {"minProperties": fields, "maxProperties": fields}
    for name, field in model.model_fields.items():
        if field.default_factory is not None:
            default = field.get_default(call_default_factory=True, validated_data={})
            schema["properties"][field.alias or name]["default"] = default.to_wire()


class ApiModel(BaseModel):
    """Base class of the API models: camelCase in JSON, no unknown fields, no coercion.

    A null value is treated as an absent field, as by the API server, which drops nulls of fields
    that are not nullable. An unknown field is an error even if its value is null.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra=_schema_extras,
    )

    cel_rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_absent(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {field.alias for field in cls.model_fields.values()}
        return {k: item for k, item in value.items() if item is not None or k not in known}

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        for rule in self.cel_rules:
            if not rule.holds(self):
                raise invalid(rule.message, rule.field)
        return self

    @classmethod
    def from_wire(cls, manifest: Mapping[str, Any]) -> Self:
        """Validate a part of a manifest, which has camelCase names."""
        return cls.model_validate(dict(manifest), by_alias=True, by_name=False)

    @classmethod
    def from_untrusted(cls, value: Any) -> Self | None:
        """Return what another program wrote; None if it is not valid."""
        if not isinstance(value, dict):
            return None
        try:
            return cls.from_wire(value)
        except ValidationError:
            return None

    def to_wire(self) -> dict[str, Any]:
        """Return the model in the format of a manifest: camelCase, without absent fields."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


class OneOf(ApiModel):
    """Base class of models that have exactly one of their optional fields, which have no defaults.

    The schema says so by the number of properties, which costs the API server less than a rule.
    """

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        optional = {
            name: field.alias or name
            for name, field in type(self).model_fields.items()
            if not field.is_required()
        }
        if sum(getattr(self, name) is not None for name in optional) != 1:
            *most, last = optional.values()
            raise invalid(f"set exactly one of {', '.join(most)} and {last}")
        return self


@dataclass(frozen=True, slots=True)
class UniqueList:
    """Annotation of a list without duplicates, for Python and for the API server.

    With `keys`, items are compared by these fields, and server-side apply merges items by them.
    """

    keys: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        marks: dict[str, Any] = {"x-kubernetes-list-type": "set"}
        if self.keys:
            marks = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [*self.keys]}
        return {**handler(schema), **marks}

    def _check(self, items: list[Any]) -> list[Any]:
        seen: set[Hashable] = set()
        for index, item in enumerate(items):
            identity = tuple(getattr(item, key) for key in self.keys) if self.keys else item
            if identity in seen:
                raise invalid(f"duplicate of an earlier item: {identity!r}", f"[{index}]")
            seen.add(identity)
        return items


def keys_match(field: str, wire: str, pattern: str, message: str) -> Rule:
    """Return the rule that all keys of a map match a pattern, which a schema cannot express."""
    cel = f"!has(self.{wire}) || self.{wire}.all(key, key.matches({cel_text(pattern)}))"
    return Rule(
        cel,
        message,
        f".{wire}",
        lambda self: all(
            re.fullmatch(pattern[1:-1], key, re.ASCII) for key in getattr(self, field) or ()
        ),
    )


def cel_text(text: str) -> str:
    """Return text as a CEL string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def list_map(*keys: str) -> UniqueList:
    """Return the annotation of a list whose items are identified by `keys`."""
    return UniqueList(keys)


def list_set() -> UniqueList:
    """Return the annotation of a list of scalars without duplicates."""
    return UniqueList()


def duration_seconds(text: str) -> int:
    """Return a `Duration` in seconds: `duration_seconds("1h30m") == 5400`."""
    seconds, number = 0, ""
    for char in text:
        if char.isdigit():
            number += char
        else:
            seconds += int(number) * {"h": 3600, "m": 60, "s": 1}[char]
            number = ""
    return seconds


QUANTITY_UNITS = {
    **{unit: Fraction(1, 1000**power) for power, unit in enumerate("mun", 1)},
    "": Fraction(1),
    **{unit: Fraction(1000**power) for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Fraction(1024**power) for power, unit in enumerate("KMGTPE", 1)},
}
"""Factor of each unit. A `Quantity` of a job has those from m to P; the API server prints all."""


def quantity_value(quantity: int | str) -> Fraction:
    """Return the exact value of a valid `Quantity`: `quantity_value("500m") == Fraction(1, 2)`."""
    text = str(quantity)
    number = text.rstrip("mkKMGTPi")
    return Fraction(number) * QUANTITY_UNITS[text.removeprefix(number)]


_PRINTED_QUANTITY = re.compile(
    r"\+?([0-9]{1,20}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?"
)
_PRINTED_MAXIMUM = 2**63 - 1


@lru_cache(maxsize=8192)
def read_quantity(text: str) -> Fraction | None:
    """Return the value of a quantity as the API server prints it; None for other text."""
    found = _PRINTED_QUANTITY.fullmatch(text)
    if found is None:
        return None
    number, unit = Fraction(found[1]), found[2] or ""
    factor = QUANTITY_UNITS[unit] if unit in QUANTITY_UNITS else Fraction(f"1{unit}")
    return min(number * factor, Fraction(_PRINTED_MAXIMUM))
