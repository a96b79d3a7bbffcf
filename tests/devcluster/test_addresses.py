"""Loopback blocks are claimed, and a claim that cannot be made says why."""

import socket

import pytest

from llmtrain_devcluster import addresses
from llmtrain_devcluster.addresses import AddressBlock, NoAddressError

pytestmark = pytest.mark.cluster


def test_two_blocks_share_nothing() -> None:
    one, two = AddressBlock(), AddressBlock()
    try:
        assert one.node_address(0) != two.node_address(0)
        first, second = one.allocate(), one.allocate()
        assert len({first, second, two.allocate()}) == 3
        one.release(first)
        assert one.allocate() not in (first, second)
    finally:
        one.close()
        two.close()


def test_a_port_that_is_taken_everywhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kubelet of the machine's own does, one listener takes the port at every address."""
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(addresses, "NODE_PORT", port)
        with pytest.raises(NoAddressError, match=rf"{port} .*Address already in use.*listens"):
            AddressBlock()
