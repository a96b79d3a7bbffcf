"""torch's store has no authentication: the kernel drops what does not come from the gang."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

from llmtrain_trainer.errors import TrainerError
from llmtrain_trainer.runtime import address_filter
from llmtrain_trainer.runtime.address_filter import admit_only
from llmtrain_trainer.runtime.sockets import listen

pytestmark = pytest.mark.unit

GANG = ["127.0.0.1", "127.7.0.2"]
STRANGER = "127.9.9.9"


def _connects(source: str, listener: socket.socket) -> bool:
    """Whether a connection from an address works in both directions."""
    with socket.socket(listener.family) as connection:
        connection.settimeout(0.2)  # packets from other addresses are dropped
        connection.bind((source, 0))
        try:
            connection.connect(listener.getsockname())
        except TimeoutError:
            return False
        accepted, _ = listener.accept()
        with accepted:
            connection.settimeout(60)
            accepted.settimeout(60)
            connection.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
            accepted.sendall(b"world")
            assert connection.recv(5) == b"world"
    return True


def test_the_store_of_a_gang_does_not_answer_a_stranger() -> None:
    with listen("127.0.0.1") as listener:
        listener.settimeout(60)
        assert _connects(STRANGER, listener)
        admit_only(listener, GANG)
        assert all(_connects(source, listener) for source in GANG)
        assert not _connects(STRANGER, listener)


def test_a_large_gang_has_a_filter() -> None:
    """10,000 GPUs in pods of eight; addresses in the upper half take twice the space."""
    pods = [f"172.16.{number // 250}.{number % 250}" for number in range(1250)]
    with listen("127.0.0.1") as listener:
        listener.settimeout(60)
        admit_only(listener, [*pods, *GANG])
        assert all(_connects(source, listener) for source in GANG)
        assert not _connects(STRANGER, listener)


def test_the_filter_is_there_before_anyone_can_connect() -> None:
    seen: list[int] = []

    def prepare(listener: socket.socket) -> None:
        seen.append(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        admit_only(listener, GANG)

    with listen("127.0.0.1", prepare=prepare) as listener:
        listener.settimeout(60)
        assert seen == [0] and not _connects(STRANGER, listener)
        assert _connects(GANG[0], listener)


def _has_ipv6() -> bool:
    try:
        listen("::1").close()
    except TrainerError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6")
def test_a_gang_with_ipv6_has_a_filter() -> None:
    """The nodes of a cluster usually have a network of 64 bits each."""
    pods = [f"fd00:10:244:{number:x}::{number % 7 + 2:x}" for number in range(150)]
    with listen("::1") as listener:
        listener.settimeout(60)
        admit_only(listener, pods)
        assert not _connects("::1", listener)
        admit_only(listener, [*pods, "::1"])
        assert _connects("::1", listener)
        admit_only(listener, ["::1"])
        assert _connects("::1", listener)


def test_the_filter_of_a_gang_with_ipv6_is_small() -> None:
    """By default older kernels have 20 KiB for it (`net.core.optmem_max`)."""
    pods = [f"fd00:10:244:{number:x}::{number % 7 + 2:x}" for number in range(400)]
    assert len(address_filter._program(socket.AF_INET6, pods)) <= 5 * len(pods) + 20


def test_too_many_addresses_are_an_error() -> None:
    many = [f"10.0.{n >> 8}.{n & 255}" for n in range(4100)]
    with listen("127.0.0.1") as listener, pytest.raises(OSError, match="4100 addresses"):
        admit_only(listener, many)


def _verdict(program: Sequence[address_filter.Instruction], words: dict[int, int]) -> int:
    """Run a program on a packet with these words at their offsets."""
    accumulator, at, stored = 0, 0, dict[int, int]()
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == address_filter._LOAD_WORD:
            accumulator = words[operand - address_filter._NETWORK_HEADER]
        elif code == address_filter._STORE:
            stored[operand] = accumulator
        elif code == address_filter._LOAD_STORED:
            accumulator = stored[operand]
        elif code == address_filter._JUMP_IF_EQUAL:
            at += if_true if accumulator == operand else if_false
        elif code == address_filter._JUMP:
            at += operand
        else:
            return operand


@pytest.mark.parametrize(
    ("family", "gang", "strangers"),
    [
        (
            socket.AF_INET,
            [f"10.{n % 7}.{n // 256}.{n % 256}" for n in range(800)],
            ["10.0.0.255", "0.0.0.0", "255.255.255.255"],
        ),
        (
            socket.AF_INET6,
            [f"fd00::{n:x}:1:{n:x}" for n in range(1, 60)],
            ["fd00::1:1:2", "::1", "fe00::1:1:1", "fd00::1:2:1"],
        ),
        (
            socket.AF_INET6,
            [f"fd00:10:244:1::{n:x}" for n in range(1, 800)],
            ["fd00:10:244:1::", "fd00:10:244:2::1", "fd00:11:244:1::1", "fd00:10:244:1:1::1"],
        ),
        (socket.AF_INET6, ["fd00::1"], ["fd00::2", "fd00::1:0:1", "::1"]),
        (socket.AF_INET, ["10.0.0.1"], ["10.0.0.2"]),
    ],
    ids=["IPv4", "IPv6", "IPv6 of one network", "one IPv6", "one IPv4"],
)
def test_a_filter_accepts_the_addresses_of_the_gang_only(
    family: int, gang: list[str], strangers: list[str]
) -> None:
    program = address_filter._program(family, gang)
    first = address_filter._SOURCE[socket.AddressFamily(family)]

    def verdict(address: str) -> int:
        words = address_filter._words(address)
        return _verdict(program, {first + 4 * i: word for i, word in enumerate(words)})

    assert {verdict(address) for address in gang} == {0xFFFFFFFF}
    assert {verdict(address) for address in strangers} == {0}
    assert all(jump < 256 for _, *jumps, _ in program for jump in jumps)
