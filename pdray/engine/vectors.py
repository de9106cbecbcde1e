"""Small products whose sums stay in vector registers, written as LLVM's vector instructions.

A compiler that vectorizes plain loops keeps one row's sums in registers, and loads each operand
again for the next row. These load an operand once for all rows. Sizes are fixed when they are
made; rows are at addresses, with the bytes from one to the next. Inputs and sums are fp32; what
they are multiplied with is stored in the kind of ``like``, fp32 or bf16. As much as is read of
that is fetched from ``ahead`` meanwhile, in order of address and little by little: only so does
it come as fast as memory gives it.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_features = llvm.get_host_cpu_features()
has_avx512: bool = _features.get("avx512f", False)
has_avx512_bf16: bool = _features.get("avx512bf16", False)
LANES = 16 if has_avx512 else 8
VECTOR_BYTES = 4 * LANES

_float, _int8, _int16 = ir.FloatType(), ir.IntType(8), ir.IntType(16)
_int32, _int64 = ir.IntType(32), ir.IntType(64)
_vector = ir.VectorType(_float, LANES)
_integers = ir.VectorType(_int32, LANES)
_LINE_BYTES = 64


def outer_product(num_rows: int, num_vectors: int):
    """Adds to sums [num_rows, num_vectors * LANES] the input [num_rows, size] times values [size,
    num_vectors * LANES]. The size is not 0."""

    @intrinsic
    def multiply(
        typing_context, like, data, data_bytes, values, value_bytes, size, sums, sum_bytes, ahead
    ):
        return types.void(like, *[types.int64] * 8), codegen

    def codegen(context, builder, signature, args):
        vectors = _Vectors(builder, is_bf16=signature.args[0].dtype == types.int16)
        _add_outer_product(
            vectors, (num_rows, num_vectors), vectors.load_stored, vectors.multiply_add, *args[1:]
        )
        return context.get_dummy_value()

    return multiply


def packed_product(num_rows: int, num_vectors: int):
    """An outer product whose input is of the kind of ``like`` too. In bf16, on a CPU with AVX-512's
    instruction for it, by pairs: the input [num_rows, size, 2], values [size, num_vectors * LANES,
    2]."""

    @intrinsic
    def multiply(
        typing_context, like, data, data_bytes, values, value_bytes, size, sums, sum_bytes, ahead
    ):
        return types.void(like, *[types.int64] * 8), codegen

    def codegen(context, builder, signature, args):
        vectors = _Vectors(builder, is_bf16=False)  # a pair has the size of a float
        is_bf16 = signature.args[0].dtype == types.int16
        add = vectors.multiply_add_pairs if is_bf16 else vectors.multiply_add
        _add_outer_product(vectors, (num_rows, num_vectors), vectors.load, add, *args[1:])
        return context.get_dummy_value()

    return multiply


def _add_outer_product(
    vectors, shape, load, add, data, data_bytes, values, value_bytes, size, sums, sum_bytes, ahead
):
    num_rows, num_vectors = shape
    places = [
        place
        for row in vectors.places(sums, num_rows, sum_bytes)
        for place in vectors.places(row, num_vectors, _int64(VECTOR_BYTES))
    ]

    def step(totals, ahead_at, data_at, values_at):
        vectors.fetch(ahead_at, num_vectors)
        row = [load(at) for at in vectors.places(values_at, num_vectors, vectors.stored_bytes(1))]
        return [
            add(factor, value, totals[r * num_vectors + i])
            for r, place in enumerate(vectors.places(data_at, num_rows, data_bytes))
            for factor in [vectors.broadcast(place)]
            for i, value in enumerate(row)
        ]

    strides = [
        (ahead, vectors.stored_bytes(num_vectors)),
        (data, _int64(4)),
        (values, value_bytes),
    ]
    totals = vectors.loop(size, strides, [vectors.load(place) for place in places], step)
    for place, total in zip(places, totals, strict=True):
        vectors.store(total, place)


def inner_product(num_rows: int, num_others: int):
    """Writes to out [num_rows, num_others] the products of the input's rows [num_rows, size] with
    others [num_others, size]. The size is a multiple of LANES and not 0."""

    @intrinsic
    def multiply(
        typing_context, like, data, data_bytes, others, other_bytes, size, out, out_bytes, ahead
    ):
        return types.void(like, *[types.int64] * 8), codegen

    def codegen(context, builder, signature, args):
        _, data, data_bytes, others, other_bytes, size, out, out_bytes, ahead = args
        vectors = _Vectors(builder, is_bf16=signature.args[0].dtype == types.int16)

        def step(totals, ahead_at, data_at, others_at):
            vectors.fetch(ahead_at, num_others)
            columns = [
                vectors.load_stored(place)
                for place in vectors.places(others_at, num_others, other_bytes)
            ]
            return [
                vectors.multiply_add(row, column, totals[r * num_others + i])
                for r, place in enumerate(vectors.places(data_at, num_rows, data_bytes))
                for row in [vectors.load(place)]
                for i, column in enumerate(columns)
            ]

        strides = [
            (ahead, vectors.stored_bytes(num_others)),
            (data, _int64(VECTOR_BYTES)),
            (others, vectors.stored_bytes(1)),
        ]
        zeros = [ir.Constant(_vector, [0.0] * LANES)] * (num_rows * num_others)
        num_steps = builder.udiv(size, _int64(LANES))
        sums = vectors.sum_lanes(vectors.loop(num_steps, strides, zeros, step))
        for row, place in enumerate(vectors.places(out, num_rows, out_bytes)):
            vectors.store(vectors.lanes(sums, row * num_others, num_others), place)
        return context.get_dummy_value()

    return multiply


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM has this type, and llvmlite no name for it."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class _Vectors:
    """Writes instructions on vectors of ``LANES`` floats. Addresses are integers."""

    def __init__(self, builder: ir.IRBuilder, *, is_bf16: bool) -> None:
        self._builder = builder
        self._is_bf16 = is_bf16

    def loop(self, count, strides, starts, step):
        """``count`` times, at least once: totals = step(totals, *addresses), with addresses that
        start and go on as ``strides`` say. What the totals are in the end."""
        builder = self._builder
        entry = builder.block
        body, after = (builder.append_basic_block(name) for name in ("step", "done"))
        builder.branch(body)
        builder.position_at_end(body)
        index = builder.phi(_int64)
        addresses = [builder.phi(_int64) for _ in strides]
        totals = [builder.phi(_vector) for _ in starts]
        nexts = [builder.add(index, _int64(1))]
        nexts += [
            builder.add(address, stride)
            for address, (_, stride) in zip(addresses, strides, strict=True)
        ]
        nexts += step(totals, *addresses)
        firsts = [_int64(0), *(first for first, _ in strides), *starts]
        for phi, first, following in zip((index, *addresses, *totals), firsts, nexts, strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", nexts[0], count), body, after)
        builder.position_at_end(after)
        return nexts[1 + len(strides) :]

    def after(self, address, count: int, stride):
        return self._builder.add(address, self._builder.mul(stride, _int64(count)))

    def places(self, address, count: int, stride):
        return [self.after(address, i, stride) for i in range(count)]

    def load(self, address):
        return self._builder.load(self._pointer(address, _vector), align=4)

    def stored_bytes(self, num_vectors: int):
        return _int64(num_vectors * (VECTOR_BYTES // 2 if self._is_bf16 else VECTOR_BYTES))

    def load_stored(self, address):
        if not self._is_bf16:
            return self.load(address)
        # The bits of a bf16 are the upper half of a float's.
        builder = self._builder
        halves = ir.VectorType(_int16, LANES)
        bits = builder.load(self._pointer(address, halves), align=2)
        shift = ir.Constant(_integers, [16] * LANES)
        return builder.bitcast(builder.shl(builder.zext(bits, _integers), shift), _vector)

    def store(self, value, address) -> None:
        self._builder.store(value, self._pointer(address, value.type), align=4)

    def broadcast(self, address):
        value = self._builder.load(self._pointer(address, _float), align=4)
        nothing = ir.Constant(_vector, ir.Undefined)
        first = self._builder.insert_element(nothing, value, _int32(0))
        return self._shuffle(first, nothing, [0] * LANES)

    def multiply_add(self, left, right, total):
        kind = ir.FunctionType(_vector, [_vector] * 3)
        function = cgutils.get_or_insert_function(
            self._builder.module, kind, f"llvm.fma.v{LANES}f32"
        )
        return self._builder.call(function, [left, right, total])

    def multiply_add_pairs(self, left, right, total):
        """``left`` and ``right`` are pairs of bf16."""
        pairs = ir.VectorType(_BFloat(), 2 * LANES)
        function = cgutils.get_or_insert_function(
            self._builder.module,
            ir.FunctionType(_vector, [_vector, pairs, pairs]),
            f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}",
        )
        left, right = (self._builder.bitcast(each, pairs) for each in (left, right))
        return self._builder.call(function, [total, left, right])

    def fetch(self, address, num_vectors: int) -> None:
        """Every cache line of so many stored vectors."""
        kind = ir.FunctionType(ir.VoidType(), [_int8.as_pointer(), _int32, _int32, _int32])
        function = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.prefetch.p0")
        to_read, into_second_cache, data = _int32(0), _int32(2), _int32(1)
        num_lines = -(-self.stored_bytes(num_vectors).constant // _LINE_BYTES)
        for place in self.places(address, num_lines, _int64(_LINE_BYTES)):
            self._builder.call(
                function, [self._pointer(place, _int8), to_read, into_second_cache, data]
            )

    def sum_lanes(self, vectors):
        """The sum of each vector's lanes, in the first lanes of one. As many as a power of two,
        LANES at most."""
        evens, odds = list(range(0, 2 * LANES, 2)), list(range(1, 2 * LANES, 2))
        num_levels = LANES.bit_length() - 1
        for _ in range(num_levels):
            left, right = (vectors[::2], vectors[1::2]) if len(vectors) > 1 else (vectors, vectors)
            vectors = [
                self._builder.fadd(self._shuffle(a, b, evens), self._shuffle(a, b, odds))
                for a, b in zip(left, right, strict=True)
            ]
        return vectors[0]

    def lanes(self, vector, start: int, count: int):
        return self._shuffle(vector, vector, list(range(start, start + count)))

    def _shuffle(self, left, right, lanes: list[int]):
        mask = ir.Constant(ir.VectorType(_int32, len(lanes)), lanes)
        return self._builder.shuffle_vector(left, right, mask)

    def _pointer(self, address, kind):
        return self._builder.inttoptr(address, kind.as_pointer())
