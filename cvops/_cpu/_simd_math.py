"""Arithmetic, comparisons, exponentials and logarithms of sixteen floats (see `_simd`).

Sums, products and quotients are rounded one by one, as NumPy's are: only within `exp` and `log` may a product and a sum
become one instruction. LLVM makes calls of scalar functions of a loop over the C library's, several times slower.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba.core import types

from ._jit import intrinsic

# float32 and float64: bits of the fraction, offset of the exponent, terms of the series, the part of log(2) with few
# bits (so that its products with exponents are exact) and the rest of it.
_FORMATS = {
    32: (23, 127, 7, 4, 0.693359375, -2.1219444005469057e-4),
    64: (52, 1023, 13, 10, 0.693145751953125, 1.4286068203094173e-6),
}


def _elementwise(operation: str) -> Any:
    def of_lanes(typingctx: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, operation)(*arguments)

        return a(a, b), generate

    return intrinsic(of_lanes)


add, subtract, multiply, divide = (_elementwise(operation) for operation in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
def at_most(typingctx: Any, a: Any, limit: Any) -> Any:
    """The smaller of each pair of lanes; NaN in `a` stays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), arguments[1], arguments[0])

    return a(a, limit), generate


@intrinsic
def above(typingctx: Any, a: Any, b: Any) -> Any:
    """A bit for each lane, that of the first the lowest: whether that of `a` is greater than that of `b`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        flags = builder.fcmp_ordered(">", *arguments)
        return builder.zext(builder.bitcast(flags, ir.IntType(flags.type.count)), ir.IntType(64))

    return types.uint64(a, a), generate


@intrinsic
def first_of(typingctx: Any, bits: Any) -> Any:
    """The place of the lowest bit of an integer that has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


def _is_better(builder: Any, best: Any, other: Any) -> Any:
    return builder.and_(builder.fcmp_unordered(">", other, best), builder.fcmp_ordered("ord", other, other))


@intrinsic
def better(typingctx: Any, best: Any, other: Any) -> Any:
    """The larger of each pair of lanes, `best` where they are equal; a number where the other is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        best, other = arguments
        return builder.select(_is_better(builder, best, other), other, best)

    return best(best, best), generate


@intrinsic
def keep_better(typingctx: Any, best: Any, other: Any, kept: Any, candidate: Any) -> Any:
    """Lanes of `candidate` where `better(best, other)` is `other`, else of `kept`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        best, other, kept, candidate = arguments
        return builder.select(_is_better(builder, best, other), candidate, kept)

    return kept(best, best, kept, kept), generate


@intrinsic
def best_lane(typingctx: Any, values: Any, labels: Any) -> Any:
    """(value, label) of the lane that is best by `better`, of the lowest label among equals."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, labels = arguments
        count = values.type.count
        half = count // 2
        while half:
            turned = ir.Constant(ir.VectorType(ir.IntType(32), count), [(k + half) % count for k in range(count)])
            others, labels_of_others = (builder.shuffle_vector(each, each, turned) for each in (values, labels))
            first = builder.icmp_signed("<", labels_of_others, labels)
            equal = builder.and_(builder.fcmp_ordered("==", others, values), first)
            wins = builder.or_(_is_better(builder, values, others), equal)
            values, labels = builder.select(wins, others, values), builder.select(wins, labels_of_others, labels)
            half //= 2
        zero = ir.Constant(ir.IntType(32), 0)
        results = [builder.extract_element(each, zero) for each in (values, labels)]
        return context.make_tuple(builder, signature.return_type, results)

    return types.Tuple((values.element, labels.element))(values, labels), generate


class _Code:
    """Instructions on vectors of one type of float."""

    def __init__(self, builder: Any, vector: Any, bits: int) -> None:
        self.builder, self.vector = builder, vector
        self.integers = ir.VectorType(ir.IntType(bits), vector.count)

    def real(self, value: float) -> Any:
        return ir.Constant(self.vector, [value] * self.vector.count)

    def whole(self, value: int) -> Any:
        return ir.Constant(self.integers, [value] * self.vector.count)

    def as_whole(self, value: Any) -> Any:
        return self.builder.bitcast(value, self.integers)

    def madd(self, a: Any, b: Any, c: Any) -> Any:
        product = self.builder.fmul(a, b, flags=("contract",))
        return self.builder.fadd(product, c, flags=("contract",))

    def series(self, x: Any, coefficients: list[float]) -> Any:
        """The polynomial with these coefficients, the last one first."""
        value = self.real(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = self.madd(value, x, self.real(coefficient))
        return value

    def power_of_two(self, exponent: Any, fraction: int, offset: int) -> Any:
        biased = self.builder.add(exponent, self.whole(offset))
        return self.builder.bitcast(self.builder.shl(biased, self.whole(fraction)), self.vector)


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """The exponential of each lane, off by at most two units in the last place; subnormal, infinite, NaN as it is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = x.element.bitwidth
        fraction, offset, terms, _, high, low = _FORMATS[bits]
        value = arguments[0]
        code = _Code(builder, value.type, bits)
        # Beyond these all is infinite or zero. NaN passes both.
        largest, smallest = code.real((offset + 2) * math.log(2)), code.real(-(offset + fraction + 2) * math.log(2))
        value = builder.select(builder.fcmp_ordered(">", value, largest), largest, value)
        value = builder.select(builder.fcmp_ordered("<", value, smallest), smallest, value)
        # x = n * log(2) + rest: adding this number rounds to an integer, which stands in the last bits of the sum.
        rounder = code.real(1.5 * 2.0**fraction)
        sum = code.madd(value, code.real(1 / math.log(2)), rounder)
        n = builder.fsub(sum, rounder)
        rest = code.madd(n, code.real(-low), code.madd(n, code.real(-high), value))
        power = code.series(rest, [1 / math.factorial(k) for k in range(terms + 1)])
        # In two steps, because 2**n alone may be too large or too small where the result is not.
        n = builder.sub(code.as_whole(sum), code.as_whole(rounder))
        half = builder.ashr(n, code.whole(1))
        for part in (half, builder.sub(n, half)):
            power = builder.fmul(power, code.power_of_two(part, fraction, offset))
        return power

    return x(x), generate


@intrinsic
def log(typingctx: Any, x: Any) -> Any:
    """The natural logarithm of each lane, off by at most three units in the last place; below 0 NaN, of 0 -inf."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = x.element.bitwidth
        fraction, offset, _, terms, high, low = _FORMATS[bits]
        value = arguments[0]
        code = _Code(builder, value.type, bits)
        # x = 2**n * m, m from sqrt(1/2) to sqrt(2); subnormal numbers are made normal before.
        tiny = builder.fcmp_ordered("<", value, code.real(2.0 ** (1 - offset)))
        normal = builder.select(tiny, builder.fmul(value, code.real(2.0 ** (fraction + 1))), value)
        pattern, least = code.as_whole(normal), code.as_whole(code.real(math.sqrt(0.5)))
        n = builder.ashr(builder.sub(pattern, least), code.whole(fraction))
        m = builder.bitcast(builder.sub(pattern, builder.shl(n, code.whole(fraction))), code.vector)
        n = builder.sub(n, builder.select(tiny, code.whole(fraction + 1), code.whole(0)))
        n = builder.sitofp(n, code.vector)
        # log(m) = 2 artanh(s), an odd series.
        one = code.real(1.0)
        s = builder.fdiv(builder.fsub(m, one), builder.fadd(m, one))
        of_squares = code.series(builder.fmul(s, s), [2 / (2 * k + 1) for k in range(terms + 1)])
        result = code.madd(n, code.real(high), code.madd(n, code.real(low), builder.fmul(s, of_squares)))
        for predicate, number, special in (
            (builder.fcmp_ordered, math.inf, math.inf), (builder.fcmp_ordered, 0.0, -math.inf),
        ):  # fmt: skip
            result = builder.select(predicate("==", value, code.real(number)), code.real(special), result)
        return builder.select(builder.fcmp_unordered("<", value, code.real(0.0)), code.real(math.nan), result)

    return x(x), generate
