"""What tenants and their pods may do: everything in their namespace, and nothing outside."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain_devcluster.api import ApiStatusError
from tests.support.operator_harness.harness import JOBS, condition
from tests.support.security.measure import Bystanders
from tests.support.security.tenants import Tenants

pytestmark = pytest.mark.cluster

POD = {
    "metadata": {"name": "pod"},
    "spec": {"containers": [{"name": "main", "image": "example.com/x:1"}]},
}

VOLUME = {"name": "v", "emptyDir": {}}
MORE_THAN_REQUESTED: dict[str, tuple[dict[str, Any], str]] = {
    "gpus-of-all": (
        {"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]},
        "spec.workers.env[0].name: NVIDIA_VISIBLE_DEVICES",
    ),
    "gpus-by-name": (
        {"volumes": [{**VOLUME, "mountPath": "/var/run/nvidia-container-devices/all"}]},
        "spec.workers.volumes[0].mountPath: /var/run/nvidia-container-devices",
    ),
    "job-file": (
        {"volumes": [{**VOLUME, "mountPath": "/etc"}]},
        "spec.workers.volumes[0].mountPath: /etc hides /etc/llmtrain",
    ),
    "trainer": (
        {"volumes": [{**VOLUME, "mountPath": "/opt"}]},
        "spec.workers.volumes[0].mountPath: /opt hides /opt/llmtrain",
    ),
    "memory": ({"shmSize": 0}, "spec.workers.shmSize: 0 is less than 1Mi"),
}
"""Sections `workers` of jobs by name, and how the message of `Accepted` begins."""


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
        await tenant.phase("job", "Running")
    await bystanders.are_unharmed("no attack")


async def test_a_job_gets_no_devices_of_others_and_hides_no_folder(
    tenants: Tenants, bystanders: Bystanders
) -> None:
    mallory = tenants.mallory
    for name, (workers, _) in MORE_THAN_REQUESTED.items():
        await mallory.submit(name, workers=workers)
    for name, (_, message) in MORE_THAN_REQUESTED.items():
        job = await mallory.phase(name, "Rejected")
        assert condition(job, "Accepted")["message"].startswith(message)
    await bystanders.are_unharmed("jobs that want more than they request")
    assert not await mallory.pods()
