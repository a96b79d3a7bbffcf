"""A node whose traffic to the other nodes is limited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmtrain_kind.cluster import KindCluster

DEVICE = "eth0"


@contextmanager
def slow_uplink(cluster: KindCluster, node: str, mbits_per_second: int) -> Iterator[None]:
    """Limit what a node sends, by a token bucket filter, until the block ends."""
    limit = ("rate", f"{mbits_per_second}mbit", "burst", "64kb", "latency", "1s")
    cluster.on_node(node, "tc", "qdisc", "add", "dev", DEVICE, "root", "tbf", *limit)
    try:
        yield
    finally:
        cluster.on_node(node, "tc", "qdisc", "del", "dev", DEVICE, "root")
