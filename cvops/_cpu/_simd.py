"""Sixteen floats as one value, for kernels that read like scalar code and compile to vector instructions.

LLVM unrolls a short loop over 16 lanes into scalar code before its vectoriser sees it; a value of this type stays in
vector registers instead. It has 512 bits in float32 and 1024 in float64, which LLVM splits into the registers that the
processor has. A row is also such a value, as wide as suits a matrix product on this processor (`multiply`). `madd` may
become one instruction that rounds once or two that round twice: nothing may be decided by its result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.codegen import get_host_cpu_features
from numba.core.imputils import impl_ret_borrowed
from numba.extending import models, register_model
from numba.np.arrayobj import populate_array

from ._jit import intrinsic, jit

WIDTH = 16
# Arguments of `multiply`: a literal would have a type of its own, for which it would be compiled again.
ZERO, ONE = np.int64(0), np.int64(1)
# `multiply` keeps six rows of sums and one row of factors in registers: a row takes four of 32 registers (of 64 bytes
# with AVX-512), or two of 16 (of 32 bytes).
_FEATURES = get_host_cpu_features() if numba.config.CPU_FEATURES is None else numba.config.CPU_FEATURES
ROW_BYTES = 256 if "+avx512f" in _FEATURES else 64


class Lanes(types.Type):
    """Numba's type of `width` lanes of one element type: float32 or float64, or int32 for indices that go with them."""

    def __init__(self, element: Any, width: int = WIDTH) -> None:
        self.element = element
        self.width = width
        super().__init__(name=f"Lanes({element}, {width})")


_ELEMENTS = {types.float64: ir.DoubleType(), types.float32: ir.FloatType(), types.int32: ir.IntType(32)}


def _vector(element: Any, width: int = WIDTH) -> ir.VectorType:
    return ir.VectorType(_ELEMENTS[element], width)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any) -> None:
        super().__init__(manager, lanes, _vector(lanes.element, lanes.width))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, width: int = WIDTH) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _vector(array_type.dtype, width).as_pointer())


def _splat(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None))


def _converted(builder: Any, value: Any, source: Any, target: Any) -> Any:
    """A vector of `source` elements, converted to `target` elements: both are floats, or both are the same type."""
    if source.bitwidth < target.bitwidth:
        return builder.fpext(value, _vector(target))
    if source.bitwidth > target.bitwidth:
        return builder.fptrunc(value, _vector(target))
    return value


def _load(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array, index = arguments[:2]
    pointer = _pointer(context, builder, signature.args[0], array, index, signature.return_type.width)
    return builder.load(pointer, align=signature.args[0].dtype.bitwidth // 8)


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The sixteen elements of a C-contiguous array from the flat `index` on."""
    return Lanes(array.dtype)(array, types.int64), _load


@intrinsic
def load_like(typingctx: Any, array: Any, index: Any, like: Any) -> Any:
    """The elements of a C-contiguous array from the flat `index` on, as many as `like` has lanes."""
    return like(array, types.int64, like), _load


@intrinsic
def load_one(typingctx: Any, array: Any, index: Any) -> Any:
    """One element of a C-contiguous array. Unlike `array[index]`, this makes no code for an index that is negative."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.int64), generate


@intrinsic
def flattened(typingctx: Any, array: Any) -> Any:
    """The elements of a C-contiguous array, of whose type no layout is known, as an array of one dimension."""
    flat = types.Array(array.dtype, 1, "C", readonly=not array.mutable)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = context.make_array(array)(context, builder, arguments[0])
        target = context.make_array(flat)(context, builder)
        populate_array(
            target,
            data=source.data,
            shape=[source.nitems],
            strides=[source.itemsize],
            itemsize=source.itemsize,
            meminfo=source.meminfo,
            parent=source.parent,
        )
        return impl_ret_borrowed(context, builder, flat, target._getvalue())

    return flat(array), generate


@intrinsic
def read_once(typingctx: Any, array: Any, index: Any) -> Any:
    """As `load_one`, for an array that another thread may be changing: the value that is checked is the one used.

    An ordinary load does not promise that, because a compiler may repeat it.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.gep(data, [arguments[1]])
        return builder.load_atomic(pointer, "monotonic", signature.args[0].dtype.bitwidth // 8)

    return array.dtype(array, types.int64), generate


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write `value` to a C-contiguous array from the flat `index` on, in the dtype of the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, value = arguments
        pointer = _pointer(context, builder, signature.args[0], array, index, signature.args[2].width)
        value = _converted(builder, value, signature.args[2].element, signature.args[0].dtype)
        builder.store(value, pointer, align=signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), generate


def _full(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    lanes = signature.return_type
    return _splat(builder, arguments[0], _vector(lanes.element, lanes.width))


@intrinsic
def full(typingctx: Any, value: Any) -> Any:
    """The scalar `value` in every lane."""
    return Lanes(value)(value), _full


@intrinsic
def full_row(typingctx: Any, value: Any) -> Any:
    """The scalar `value` in every lane of a row."""
    return Lanes(value, ROW_BYTES * 8 // value.bitwidth)(value), _full


@intrinsic
def madd(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """The sum a * b + c, rounded once or twice depending on the processor; `a` is lanes or a scalar."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factor = arguments[0]
        if not isinstance(signature.args[0], Lanes):
            factor = _splat(builder, factor, _vector(signature.args[1].element, signature.args[1].width))
        product = builder.fmul(factor, arguments[1], flags=("contract",))
        return builder.fadd(product, arguments[2], flags=("contract",))

    return b(a if isinstance(a, Lanes) else b.element, b, b), generate


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of each pair of lanes: `a` where they are equal, and NaN where one of them is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second = arguments
        greater = builder.fcmp_ordered(">", second, first)
        return builder.select(builder.or_(greater, builder.fcmp_unordered("uno", second, second)), second, first)

    return a(a, a), generate


@intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """The sum of the lanes, added pairwise."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = _vector(signature.args[0].element)
        name = f"llvm.vector.reduce.fadd.v{WIDTH}f{signature.args[0].element.bitwidth}"
        function_type = ir.FunctionType(vector.element, [vector.element, vector])
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, [ir.Constant(vector.element, -0.0), arguments[0]], fastmath=("reassoc",))

    return a.element(a), generate


@intrinsic
def keep_first_maximum(typingctx: Any, best: Any, other: Any, kept: Any, candidate: Any) -> Any:
    """For the index of a maximum: `candidate` where `maximum(best, other)` comes from `other`, else `kept`.

    So `kept` follows the first of equal maxima, and the first NaN.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, kept, candidate = arguments
        greater_or_nan = builder.fcmp_unordered(">", second, first)
        return builder.select(builder.and_(greater_or_nan, builder.fcmp_ordered("ord", first, first)), candidate, kept)

    return kept(best, best, kept, kept), generate


@intrinsic
def transpose_square(
    typingctx: Any, source: Any, i: Any, source_stride: Any, target: Any, j: Any, target_stride: Any
) -> Any:
    """target[j + c * target_stride + r] = source[i + r * source_stride + c] for r and c from 0 to 15.

    The values are converted to the dtype of `target`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_type, target_type = signature.args[0], signature.args[3]
        source, i, source_stride, target, j, target_stride = arguments
        rows = []
        for _ in range(WIDTH):
            pointer = _pointer(context, builder, source_type, source, i)
            rows.append(builder.load(pointer, align=source_type.dtype.bitwidth // 8))
            i = builder.add(i, source_stride)
        # A matrix of four quarters is transposed by exchanging the two off its diagonal and then transposing each
        # quarter in the same way: first the square of 16, then its quarters of 8, and so on.
        for half in (8, 4, 2, 1):
            upper = _choice(k + WIDTH - half if k & half else k for k in range(WIDTH))
            lower = _choice(k + WIDTH if k & half else k + half for k in range(WIDTH))
            for r in range(WIDTH):
                if not r & half:
                    pair = rows[r], rows[r + half]
                    rows[r] = builder.shuffle_vector(*pair, upper)
                    rows[r + half] = builder.shuffle_vector(*pair, lower)
        for row in rows:
            value = _converted(builder, row, source_type.dtype, target_type.dtype)
            pointer = _pointer(context, builder, target_type, target, j)
            builder.store(value, pointer, align=target_type.dtype.bitwidth // 8)
            j = builder.add(j, target_stride)
        return context.get_dummy_value()

    index = types.int64
    return types.void(source, index, index, target, index, index), generate


@intrinsic
def load_every_fourth(typingctx: Any, array: Any, index: Any) -> Any:
    """Four values of 16 lanes: value r is array[index + r], array[index + r + 4], ... of a C-contiguous array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        runs = []
        for part in range(4):
            index = builder.add(arguments[1], ir.Constant(ir.IntType(64), part * WIDTH))
            pointer = _pointer(context, builder, signature.args[0], arguments[0], index)
            runs.append(builder.load(pointer, align=signature.args[0].dtype.bitwidth // 8))
        even, odd = _choice(range(0, 2 * WIDTH, 2)), _choice(range(1, 2 * WIDTH, 2))
        halves = [[builder.shuffle_vector(*pair, half) for pair in (runs[:2], runs[2:])] for half in (even, odd)]
        lanes = [builder.shuffle_vector(*halves[r % 2], odd if r // 2 else even) for r in range(4)]
        return context.make_tuple(builder, signature.return_type, lanes)

    return types.UniTuple(Lanes(array.dtype), 4)(array, types.int64), generate


@intrinsic
def store_every_fourth(typingctx: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The inverse of `load_every_fourth`: write a, b, c and d, which have the dtype of the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, *lanes = arguments
        first, second = (_choice(k // 2 + k % 2 * WIDTH + begin for k in range(WIDTH)) for begin in (0, WIDTH // 2))
        for half in (first, second):
            even, odd = (builder.shuffle_vector(lanes[r], lanes[r + 2], half) for r in range(2))
            for quarter in (first, second):
                pointer = _pointer(context, builder, signature.args[0], array, index)
                value = builder.shuffle_vector(even, odd, quarter)
                builder.store(value, pointer, align=signature.args[0].dtype.bitwidth // 8)
                index = builder.add(index, ir.Constant(ir.IntType(64), WIDTH))
        return context.get_dummy_value()

    return types.void(array, types.int64, a, a, a, a), generate


def _choice(lanes: Iterable[int]) -> Any:
    """The constant by which a shuffle takes these lanes of the 32 of two vectors."""
    return ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), list(lanes))


@jit(contract=True)
def multiply(
    a, a0, a_stride, a_runs, a_column_stride, b, b0, b_runs, b_stride, length,
    c, c0, c_stride, rows, columns, accumulate,
):  # fmt: skip
    """Matrix product in flat arrays: c = a @ b, or c += a @ b to `accumulate`. It computes

        for i in range(rows):
            for j in range(columns):
                for a_run, b_run in zip(a_runs, b_runs):
                    for k in range(length):
                        c[c0 + i * c_stride + j] += (
                            a[a0 + i * a_stride + a_run + k * a_column_stride] * b[b0 + b_run + k * b_stride + j]
                        )

    where a stride without other name is that between rows. So the columns of `a`, and the rows of `b`, lie in runs of
    `length`, and the runs may lie anywhere. Columns of `c` are computed up to the next multiple of 16: `b` must be
    readable and `c` writable there.
    """
    zero, row_zero = full(c.dtype.type(0)), full_row(c.dtype.type(0))
    width = ROW_BYTES // c.itemsize
    j = 0
    while j < columns and j + width < columns + WIDTH:
        for i in range(0, rows, 6):
            _multiply_rows(
                row_zero, a, a0 + i * a_stride, a_stride, a_runs, a_column_stride, b, b0 + j, b_runs, b_stride, length,
                c, c0 + i * c_stride + j, c_stride, min(6, rows - i), accumulate,
            )  # fmt: skip
        j += width
    while j < columns:
        for i in range(0, rows, 6):
            _multiply_rows(
                zero, a, a0 + i * a_stride, a_stride, a_runs, a_column_stride, b, b0 + j, b_runs, b_stride, length,
                c, c0 + i * c_stride + j, c_stride, min(6, rows - i), accumulate,
            )  # fmt: skip
        j += WIDTH


@jit(contract=True)
def _multiply_rows(
    zero, a, a0, a_stride, a_runs, a_column_stride, b, b0, b_runs, b_stride, length, c, c0, c_stride, rows, accumulate
):  # fmt: skip
    """As `multiply`, for at most six rows, and as many columns as `zero` has lanes."""
    last = rows - 1  # with fewer than six rows the last one is computed again instead, and not stored
    a1, a2, a3 = a0 + min(1, last) * a_stride, a0 + min(2, last) * a_stride, a0 + min(3, last) * a_stride
    a4, a5 = a0 + min(4, last) * a_stride, a0 + min(5, last) * a_stride
    s0 = s1 = s2 = s3 = s4 = s5 = zero
    for r in range(len(a_runs)):
        begin, j = a_runs[r], b0 + b_runs[r]
        for k in range(begin, begin + length * a_column_stride, a_column_stride):
            row = load_like(b, j, zero)
            s0 = madd(load_one(a, a0 + k), row, s0)
            s1 = madd(load_one(a, a1 + k), row, s1)
            s2 = madd(load_one(a, a2 + k), row, s2)
            s3 = madd(load_one(a, a3 + k), row, s3)
            s4 = madd(load_one(a, a4 + k), row, s4)
            s5 = madd(load_one(a, a5 + k), row, s5)
            j += b_stride
    _put(c, c0, s0, accumulate)
    if rows > 1:
        _put(c, c0 + c_stride, s1, accumulate)
    if rows > 2:
        _put(c, c0 + 2 * c_stride, s2, accumulate)
    if rows > 3:
        _put(c, c0 + 3 * c_stride, s3, accumulate)
    if rows > 4:
        _put(c, c0 + 4 * c_stride, s4, accumulate)
    if rows > 5:
        _put(c, c0 + 5 * c_stride, s5, accumulate)


@jit(contract=True)
def _put(c, c0, row, accumulate):
    store(c, c0, madd(c.dtype.type(1), load_like(c, c0, row), row) if accumulate else row)
