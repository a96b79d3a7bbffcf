"""The network of the nodes, closed to the outside before any node runs.

A service address that kube-proxy has not programmed yet would leave by the machine's default route.
So would the address of a pod whose node is gone.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llmtrain_images.docker_engine import DockerEngine

NETWORK = "kind"
"""kind's own name for it; kind uses a network that exists."""
BRIDGE = "br-kind"
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
_LEAVES = ("-i", BRIDGE, "!", "-o", BRIDGE, "-j", "DROP")


class GuardError(RuntimeError):
    """The guard is not in place, or the machine already uses its addresses."""


@dataclass(frozen=True, slots=True)
class Guard:
    """The network and the rules that close it."""

    subnet: str

    def check(self) -> None:
        """Raise GuardError unless every rule is in place."""
        if _iptables("-C", "DOCKER-USER", *_LEAVES, check=False).returncode:
            raise GuardError(f"no rule drops what leaves {BRIDGE}")
        for addresses in (SERVICES, PODS):
            if _routes(addresses) != [("blackhole", addresses)]:
                raise GuardError(f"{addresses} is not a blackhole")

    def dropped(self) -> int:
        """Return how many packets tried to leave the network."""
        listing = _iptables("-L", "DOCKER-USER", "-n", "-v", "-x").stdout
        for line in listing.splitlines():
            if re.search(rf"\bDROP\b.* {BRIDGE} +!{BRIDGE} ", line):
                return int(line.split()[0])
        raise GuardError(f"no rule drops what leaves {BRIDGE}")


@contextmanager
def guarded_network(engine: DockerEngine) -> Iterator[Guard]:
    """Create the closed network of the nodes; remove it at the end."""
    for addresses in (SERVICES, PODS):
        if any(kind != "blackhole" for kind, _ in _routes(addresses)):
            raise GuardError(f"this machine has a route to {addresses}, which the cluster uses")
    options = {
        "com.docker.network.bridge.name": BRIDGE,
        "com.docker.network.bridge.enable_ip_masquerade": "false",
    }
    create = [word for name, value in options.items() for word in ("--opt", f"{name}={value}")]
    engine.docker("network", "create", "--driver", "bridge", *create, NETWORK)
    try:
        for addresses in (SERVICES, PODS):
            _ip("route", "replace", "blackhole", addresses)
        _iptables("-I", "DOCKER-USER", *_LEAVES)
        guard = Guard(_subnet(engine))
        guard.check()
        yield guard
    finally:
        _iptables("-D", "DOCKER-USER", *_LEAVES, check=False)
        for addresses in (SERVICES, PODS):
            _ip("route", "del", "blackhole", addresses, check=False)
        engine.docker("network", "rm", NETWORK, check=False)


def _subnet(engine: DockerEngine) -> str:
    (network,) = json.loads(engine.docker("network", "inspect", NETWORK).stdout)
    return str(network["IPAM"]["Config"][0]["Subnet"])


def _routes(addresses: str) -> list[tuple[str, str]]:
    """Return type and destination of the routes that overlap with a network."""
    found = []
    for scope in ("root", "match"):
        text = _ip("-json", "-details", "route", "show", scope, addresses).stdout
        for route in json.loads(text or "[]"):
            if route["dst"] != "default":
                found.append((str(route.get("type", "unicast")), str(route["dst"])))
    return sorted(set(found))


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)


def _iptables(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["iptables", "-w", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check)
