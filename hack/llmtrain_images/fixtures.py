"""pytest fixtures: one Docker engine for the whole run."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from llmtrain_images.docker_engine import DockerEngine
from llmtrain_images.docker_engine import docker_engine as start_engine


@pytest.fixture(scope="session")
def docker_engine(request: pytest.FixtureRequest) -> Iterator[DockerEngine]:
    """A Docker engine for all tests of a run. A test removes the containers that it starts."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def progress(line: str) -> None:
        """Show one-time builds even though pytest captures the output."""
        with capture.global_and_fixture_disabled():
            print(line, file=sys.stderr, flush=True)

    with start_engine(progress) as engine:
        yield engine
