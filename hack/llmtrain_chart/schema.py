"""values.schema.json: the JSON schema of the values, which Helm checks before it renders."""

from __future__ import annotations

import json
from typing import Any

from llmtrain_chart.values.root import Values

DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest one that Helm 3 knows."""


def schema_text() -> str:
    """Return the file values.schema.json."""
    schema = _without_titles(Values.model_json_schema(by_alias=True))
    return json.dumps({"$schema": DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"


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
