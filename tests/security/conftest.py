"""Attacks of three tenants on an operator with its shipped rights, on a real API server.

The operator is shared by the tests of a module. A test that ends it needs one of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness.harness import OperatorProcess
from tests.support.operator_harness.install import installed_in
from tests.support.security.measure import Bystanders, StartTimes
from tests.support.security.tenants import Tenants, three_tenants


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with llmtrain installed, but for the operator itself."""
    with installed_in(control_plane):
        yield control_plane


@pytest.fixture(scope="module")
def operator(
    installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """An operator process that the tests of a module share."""
    process = OperatorProcess(installed, tmp_path_factory.mktemp("operator"))
    process.start()
    yield process
    process.stop()


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
async def bystanders(operator: OperatorProcess, tenants: Tenants, starts: StartTimes) -> Bystanders:
    """A second tenant whose jobs start as usual. Ask `are_unharmed` at the end of an attack."""
    await starts.measure_usual(tenants.bob)
    return Bystanders(tenants.bob, operator, starts)
