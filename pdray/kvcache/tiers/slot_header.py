"""What stands before a block's bytes in the file of the disk tier: which block it is, and the
checksum that tells whether the bytes are its own. So the file needs no index beside it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from pdray.kvcache.prefix_index import BlockName

HEADER_BYTES = 512
"""A disk's smallest sector, so that a header is written whole or not at all."""
_MAGIC = b"pdraykv1"
_FIELDS = struct.Struct("<8s32si16sd16s")
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class SlotHeader:
    """``keep_until`` counts seconds since 1970."""

    name: BlockName
    keep_until: float | None
    checksum: bytes

    def is_over(self, now: float) -> bool:
        return self.keep_until is not None and self.keep_until <= now


def checksum_of(data: memoryview) -> bytes:
    return xxhash.xxh3_128_digest(data)


def pack_header(header: SlotHeader, layout_digest: bytes) -> bytes:
    """Of ``HEADER_BYTES``."""
    group_id, prefix = header.name
    keep_until = 0.0 if header.keep_until is None else header.keep_until
    fields = _FIELDS.pack(_MAGIC, layout_digest, group_id, prefix, keep_until, header.checksum)
    return (fields + xxhash.xxh3_128_digest(fields)).ljust(HEADER_BYTES, b"\0")


def unpack_header(data: memoryview, layout_digest: bytes) -> SlotHeader | None:
    """None for bytes that are no header, or that of a block of another layout."""
    fields = bytes(data[: _FIELDS.size])
    if xxhash.xxh3_128_digest(fields) != data[_FIELDS.size : _FIELDS.size + _DIGEST_BYTES]:
        return None
    magic, layout, group_id, prefix, keep_until, checksum = _FIELDS.unpack(fields)
    if magic != _MAGIC or layout != layout_digest:
        return None
    return SlotHeader((group_id, prefix), keep_until or None, checksum)
