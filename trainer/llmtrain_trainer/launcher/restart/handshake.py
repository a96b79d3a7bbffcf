"""Mutual proof of the key of the attempt, at the start of a connection between launchers.

    coordinator -> launcher    nonce of the coordinator
    launcher -> coordinator    nonce of the launcher, MAC("launcher", both nonces)
    coordinator -> launcher    MAC("coordinator", both nonces)

Every part has a fixed length, and nothing is parsed before the proof. The role in the MAC prevents
reflection: a peer cannot return a proof that it has received. The nonces prevent replay.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from typing import Literal

NONCE_BYTES = MAC_BYTES = 32

HANDSHAKE_SECONDS = 30.0
"""Limit of a handshake. The import of torch, from a slow disk, can stop a launcher for seconds."""

Role = Literal["coordinator", "launcher"]


class HandshakeError(Exception):
    """The other end did not prove the key of the attempt."""


def proof(key: bytes, role: Role, coordinator_nonce: bytes, launcher_nonce: bytes) -> bytes:
    """Return the MAC by which an end proves that it has the key."""
    text = f"llmtrain gang 1 {role}\n".encode() + coordinator_nonce + launcher_nonce
    return hmac.digest(key, text, hashlib.sha256)


async def verify_launcher(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes
) -> None:
    """Verify the proof of a launcher, then send the coordinator's own.

    Raises HandshakeError or EOFError.
    """
    own = secrets.token_bytes(NONCE_BYTES)
    writer.write(own)
    answer = await reader.readexactly(NONCE_BYTES + MAC_BYTES)
    other, given = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
    if not hmac.compare_digest(given, proof(key, "launcher", own, other)):
        raise HandshakeError("it does not have the key of this attempt")
    writer.write(proof(key, "coordinator", own, other))


async def verify_coordinator(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes
) -> None:
    """Prove the key to the coordinator, then verify its proof.

    Raises HandshakeError or EOFError.
    """
    other = await reader.readexactly(NONCE_BYTES)
    own = secrets.token_bytes(NONCE_BYTES)
    writer.write(own + proof(key, "launcher", other, own))
    given = await reader.readexactly(MAC_BYTES)
    if not hmac.compare_digest(given, proof(key, "coordinator", other, own)):
        raise HandshakeError("it does not have the key of this attempt")
