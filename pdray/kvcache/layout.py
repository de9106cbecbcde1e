"""How KV blocks are laid out: KV groups, and the bytes of a block. Knows no tensors.

All groups share one arena of equal blocks. A block of a group is one contiguous run,
``[kv_heads, layers, K then V, block_size, head_dim]``: heads outermost, so that a range of
heads is one run too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKV:
    """The keys and values that one layer keeps for a token. ``sliding_window`` counts the
    positions that a query sees, its own among them; None: all of them."""

    sliding_window: int | None
    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int

    @property
    def elements_per_token(self) -> int:
        return self.num_kv_heads * (self.k_head_dim + self.v_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class KVGroup:
    """Layers with one attention span and KV shape, which share a block table. Of a worker's ranks,
    ``num_head_copies`` after each other hold the same KV heads, each ``num_kv_heads`` of them."""

    group_id: int
    layer_ids: tuple[int, ...]
    sliding_window: int | None
    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int
    num_head_copies: int = 1

    @property
    def elements_per_token(self) -> int:
        return len(self.layer_ids) * self.num_kv_heads * (self.k_head_dim + self.v_head_dim)

    def first_head_of(self, rank: int) -> int:
        """The first of the model's KV heads that this rank holds."""
        return rank // self.num_head_copies * self.num_kv_heads


@dataclass(frozen=True, kw_only=True)
class KVLayout:
    """Groups, block size and dtype: with the number of blocks, all that decides the bytes. Of
    ``tensor_parallel`` ranks each has a layout, of its own KV heads; they are alike."""

    model_digest: str
    groups: tuple[KVGroup, ...]
    block_size: int
    dtype: str
    tensor_parallel: int = 1

    @classmethod
    def of_layers(
        cls,
        layers: Sequence[LayerKV],
        *,
        model_digest: str,
        block_size: int,
        dtype: str,
        tensor_parallel: int = 1,
    ) -> KVLayout:
        return cls(
            model_digest=model_digest,
            groups=group_layers(layers),
            block_size=block_size,
            dtype=dtype,
            tensor_parallel=tensor_parallel,
        )

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @cached_property
    def block_elements(self) -> int:
        """From one block to the next: the largest group's fill it."""
        return max(group.elements_per_token for group in self.groups) * self.block_size

    @cached_property
    def block_bytes(self) -> int:
        return self.block_elements * self.dtype_bytes

    @cached_property
    def layout_digest(self) -> str:
        """Equal for two workers exactly when one can read the other's blocks as its own."""
        return hashlib.sha256(self.describe().encode()).hexdigest()

    @cached_property
    def content_digest(self) -> str:
        """Equal for two workers exactly when one's blocks can be made of the other's: whatever
        their block size, dtype and number of ranks (see convertible.py)."""
        contents = [self.model_digest, *(self.content_of(group) for group in self.groups)]
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()

    def num_model_heads(self, group: KVGroup) -> int:
        """KV heads of one of the group's layers, on all ranks together."""
        return group.num_kv_heads * self.tensor_parallel // group.num_head_copies

    def content_of(self, group: KVGroup) -> str:
        """What the group keeps of a token, on all ranks together."""
        span = "full" if group.sliding_window is None else f"window {group.sliding_window}"
        return (
            f"{span}, {self.num_model_heads(group)} KV heads of "
            f"{group.k_head_dim} + {group.v_head_dim}, layers {list(group.layer_ids)}"
        )

    def describe(self) -> str:
        """The whole layout as text, for the message when two of them do not fit."""
        lines = [
            f"model {self.model_digest}",
            f"block of {self.block_size} tokens, {self.block_bytes} bytes, {self.dtype}",
        ]
        if self.tensor_parallel > 1:
            lines.append(f"tensor parallel: on each of {self.tensor_parallel} ranks")
        for group in self.groups:
            span = "full" if group.sliding_window is None else f"window {group.sliding_window}"
            lines.append(
                f"group {group.group_id}: {span}, {group.num_kv_heads} KV heads of "
                f"{group.k_head_dim} + {group.v_head_dim}, layers {list(group.layer_ids)}"
            )
            if group.num_head_copies > 1:
                lines[-1] += f", each on {group.num_head_copies} ranks"
        return "\n".join(lines)


def group_layers(layers: Sequence[LayerKV]) -> tuple[KVGroup, ...]:
    """Cuts every class of like layers into groups of about the smallest class's bytes.

    Blocks are equal then with little waste, so any group can use any free block.
    """
    classes: dict[LayerKV, list[int]] = {}
    for layer_id, layer in enumerate(layers):
        classes.setdefault(layer, []).append(layer_id)
    target = min(kind.elements_per_token * len(ids) for kind, ids in classes.items())
    groups: list[KVGroup] = []
    for kind, layer_ids in classes.items():
        num_groups = -(-kind.elements_per_token * len(layer_ids) // target)
        layers_per_group = -(-len(layer_ids) // num_groups)
        for start in range(0, len(layer_ids), layers_per_group):
            groups.append(
                KVGroup(
                    group_id=len(groups),
                    layer_ids=tuple(layer_ids[start : start + layers_per_group]),
                    sliding_window=kind.sliding_window,
                    num_kv_heads=kind.num_kv_heads,
                    k_head_dim=kind.k_head_dim,
                    v_head_dim=kind.v_head_dim,
                )
            )
    return tuple(groups)
