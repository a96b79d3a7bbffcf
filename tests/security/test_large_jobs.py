"""Jobs of a megabyte do not fill the memory of the operator.

`make fuzz-objects` has 241 of them; the tests have fewer.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence

import pytest

from llmtrain_devcluster.api import resource_path
from tests.support.operator_harness.harness import (
    JOBS,
    PATIENT_LEASE,
    OperatorProcess,
    condition,
    job_object,
)
from tests.support.security import hostile
from tests.support.security.measure import Bystanders, StartTimes
from tests.support.security.tenants import Tenant, Tenants

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

COUNT = int(os.environ.get("LLMTRAIN_LARGE_JOBS", "20"))
MEMORY_MIB = 256
VARIABLES = 250
LENGTH = 4096


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    """The API server is busy with megabytes."""
    return PATIENT_LEASE


async def submit_large(tenant: Tenant, count: int) -> None:
    """Create suspended jobs whose variables take a megabyte."""
    env = [{"name": f"V{i}", "value": "x" * LENGTH} for i in range(VARIABLES)]
    workers = {"env": env, "nodeSelector": {"harness": tenant.tag}}
    data = json.dumps(job_object("NAME", tenant.namespace, suspend=True, workers=workers)).encode()
    gate = asyncio.Semaphore(4)

    async def one(index: int) -> None:
        async with gate:
            body = data.replace(b'"NAME"', b'"large-%d"' % index)
            await tenant.api.send("POST", resource_path(JOBS, tenant.namespace), body)

    await asyncio.gather(*(one(index) for index in range(count)))


async def test_jobs_of_a_megabyte_are_refused(
    operator: OperatorProcess, tenants: Tenants, starts: StartTimes
) -> None:
    await starts.measure_usual(tenants.bob)
    await asyncio.to_thread(operator.stop)
    mallory = tenants.mallory
    await submit_large(mallory, COUNT)
    await asyncio.to_thread(operator.start, 300)
    bystanders = Bystanders(tenants.bob, operator, starts, since_start=True)
    # The API server reads all of them for a list, so the test does not list them.
    await operator.shows(f'llmtrain_operator_jobs{{phase="Rejected"}} {COUNT}.0', 900)
    await bystanders.are_unharmed(f"{COUNT} suspended jobs of 1 MB", limit_mib=MEMORY_MIB)
    print(f"\n{COUNT} jobs: peak {bystanders.peak_mib():.0f} MiB")
    job = await hostile.read(mallory.api, JOBS, "large-0", mallory.namespace)
    accepted = condition(job, "Accepted")
    assert accepted["reason"] == "TooLarge"
    assert "65536" in accepted["message"] and "smaller" in accepted["message"]


async def test_a_large_job_that_an_earlier_version_has_placed_goes_on(
    operator: OperatorProcess, tenants: Tenants
) -> None:
    carol = tenants.carol
    await carol.submit("small")
    placed = await carol.phase("small", "Running")
    await carol.api.delete(JOBS, "small", carol.namespace)
    await carol.gone("small")
    await carol.pod_count(0, 120)  # they hold the nodes until the garbage collector deletes them
    await asyncio.to_thread(operator.stop)
    await submit_large(carol, 1)
    kept = ("attempt", "placement", "startTime", "attemptStartTime", "layout")
    status = {key: value for key, value in placed["status"].items() if key in kept}
    status["conditions"] = [
        item for item in placed["status"]["conditions"] if item["type"] in ("Accepted", "Placed")
    ]
    await carol.patch("large-0", {"spec": {"suspend": False}})
    admin = tenants.admin
    await admin.patch(JOBS, "large-0", {"status": status}, carol.namespace, subresource="status")
    await asyncio.to_thread(operator.start, 300)
    await carol.phase("large-0", "Running")

    # It has to wait now, so the new bound applies.
    await carol.patch("large-0", {"spec": {"suspend": True}})
    job = await carol.wait(
        "large-0", lambda job: condition(job, "Accepted")["reason"] == "TooLarge", 60
    )
    assert "smaller" in condition(job, "Accepted")["message"]
    await carol.pod_count(0)
