"""Who may speak on a link: both ends prove that they have the listener's key, before anything
else is read. What follows is authenticated, not encrypted."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets

from pdray.core.errors import LinkRefusedError

_MAGIC = b"pdray link 1\n"
_NONCE_BYTES = 32
_PROOF_BYTES = hashlib.sha256().digest_size


def _proof(link_key: bytes, role: bytes, dialer_nonce: bytes, listener_nonce: bytes) -> bytes:
    # The role keeps one side's proof from being sent back to it as the other's.
    text = _MAGIC + role + b"\n" + dialer_nonce + listener_nonce
    return hmac.digest(link_key, text, "sha256")


async def prove_as_dialer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link_key: bytes
) -> None:
    """Raises LinkRefusedError where either side does not accept the other; OSError where the
    connection breaks. Has no timeout of its own."""
    ours = secrets.token_bytes(_NONCE_BYTES)
    writer.write(_MAGIC + ours)
    theirs = await _read_nonce(reader)
    writer.write(_proof(link_key, b"dialer", ours, theirs))
    expected = _proof(link_key, b"listener", ours, theirs)
    try:
        proof = await reader.readexactly(_PROOF_BYTES)
    except asyncio.IncompleteReadError as error:
        raise LinkRefusedError("the listener does not accept our link key") from error
    if not hmac.compare_digest(proof, expected):
        raise LinkRefusedError("the listener does not have the link key of its address")


async def prove_as_listener(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link_key: bytes
) -> None:
    """As ``prove_as_dialer``; says nothing that needs the key to a stranger."""
    theirs = await _read_nonce(reader)
    ours = secrets.token_bytes(_NONCE_BYTES)
    writer.write(_MAGIC + ours)
    try:
        proof = await reader.readexactly(_PROOF_BYTES)
    except asyncio.IncompleteReadError as error:
        raise LinkRefusedError("it left before it proved to have the link key") from error
    if not hmac.compare_digest(proof, _proof(link_key, b"dialer", theirs, ours)):
        raise LinkRefusedError("it does not have the link key")
    writer.write(_proof(link_key, b"listener", theirs, ours))


async def _read_nonce(reader: asyncio.StreamReader) -> bytes:
    try:
        magic = await reader.readexactly(len(_MAGIC))
        if magic != _MAGIC:
            raise LinkRefusedError(f"it does not speak pdray's link protocol: {magic!r}")
        return await reader.readexactly(_NONCE_BYTES)
    except asyncio.IncompleteReadError as error:
        raise LinkRefusedError("it left in the middle of the handshake") from error
