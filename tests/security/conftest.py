"""Attacks of three tenants on an operator with its shipped rights, on a real API server.

The operator is shared by the tests of a module. A test that ends it needs one of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness import fixtures
from tests.support.operator_harness.harness import OperatorProcess
from tests.support.security.measure import Bystanders, StartTimes
from tests.support.security.tenants import Tenants, three_tenants

installed = fixtures.installed
operator_flags = fixtures.operator_flags
operator = fixtures.operator


@pytest.fixture(scope="module")
def starts(operator: OperatorProcess) -> StartTimes:
    """Times of starts with the operator of the module."""
    return StartTimes()


@pytest.fixture
async def tenants(installed: ControlPlane, api: Api) -> AsyncIterator[Tenants]:
    """Three tenants with nodes of their own; nothing of them stays after the test."""
    async with three_tenants(installed, api) as found:
        yield found


@pytest.fixture
async def priority(tenants: Tenants) -> AsyncIterator[str]:
    """A PriorityClass above the default."""
    name = f"high-{secrets.token_hex(3)}"
    path = "scheduling.k8s.io/v1/priorityclasses"
    await tenants.admin.create(path, {"metadata": {"name": name}, "value": 1000})
    yield name
    await tenants.admin.delete(path, name)


@pytest.fixture
async def bystanders(operator: OperatorProcess, tenants: Tenants, starts: StartTimes) -> Bystanders:
    """A second tenant whose jobs start as usual. Ask `are_unharmed` at the end of an attack."""
    await starts.measure_usual(tenants.bob)
    return Bystanders(tenants.bob, operator, starts)
