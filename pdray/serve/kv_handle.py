"""KV handles: a computed prompt as text that a client carries from prefill to decode.

Signed, not encrypted: what is in it is the client's own request, and where its KV lies. Whoever
has it and a key of its tenant can use it, once. ::

    base64url( version | HMAC-SHA256 of version and contents | contents, packed )
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import zlib
from collections.abc import Sequence

import msgspec

from pdray.core.cluster_secret import ClusterSecret
from pdray.core.errors import HandleProblem, HandleRefusedError
from pdray.core.parked import ParkedPrompt

VERSION = b"\x01"
_MAC_BYTES = 32


class Endpoint(enum.StrEnum):
    """Whose body it was, and in whose shape the answer is."""

    COMPLETIONS = "completions"
    CHAT = "chat/completions"


class HandlePart(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of one prompt. ``prompt_digest`` tells a decode application that it makes other
    tokens of the body than the prefill application did."""

    parked: ParkedPrompt
    prompt_digest: bytes


class KVHandle(msgspec.Struct, frozen=True, kw_only=True):
    """``expires_at`` is in seconds since 1970: when the first of its leases runs out, unless
    renewed. ``body`` is the request's, with a seed where the client gave none."""

    tenant: str | None
    expires_at: float
    endpoint: Endpoint
    body: bytes
    parts: tuple[HandlePart, ...]


def seal(handle: KVHandle, secret: ClusterSecret) -> str:
    """The text for the client."""
    packed = zlib.compress(msgspec.msgpack.encode(handle), level=1)
    mac = _mac(packed, secret)
    return base64.urlsafe_b64encode(VERSION + mac + packed).decode().rstrip("=")


def open_handle(
    text: str, secrets: Sequence[ClusterSecret], *, tenant: str | None, now: float
) -> KVHandle:
    """Raises HandleRefusedError for one that is forged, another tenant's, or expired at ``now``,
    in seconds since 1970."""
    packed = _verified(text, secrets)
    # Signed by one of ours: nothing else is unpacked.
    handle = msgspec.msgpack.decode(zlib.decompress(packed), type=KVHandle)
    if handle.tenant != tenant:
        raise HandleRefusedError(
            "kv_handle: was made for another tenant; accepted: one that was made with a key of "
            "the same tenant",
            problem=HandleProblem.FOREIGN,
        )
    if handle.expires_at <= now:
        raise HandleRefusedError(
            f"kv_handle: expired {now - handle.expires_at:.0f} s ago; accepted: one that is used, "
            "or renewed, before its expires_at",
            problem=HandleProblem.EXPIRED,
        )
    return handle


def prompt_digest(token_ids: Sequence[int]) -> bytes:
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in token_ids)).digest()


def _verified(text: str, secrets: Sequence[ClusterSecret]) -> bytes:
    data = _decoded(text)
    if data is not None and data[:1] == VERSION:
        mac, packed = data[1 : 1 + _MAC_BYTES], data[1 + _MAC_BYTES :]
        for secret in secrets:
            if hmac.compare_digest(mac, _mac(packed, secret)):
                return packed
    raise HandleRefusedError(
        "kv_handle: is none that was made here, or was changed; accepted: the text that "
        "/v1/prefill gave, as it was",
        problem=HandleProblem.FORGED,
    )


def _decoded(text: str) -> bytes | None:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    # The last character has bits to spare: one text only stands for these bytes.
    return data if base64.urlsafe_b64encode(data).decode().rstrip("=") == text else None


def _mac(packed: bytes, secret: ClusterSecret) -> bytes:
    return hmac.digest(secret.handle_key, VERSION + packed, hashlib.sha256)
