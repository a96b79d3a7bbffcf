"""What the tenants of these tests may do: everything in their namespace, and nothing outside."""

from __future__ import annotations

import pytest

from llmtrain_devcluster.api import ApiStatusError
from tests.support.operator_harness.harness import JOBS
from tests.support.security.measure import Bystanders
from tests.support.security.tenants import Tenants

pytestmark = pytest.mark.cluster

POD = {
    "metadata": {"name": "pod"},
    "spec": {"containers": [{"name": "main", "image": "example.com/x:1"}]},
}


async def test_a_tenant_has_the_rights_of_edit_in_its_namespace_only(tenants: Tenants) -> None:
    mallory, bob = tenants.mallory, tenants.bob
    await mallory.api.create("pods", POD, mallory.namespace)
    for request in (
        mallory.api.create("pods", POD, bob.namespace),
        mallory.api.list(JOBS, bob.namespace),
        mallory.api.list(JOBS),
        mallory.api.list("nodes"),
        mallory.api.patch(JOBS, "any", {"status": {}}, mallory.namespace, subresource="status"),
    ):
        with pytest.raises(ApiStatusError) as refused:
            await request
        assert refused.value.status == 403


async def test_jobs_of_all_tenants_start(tenants: Tenants, bystanders: Bystanders) -> None:
    for tenant in (tenants.mallory, tenants.carol):
        await tenant.submit("job")
        await tenant.phase("job", "Running", seconds=60)
    await bystanders.are_unharmed("no attack")
