"""Fixtures of the core's cluster tests."""

from __future__ import annotations

import pytest

from llmtrain_core.api.crd import crds as definitions
from llmtrain_devcluster.api import Api

DEFINITIONS = "apiextensions.k8s.io/v1/customresourcedefinitions"


def _established(found: dict[str, object] | None) -> bool:
    status = (found or {}).get("status") or {}
    assert isinstance(status, dict)
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or []}
    return conditions.get("Established") == "True"


@pytest.fixture
async def crds(api: Api) -> None:
    """Install the generated definitions, and return when the API server serves them."""
    for definition in definitions():
        name = definition["metadata"]["name"]
        await api.request(
            "PATCH",
            f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}",
            query={"fieldManager": "tests", "force": "true"},
            body=definition,
            content_type="application/apply-patch+yaml",
        )
        await api.wait_for(DEFINITIONS, name, _established)
