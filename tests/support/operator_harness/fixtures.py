"""pytest fixtures: an installation, and an operator process that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from llmtrain_devcluster.control_plane.control_plane import ControlPlane
from tests.support.operator_harness.harness import OperatorProcess
from tests.support.operator_harness.install import installed_in


@pytest.fixture(scope="session")
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with llmtrain installed, but for the operator itself."""
    with installed_in(control_plane):
        yield control_plane


@pytest.fixture(scope="module")
def operator_flags() -> Sequence[str]:
    """Flags of the operator; a module with others defines this fixture."""
    return ()


@pytest.fixture(scope="module")
def operator(
    installed: ControlPlane,
    operator_flags: Sequence[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OperatorProcess]:
    """An operator process that the tests of a module share."""
    process = OperatorProcess(installed, tmp_path_factory.mktemp("operator"), *operator_flags)
    process.start()
    yield process
    process.stop()
