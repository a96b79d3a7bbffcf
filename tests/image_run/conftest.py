"""The operator and a training pod as their images run them. The tests need root."""

from __future__ import annotations

import asyncio
import os

import pytest

from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness.install import install


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with llmtrain installed, but for the operator itself."""
    asyncio.run(install(control_plane))
    return control_plane


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    assert os.geteuid() == 0, "run the tests as root: they change mounts and the user"
