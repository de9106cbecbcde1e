"""Whether the blocks of one layout can be made of another's."""

from __future__ import annotations

from pdray.kvcache.layout import DTYPE_BYTES, KVLayout
from pdray.kvcache.prefix_hash import HASH_TOKENS


def convertible(theirs: KVLayout, ours: KVLayout) -> str | None:
    """None where a reader with ``ours`` can read the blocks of a peer with ``theirs``, as they are
    or converted; else why not, with both layouts. Block size, dtype and the number of ranks may
    differ; the model, its KV heads and how its layers are grouped may not."""
    difference = _difference(theirs, ours)
    if difference is None:
        return None
    return (
        f"KV blocks cannot be converted, as {difference}. Theirs: {_in_line(theirs)}. "
        f"Ours: {_in_line(ours)}"
    )


def _difference(theirs: KVLayout, ours: KVLayout) -> str | None:
    if theirs.model_digest != ours.model_digest:
        return "the models differ"
    if len(theirs.groups) != len(ours.groups):
        return f"theirs have {len(theirs.groups)} KV groups and ours {len(ours.groups)}"
    for their_group, our_group in zip(theirs.groups, ours.groups, strict=True):
        if theirs.content_of(their_group) != ours.content_of(our_group):
            return f"KV group {our_group.group_id} differs"
    if theirs.dtype not in DTYPE_BYTES:
        return f"their dtype {theirs.dtype!r} is unknown here; known: {', '.join(DTYPE_BYTES)}"
    if theirs.block_size <= 0 or theirs.block_size % HASH_TOKENS:
        return f"their block size {theirs.block_size} is no multiple of {HASH_TOKENS}"
    return None


def _in_line(layout: KVLayout) -> str:
    return layout.describe().replace("\n", "; ")
