"""Racks of nodes as network namespaces: a switch per rack, a spine, and shaped links.

Every node hangs on its rack's switch, every rack on the spine by one uplink. Both ends of every
link are shaped by a token bucket, which only slows what leaves an interface. Reno and large frames,
because the default congestion control and small frames measure this machine's timers instead.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

RACKS, NODES_PER_RACK = 2, 4
NODES = RACKS * NODES_PER_RACK
NODE_MBIT, UPLINK_MBIT = 1000, 200
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Racks:
    """The namespaces that one test made; all names begin with its own prefix."""

    prefix: str
    racks: int = RACKS
    per_rack: int = NODES_PER_RACK

    @property
    def nodes(self) -> int:
        return self.racks * self.per_rack

    def node(self, slot: int) -> str:
        return f"{self.prefix}n{slot}"

    def rack(self, number: int) -> str:
        return f"{self.prefix}r{number}"

    @property
    def spine(self) -> str:
        return f"{self.prefix}s"

    def names(self) -> list[str]:
        nodes = [self.node(slot) for slot in range(self.nodes)]
        return [self.spine, *(self.rack(number) for number in range(self.racks)), *nodes]

    def sent(self) -> list[int]:
        """Bytes that each rack has sent up its uplink so far."""
        sent = []
        for number in range(self.racks):
            shown = json.loads(_ip("-n", self.rack(number), "-s", "-j", "link", "show", "up0"))
            sent.append(int(shown[0]["stats64"]["tx"]["bytes"]))
        return sent

    def shape_uplink(self, number: int, mbit: int = UPLINK_MBIT) -> None:
        """Let both ends of a rack's uplink send this much."""
        _shape(self.rack(number), "up0", mbit)
        _shape(self.spine, f"rack{number}", mbit)

    def shape_node(self, slot: int, mbit: int = NODE_MBIT) -> None:
        """Let both ends of a node's link send this much."""
        _shape(self.node(slot), "eth0", mbit)
        _shape(self.rack(slot // self.per_rack), f"node{slot}", mbit)

    def enter(self, slot: int) -> None:
        """Move this process into a node's namespace."""
        with Path(f"/var/run/netns/{self.node(slot)}").open() as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def racks(count: int = RACKS, per_rack: int = NODES_PER_RACK) -> Iterator[Racks]:
    """Make the namespaces; they are gone afterwards, whatever happens.

    Where this machine does not allow them, the test says why: skipped by hand, failed in CI.
    """
    made = Racks(f"lt{os.getpid()}", count, per_rack)
    present: list[str] = []
    try:
        try:
            for name in made.names():
                _ip("netns", "add", name)
                present.append(name)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            why = f"no network namespaces here (root and CAP_NET_ADMIN are needed): {said.strip()}"
            if os.environ.get("CI"):
                pytest.fail(why)
            pytest.skip(why)
        _wire(made)
        yield made
    finally:
        for name in present:
            _ip("netns", "del", name)


def _wire(made: Racks) -> None:
    for switch in (made.spine, *(made.rack(number) for number in range(made.racks))):
        _ip("-n", switch, "link", "add", "br0", "mtu", "9000", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
    for number in range(made.racks):
        _link(made.rack(number), "up0", made.spine, f"rack{number}", UPLINK_MBIT)
        _ip("-n", made.rack(number), "link", "set", "up0", "master", "br0")
        _ip("-n", made.spine, "link", "set", f"rack{number}", "master", "br0")
    for slot in range(made.nodes):
        rack, node = made.rack(slot // made.per_rack), made.node(slot)
        _link(node, "eth0", rack, f"node{slot}", NODE_MBIT)
        _ip("-n", rack, "link", "set", f"node{slot}", "master", "br0")
        address = f"10.77.{slot // made.per_rack}.{slot % made.per_rack + 1}/16"
        _ip("-n", node, "address", "add", address, "dev", "eth0")
        _ip("-n", node, "link", "set", "lo", "up")
        _ip("netns", "exec", node, "sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno")


def _link(here: str, name: str, there: str, peer: str, mbit: int) -> None:
    """Connect two namespaces; each end lets out `mbit` megabits per second."""
    _ip(
        "link",
        "add",
        name,
        "mtu",
        "9000",
        "netns",
        here,
        "type",
        "veth",
        "peer",
        "name",
        peer,
        "mtu",
        "9000",
        "netns",
        there,
    )
    for namespace, interface in ((here, name), (there, peer)):
        _shape(namespace, interface, mbit)
        _ip("-n", namespace, "link", "set", interface, "up")


def _shape(namespace: str, interface: str, mbit: int) -> None:
    """Let an interface send `mbit` megabits per second."""
    shape = ["tbf", "rate", f"{mbit}mbit", "burst", "98304", "latency", "40ms"]
    _run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", *shape)


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
