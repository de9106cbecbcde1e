"""Waiting for other processes on shared memory, compiled by numba, without Python's lock.

``address`` is the first counter's; each is an int64 on a cache line of its own.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LINE_BYTES = 64

_INT64 = ir.IntType(64)


@intrinsic
def _load_acquire(typing_context, address):
    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _INT64.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _store_release(typing_context, address, value):
    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _INT64.as_pointer())
        builder.store_atomic(arguments[1], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@njit("void(int64, int64, int64)")
def arrive(address, rank, turn):
    """What this process has written so far can be read by those that see it has arrived."""
    _store_release(address + rank * LINE_BYTES, turn)


@njit("boolean(int64, int64, int64, int64)", nogil=True)
def have_arrived(address, num_ranks, turn, num_looks):
    """Whether all ranks have, at the latest at the last look."""
    num_seen = 0
    for _ in range(num_looks):
        while num_seen < num_ranks and _load_acquire(address + num_seen * LINE_BYTES) >= turn:
            num_seen += 1
        if num_seen == num_ranks:
            return True
    return False
