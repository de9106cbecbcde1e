"""Bytes as people read them."""

from __future__ import annotations


def size_text(num_bytes: float) -> str:
    for unit, num in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= num:
            return f"{num_bytes / num:.1f} {unit}".replace(".0 ", " ")
    return f"{num_bytes:g} bytes"
