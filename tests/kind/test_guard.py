"""The network of the nodes is closed, and a hole in it is found.

These tests have the longest limit, so that they run before the cluster uses the network.
"""

from __future__ import annotations

import subprocess

import pytest

from llmtrain_images.docker_engine import DockerEngine
from llmtrain_kind.guard import PODS, SERVICES, GuardError, guarded_network

pytestmark = [pytest.mark.kind, pytest.mark.timeout(2400)]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_network_is_closed_and_opened_again(docker_engine: DockerEngine) -> None:
    routes = run("ip", "route")
    with guarded_network(docker_engine) as guard:
        guard.check()
        assert guard.dropped() == 0
        for addresses in (SERVICES, PODS):
            assert f"blackhole {addresses}" in run("ip", "route")
    assert run("ip", "route") == routes
    assert "br-kind" not in run("iptables-save")


@pytest.mark.parametrize(
    "hole",
    [
        ("iptables", "-w", "-F", "DOCKER-USER"),
        ("ip", "route", "del", "blackhole", SERVICES),
        ("ip", "route", "del", "blackhole", PODS),
    ],
)
def test_a_hole_is_found(docker_engine: DockerEngine, hole: tuple[str, ...]) -> None:
    with guarded_network(docker_engine) as guard:
        run(*hole)
        with pytest.raises(GuardError):
            guard.check()


def test_a_machine_that_uses_the_addresses_is_refused(docker_engine: DockerEngine) -> None:
    run("ip", "route", "add", "10.96.7.0/24", "dev", "lo")
    try:
        with (
            pytest.raises(GuardError, match="has a route to"),
            guarded_network(docker_engine),
        ):
            pass
    finally:
        run("ip", "route", "del", "10.96.7.0/24", "dev", "lo")
