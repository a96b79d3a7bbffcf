"""Restrict a listening socket to the addresses of the gang, in the kernel.

torch's store has no authentication. But the launchers have, and ranks connect from the address of
their launcher. So packets from all other addresses are dropped before the store sees a connection.
A classic BPF program does it, which needs no privilege and which accepted sockets inherit.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator, Sequence

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no name for it
_NETWORK_HEADER = 0x100000000 - 0x100000  # SKF_NET_OFF in linux/filter.h, as an unsigned number
_LOAD_WORD, _JUMP_IF_EQUAL, _JUMP, _RETURN = 0x20, 0x15, 0x05, 0x06
_ACCEPT, _DROP = 0xFFFFFFFF, 0
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_BLOCK = 250
"""Jumps are at most 255 instructions long."""
_SOURCE = {socket.AF_INET: 12, socket.AF_INET6: 8}
"""Offset of the source address in the header of a packet."""

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand: `struct sock_filter`."""


def admit_only(listener: socket.socket, addresses: Collection[str]) -> None:
    """Drop packets to a listener, and to the sockets it accepts, from all other addresses.

    Raises OSError if the kernel refuses it: some sandboxes have no filters, and the size of a
    filter is limited (`net.core.optmem_max`).
    """
    instructions = _program(listener.family, sorted(set(addresses)))
    if len(instructions) > _MAX_INSTRUCTIONS:
        raise OSError(f"{len(addresses)} addresses are too many for a filter")
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HL", len(instructions), ctypes.addressof(buffer))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _program(family: int, addresses: Sequence[str]) -> list[Instruction]:
    words = [_words(address) for address in addresses]
    tests = _tests_of_one_word(words) if family == socket.AF_INET else _tests_of_words(words)
    return [*tests, (_RETURN, 0, 0, _DROP)]


def _words(address: str) -> tuple[int, ...]:
    packed = ipaddress.ip_address(address.partition("%")[0]).packed
    return struct.unpack(f">{len(packed) // 4}I", packed)


def _tests_of_one_word(addresses: Sequence[tuple[int, ...]]) -> Iterator[Instruction]:
    """Compare the word with each address; an equal one jumps to the end of its block."""
    yield _load(socket.AF_INET, 0)
    for start in range(0, len(addresses), _BLOCK):
        block = addresses[start : start + _BLOCK]
        for index, (word,) in enumerate(block):
            yield (_JUMP_IF_EQUAL, len(block) - index, 0, word)
        yield (_JUMP, 0, 0, 1)
        yield (_RETURN, 0, 0, _ACCEPT)


def _tests_of_words(addresses: Sequence[tuple[int, ...]]) -> Iterator[Instruction]:
    """Compare all words with each address; one that differs jumps to the next address."""
    for words in addresses:
        for index, word in enumerate(words):
            yield _load(socket.AF_INET6, index)
            yield (_JUMP_IF_EQUAL, 0, 2 * (len(words) - index) - 1, word)
        yield (_RETURN, 0, 0, _ACCEPT)


def _load(family: socket.AddressFamily, word: int) -> Instruction:
    return (_LOAD_WORD, 0, 0, _NETWORK_HEADER + _SOURCE[family] + 4 * word)
