"""The addresses that the endpoints of the operator listen on."""

from __future__ import annotations

import socket
import urllib.request
from asyncio import to_thread

import pytest
from prometheus_client import CollectorRegistry

from llmtrain_devcluster.processes import free_ports
from llmtrain_operator.config import parse
from llmtrain_operator.health import serve


def _answers(host: str, port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


IPV4, IPV6 = "127.0.0.1", "[::1]"
CASES = [("0.0.0.0", {IPV4}), ("", {IPV4})]
if socket.has_dualstack_ipv6():  # the machine has IPv6
    CASES = [("0.0.0.0", {IPV4}), ("", {IPV4, IPV6}), ("::", {IPV6})]


@pytest.mark.parametrize(("bind", "hosts"), CASES)
async def test_addresses(bind: str, hosts: set[str]) -> None:
    metrics, health = free_ports(2)
    ports = (f"--metrics-port={metrics}", f"--health-port={health}")
    config = parse([f"--bind={bind}", *ports])
    async with serve(config, CollectorRegistry(), lambda: True, lambda: True):
        reached = {host for host in (IPV4, IPV6) if await to_thread(_answers, host, health)}
    assert reached == hosts
