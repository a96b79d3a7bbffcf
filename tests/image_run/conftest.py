"""The operator and a training pod as their images run them. The tests need root."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness.install import installed_in


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with llmtrain installed, but for the operator itself."""
    with installed_in(control_plane):
        yield control_plane


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    assert os.geteuid() == 0, "run the tests as root: they change mounts and the user"
