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
from collections.abc import Collection, Iterator, Mapping, Sequence

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no name for it
_NETWORK_HEADER = 0x100000000 - 0x100000  # SKF_NET_OFF in linux/filter.h, as an unsigned number
_LOAD_WORD, _JUMP_IF_EQUAL, _JUMP, _RETURN = 0x20, 0x15, 0x05, 0x06
_STORE, _LOAD_STORED = 0x02, 0x60
"""A stored word takes less of the kernel's memory for each further load than a word of a packet."""
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
    """Return a program that accepts these addresses: first the words that they have in common."""
    words = [_words(address) for address in addresses]
    columns = list(enumerate(zip(*words, strict=True)))
    varying = [index for index, column in columns if len(set(column)) > 1] or [len(columns) - 1]
    common = {index: column[0] for index, column in columns if index not in varying}
    tests = (
        _tests_of_one_word(family, varying[0], [address[varying[0]] for address in words])
        if len(varying) == 1
        else _tests_of_words(family, varying, words)
    )
    return [*_tests_in_common(family, common), *tests, (_RETURN, 0, 0, _DROP)]


def _words(address: str) -> tuple[int, ...]:
    packed = ipaddress.ip_address(address.partition("%")[0]).packed
    return struct.unpack(f">{len(packed) // 4}I", packed)


def _tests_in_common(family: int, words: Mapping[int, int]) -> Iterator[Instruction]:
    """Drop a packet that differs in one of these words."""
    for index, word in words.items():
        yield _load(family, index)
        yield (_JUMP_IF_EQUAL, 1, 0, word)
        yield (_RETURN, 0, 0, _DROP)


def _tests_of_one_word(family: int, index: int, words: Sequence[int]) -> Iterator[Instruction]:
    """Compare one word with those of all addresses; an equal one jumps to the end of its block."""
    yield _load(family, index)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        for number, word in enumerate(block):
            yield (_JUMP_IF_EQUAL, len(block) - number, 0, word)
        yield (_JUMP, 0, 0, 1)
        yield (_RETURN, 0, 0, _ACCEPT)


def _tests_of_words(
    family: int, indexes: Sequence[int], addresses: Sequence[tuple[int, ...]]
) -> Iterator[Instruction]:
    """Compare some words with each address; one that differs jumps to the next address."""
    for index in indexes:
        yield _load(family, index)
        yield (_STORE, 0, 0, index)
    for words in addresses:
        for number, index in enumerate(indexes, start=1):
            yield (_LOAD_STORED, 0, 0, index)
            yield (_JUMP_IF_EQUAL, 0, 2 * (len(indexes) - number) + 1, words[index])
        yield (_RETURN, 0, 0, _ACCEPT)


def _load(family: int, word: int) -> Instruction:
    offset = _SOURCE[socket.AddressFamily(family)]
    return (_LOAD_WORD, 0, 0, _NETWORK_HEADER + offset + 4 * word)
