"""Sixteen floats as one value, for kernels that read like scalar code and compile to vector instructions.

LLVM unrolls a short loop over 16 lanes into scalar code before its vectoriser sees it; a value of this type stays in
vector registers instead. It is 512 bits of float32 or twice that of float64, which LLVM splits into what the processor
has. Only addition and multiplication may be contracted into one instruction (`madd`), so never decide by a `madd`.

Numba's caches do not notice a change of this file: `make clean` after editing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.extending import models, register_model

WIDTH = 16

# Its own type says that callers pass the typing context.
intrinsic: Callable[[Callable[..., Any]], Any] = extending.intrinsic


class Lanes(types.Type):
    """Numba's type of sixteen `element`s (float32, float64, or int32 to go along with them)."""

    def __init__(self, element: Any) -> None:
        self.element = element
        super().__init__(name=f"Lanes({element})")


_ELEMENTS = {types.float64: ir.DoubleType(), types.float32: ir.FloatType(), types.int32: ir.IntType(32)}


def _vector(element: Any) -> ir.VectorType:
    return ir.VectorType(_ELEMENTS[element], WIDTH)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any) -> None:
        super().__init__(manager, lanes, _vector(lanes.element))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _vector(array_type.dtype).as_pointer())


def _splat(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), None))


def _converted(builder: Any, value: Any, source: Any, target: Any) -> Any:
    """A vector of `source` elements as one of `target` elements: floats, or both of one type."""
    if source.bitwidth < target.bitwidth:
        return builder.fpext(value, _vector(target))
    if source.bitwidth > target.bitwidth:
        return builder.fptrunc(value, _vector(target))
    return value


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """The sixteen elements of a C-contiguous array from the flat `index` on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=signature.args[0].dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.int64), generate


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write `value` to a C-contiguous array from the flat `index` on, in the dtype of the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        value = _converted(builder, arguments[2], signature.args[2].element, signature.args[0].dtype)
        builder.store(value, pointer, align=signature.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), generate


@intrinsic
def full(typingctx: Any, value: Any) -> Any:
    """The scalar `value` in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0], _vector(signature.args[0]))

    return Lanes(value)(value), generate


@intrinsic
def madd(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """The sum a * b + c, rounded once or twice as the processor likes; `a` is lanes or a scalar."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factor = arguments[0]
        if not isinstance(signature.args[0], Lanes):
            factor = _splat(builder, factor, _vector(signature.args[1].element))
        product = builder.fmul(factor, arguments[1], flags=("contract",))
        return builder.fadd(product, arguments[2], flags=("contract",))

    return b(a if isinstance(a, Lanes) else b.element, b, b), generate


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of each pair of lanes, `a` where they are equal, NaN where one is."""

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
    """Lanes of `candidate` where `maximum(best, other)` is new in `other`, else of `kept`; the first NaN stays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, kept, candidate = arguments
        greater_or_nan = builder.fcmp_unordered(">", second, first)
        return builder.select(builder.and_(greater_or_nan, builder.fcmp_ordered("ord", first, first)), candidate, kept)

    return kept(best, best, kept, kept), generate


@intrinsic
def transpose(typingctx: Any, source: Any, i: Any, step: Any, target: Any, j: Any, pace: Any) -> Any:
    """target[j + c * pace + r] = source[i + r * step + c] for r and c from 0 to 15, in the dtype of `target`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_type, target_type = signature.args[0], signature.args[3]
        source, i, step, target, j, pace = arguments
        rows = []
        for _ in range(WIDTH):
            pointer = _pointer(context, builder, source_type, source, i)
            rows.append(builder.load(pointer, align=source_type.dtype.bitwidth // 8))
            i = builder.add(i, step)
        # Exchange the quarters off the diagonal: of the square of 16, then in each of its quarters, and so on.
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
            j = builder.add(j, pace)
        return context.get_dummy_value()

    index = types.int64
    return types.void(source, index, index, target, index, index), generate


def _choice(lanes: Iterable[int]) -> Any:
    """The constant by which a shuffle takes these lanes of the 32 of two vectors."""
    return ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), list(lanes))
