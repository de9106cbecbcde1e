"""Compiled loops on the threads that torch's own kernels run on.

A second pool of threads would fight with torch's for the cores, as idle threads spin for a while
after each parallel region. So loops start through the OpenMP library that torch has loaded (by
GNU's entry point, GOMP_parallel): 1.2 microseconds from Python, for one thread or two.

A kernel's body is a ``numba.cfunc`` of ``body_signature``. It reads its arguments, int64 each,
with ``arguments(address)``, and does this thread's ``share`` of the items.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pdray.core.errors import ConfigError

_SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_MAX_ARGUMENTS = 24

body_signature = types.void(types.voidptr)


def _find_library() -> ctypes.CDLL | None:
    """As torch's wheels carry it, or as Linux distributions name it."""
    for name in (str(Path(torch.__file__).parent / "lib" / "libgomp.so.1"), "libgomp.so.1"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


_library = _find_library()
is_available = _library is not None

if _library is not None:
    for _symbol in _SYMBOLS:
        # By name, so that compiled code can be kept on disk: an address changes.
        _address = ctypes.cast(getattr(_library, _symbol), ctypes.c_void_p).value
        llvm.add_symbol(f"pdray_{_symbol}", _address)

_parallel = types.ExternalFunction(
    "pdray_GOMP_parallel", types.void(types.intp, types.voidptr, types.uint32, types.uint32)
)
_thread_number = types.ExternalFunction("pdray_omp_get_thread_num", types.int32())
_num_threads = types.ExternalFunction("pdray_omp_get_num_threads", types.int32())


@intrinsic
def pointer(typing_context, address):
    """An address as the pointer that ``carray`` takes."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@njit
def share(count):
    """[start, end) of ``count`` items: this thread's part of a parallel region."""
    thread, threads = _thread_number(), _num_threads()
    return count * thread // threads, count * (thread + 1) // threads


@njit
def arguments(address):
    return carray(address, _MAX_ARGUMENTS, types.int64)


@njit(cache=True)
def launch(body, num_threads, values):
    """Runs the body at that address on so many threads, and waits for them. ``values`` are a
    tuple of Python ints, which the body finds in its arguments."""
    copied = np.empty(_MAX_ARGUMENTS, np.int64)
    for i, value in enumerate(values):
        copied[i] = value
    _parallel(body, pointer(copied.ctypes.data), np.uint32(num_threads), np.uint32(0))


def compile_body(function: Callable[[int], None]) -> int:
    """A body's address; its code is kept on disk. Compiled once in a process."""
    address: int = _compiled(function).address
    return address


@functools.cache
def _compiled(function):
    if not is_available:
        raise ConfigError(
            "this torch has no GNU OpenMP library to run compiled kernels on; accepted: "
            "attention_backend = 'sdpa'"
        )
    return cfunc(body_signature, cache=True)(function)


def float_bits(number: float) -> int:
    """A float as an argument of a body, which reads it with ``as_float``."""
    bits: int = struct.unpack("q", struct.pack("d", number))[0]
    return bits
