"""Objects that tenants store to harm programs that read them."""

from __future__ import annotations

import json
from typing import Any

from llmtrain_devcluster.api import PATCH_TYPES, Api, Object, resource_path
from llmtrain_operator.kube.decoding import read_object

LEVELS = 1_200
"""More than any decoder that recurses can read, and far less than an API server stores."""
_MARK = "here goes what is nested"


def nested(levels: int = LEVELS) -> bytes:
    """Return an object in an object in an object, as managed fields have them."""
    return b'{"f:a":' * levels + b"{}" + b"}" * levels


def with_nested(body: Object, *path: str, levels: int = LEVELS) -> bytes:
    """Return an object as JSON, with a nested value at a path."""
    whole: Any = json.loads(json.dumps(body))
    place = whole
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = _MARK
    return json.dumps(whole).encode().replace(json.dumps(_MARK).encode(), nested(levels))


def deep_managed_fields(api_version: str, levels: int = LEVELS) -> bytes:
    """Return a merge patch that gives an object managed fields of this depth."""
    entry = {
        "apiVersion": api_version,
        "fieldsType": "FieldsV1",
        "manager": "mallory",
        "operation": "Update",
        "time": "2026-01-01T00:00:00Z",
    }
    data = with_nested(entry, "fieldsV1", levels=levels)
    return b'{"metadata":{"managedFields":[' + data + b"]}}"


async def create(api: Api, resource: str, data: bytes, namespace: str | None = None) -> Object:
    """Create an object from bytes. Return what can be read of the response."""
    return _object(await api.send("POST", resource_path(resource, namespace), data))


async def patch(
    api: Api, resource: str, name: str, data: bytes, namespace: str | None = None
) -> Object:
    """Merge-patch an object with bytes. Return what can be read of the response."""
    headers = {"Content-Type": PATCH_TYPES["merge"]}
    return _object(await api.send("PATCH", resource_path(resource, namespace, name), data, headers))


async def read(api: Api, resource: str, name: str, namespace: str | None = None) -> Object:
    """Read what can be read of an object."""
    return _object(await api.send("GET", resource_path(resource, namespace, name)))


async def names(api: Api, resource: str, namespace: str) -> list[str]:
    """Return the names of all objects, without reading the objects."""
    path = resource_path(resource, namespace) + "?includeObject=None"
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    table = json.loads(await api.send("GET", path, headers=accept))
    return [str(row["cells"][0]) for row in table.get("rows") or ()]


def _object(data: bytes) -> Object:
    found: Object = read_object(data)
    return found
