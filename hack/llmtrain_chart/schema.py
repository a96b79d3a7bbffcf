"""values.schema.json: the JSON schema of the values, which Helm checks before it renders."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from llmtrain_chart.values.root import NULLABLE, Values

DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest one that Helm 3 knows."""


def schema_text() -> str:
    """Return the file values.schema.json."""
    schema = _without_titles(Values.model_json_schema(by_alias=True))
    for name, required in _required_values(Values()).items():
        node = schema if name == Values.__name__ else schema["$defs"][name]
        node["required"] = required
    return json.dumps({"$schema": DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"


def _required_values(model: BaseModel) -> dict[str, list[str]]:
    """Return the required keys of a model and of the models in it, by the name of the model.

    `null` removes a value. Templates read a missing text, list or map as an empty one, so a value
    is required if its default is something else. A map is required if one of its values is.
    """
    found: dict[str, list[str]] = {}
    required = []
    for name, field in type(model).model_fields.items():
        key, default = field.alias or name, getattr(model, name)
        if isinstance(default, BaseModel):
            inner = _required_values(default)
            found |= inner
            if type(default).__name__ in inner:
                required.append(key)
        elif key not in NULLABLE and not isinstance(default, list | dict) and default != "":
            required.append(key)
    return {**found, type(model).__name__: required} if required else found


def _without_titles(node: Any) -> Any:
    """Return a schema without the titles that pydantic derives from names."""
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: item for key, item in node.items() if not (key == "title" and _is_text(item))}
    if "description" in kept and _is_text(kept["description"]):
        kept["description"] = " ".join(kept["description"].split())
    return {key: _without_titles(item) for key, item in kept.items()}


def _is_text(item: Any) -> bool:
    """Return False for the schema of a value with the name of a keyword."""
    return isinstance(item, str)
