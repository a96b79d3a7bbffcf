"""Unique loopback addresses for the nodes and pods of a cluster."""

from __future__ import annotations

import os
import random
import socket

# Not 10250: a kubelet on this machine would listen on it at every address.
NODE_PORT = 20250
BLOCKS = range(16, 240)
LAST_POD = 128 * 250


class NoAddressError(RuntimeError):
    """All loopback blocks, or all addresses of one, are taken."""


class AddressBlock:
    """One 127.N.0.0/16 block, reserved by listening on the address of its first node.

    Only one process can listen on an address, and the kernel frees it when that process ends, so no
    file or lock can be left behind. Pods get 127.N.0.1 and up, nodes 127.N.255.1 and up.
    """

    def __init__(self) -> None:
        self.listener, self._block = _reserve()
        self._last_pod = 0
        self._taken: set[str] = set()

    def node_address(self, index: int) -> str:
        """Return the address of node `index`, counted from 0."""
        high, low = divmod(index, 250)
        return f"127.{self._block}.{255 - high}.{low + 1}"

    def allocate(self) -> str:
        """Return a free pod address, the least recently used one first."""
        for _ in range(LAST_POD):
            self._last_pod = self._last_pod % LAST_POD + 1
            high, low = divmod(self._last_pod - 1, 250)
            address = f"127.{self._block}.{high}.{low + 1}"
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise NoAddressError(f"all {LAST_POD} pod addresses of 127.{self._block} are in use")

    def release(self, address: str) -> None:
        """Mark a pod address as free."""
        self._taken.discard(address)

    def close(self) -> None:
        """Release the block."""
        self.listener.close()


def _reserve() -> tuple[socket.socket, int]:
    blocks = list(BLOCKS)
    random.shuffle(blocks)
    reasons: dict[int, None] = {}
    for block in blocks:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((f"127.{block}.255.1", NODE_PORT))
            listener.listen(128)
        except OSError as error:
            listener.close()
            reasons[error.errno or 0] = None
            continue
        return listener, block
    why = ", ".join(os.strerror(number) for number in reasons)
    raise NoAddressError(
        f"cannot listen on port {NODE_PORT} of any block 127.N.0.0/16 ({why}): "
        "stop an unused cluster, or another process that listens on that port"
    )
