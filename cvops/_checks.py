"""The argument checks that operators share. Each is written once; all take native arrays or Python scalars."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Number, Rational, Real
from typing import Any

# Type codes, because `dtype.name` is slow: d float64, f float32, e float16, E bfloat16, which only a GPU lets through
# to here; the rest are the integers.
FLOATS = "dfeE"
INTEGERS = "bhilqBHILQ"
BOX_DTYPES = FLOATS + INTEGERS
_NAMES = {
    FLOATS: "float64, float32 or float16",
    INTEGERS: "an integer dtype",
    BOX_DTYPES: "float64, float32, float16 or an integer dtype",
}
# As NumPy and most others call it; the seam puts in what the library of the argument has.
CONVERSION = "convert it with .astype"
# Larger steps and paddings than this are mistakes, and would overflow in the arithmetic of kernels.
_MOST = 2**31 - 1


def check_dtype(array: Any, name: str, allowed: str) -> None:
    """Raise TypeError unless the dtype of `array` is in `allowed`, one of the groups above."""
    if array.dtype.char not in allowed:
        raise TypeError(f"`{name}` must be {_NAMES[allowed]}, got {array.dtype}: {CONVERSION}")


def check_boxes(array: Any, name: str) -> None:
    """Raise unless `array` has shape (L, 4) and a dtype that boxes may have."""
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"`{name}` must have shape (L, 4), got {array.shape}")
    check_dtype(array, name, BOX_DTYPES)


def check_batched_boxes(array: Any, name: str) -> None:
    """Raise unless `array` has shape (..., 4) and a dtype that boxes may have."""
    if array.ndim < 1 or array.shape[-1] != 4:
        raise ValueError(f"`{name}` must have shape (..., 4), got {array.shape}")
    check_dtype(array, name, BOX_DTYPES)


def check_batches(batch1: Sequence[int], batch2: Sequence[int]) -> None:
    """Raise ValueError unless these shapes, the leading dimensions of `boxes1` and `boxes2`, broadcast."""
    for one, two in zip(batch1[::-1], batch2[::-1], strict=False):
        if one != two and 1 not in (one, two):
            text = f"got {tuple(batch1)} and {tuple(batch2)}"
            raise ValueError(f"`boxes1` and `boxes2` must have leading dimensions alike, {text}")


def check_images(array: Any, name: str) -> None:
    """Raise unless `array` has shape (N, C, H, W), with at least one pixel in a plane, and a dtype that images have."""
    if array.ndim != 4 or 0 in array.shape[2:]:
        raise ValueError(f"`{name}` must have shape (N, C, H, W) with H and W >= 1, got {array.shape}")
    check_dtype(array, name, FLOATS)


def check_rois(array: Any, name: str, columns: int) -> None:
    """Raise unless `array` has shape (K, columns), 4 or with the image index 5, and a dtype that RoIs may have."""
    if array.ndim != 2 or array.shape[1] != columns:
        text = f"`{name}` must have shape ({'K' if columns == 5 else 'L'}, {columns}), got {array.shape}"
        if columns == 5 and array.ndim == 2 and array.shape[1] == 4:
            text += ": give (image index, x1, y1, x2, y2) for each, or a list of arrays, one for each image"
        raise ValueError(text)
    check_dtype(array, name, FLOATS)


def check_boxes_of_images(boxes: Sequence[Any], images: int) -> None:
    """Raise ValueError unless the list `boxes` has one array for each image."""
    if len(boxes) != images:
        raise ValueError(f"`boxes` must be a list of one array for each image, {images}, got {len(boxes)}")


def check_grad(array: Any, name: str, rois: int, channels: float, size: tuple[int, int] | None = None) -> None:
    """Raise unless `array` has shape (rois, channels, *size), by default of any size, and a dtype that images have."""
    bins = array.shape[2:]
    if array.ndim != 4 or array.shape[:2] != (rois, channels) or 0 in bins or (size is not None and bins != size):
        wanted = f"K = {rois}, C = {channels:g}, " + (f"PH = {size[0]}, PW = {size[1]}" if size else "PH and PW >= 1")
        raise ValueError(f"`{name}` must have shape (K, C, PH, PW) with {wanted}, got {array.shape}")
    check_dtype(array, name, FLOATS)


def check_format(fmt: Any, name: str) -> None:
    """Raise unless `fmt` is a format of boxes."""
    if isinstance(fmt, str) and fmt in ("xywhr", "cxcywhr", "xyxyxyxy"):
        raise ValueError(f"`{name}` {fmt!r}: rotated boxes are not supported yet")
    one_of(fmt, name, ("xyxy", "xywh", "cxcywh"))


def check_length(array: Any, name: str, length: int, of: str) -> None:
    """Raise ValueError unless `array` has shape (length,), the length of the argument named `of`."""
    if array.shape != (length,):
        raise ValueError(f"`{name}` must have shape ({length},), the length of `{of}`, got {array.shape}")


def number(value: Any, name: str, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """`value` as a float from `minimum` to `maximum`, not NaN."""
    real = value if type(value) is float else _float(value, name)
    if not minimum <= real <= maximum:
        wanted = "a number" if minimum == -math.inf else f">= {minimum:g}"
        if maximum != math.inf:
            wanted = f"from {minimum:g} to {maximum:g}"
        raise ValueError(f"`{name}` must be {wanted}, got {shown(value)}")
    return real


def _float(value: Any, name: str) -> float:
    value = _scalar(value)
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a Python or NumPy number, got {type(value).__name__}")
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if abs(real) == math.inf and real != value and -real != value:
        raise ValueError(f"`{name}` must be a number that a float holds, got {shown(value)}")
    return real


def _scalar(value: Any) -> Any:
    """`value`, or the one element of a NumPy array without dimensions.

    Arrays of other libraries are refused by who asks: on a GPU, reading one would wait for the device.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray) and value.ndim == 0:
        return value[()]
    return value


def integer(value: Any, name: str) -> int:
    """`value` as an int."""
    if type(value) is int:
        return value
    value = _scalar(value)
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__}")
    return int(value)


def count(value: Any, name: str, minimum: int = 0, maximum: float = _MOST) -> int:
    """`value` as an int from `minimum` to `maximum`."""
    whole = integer(value, name)
    if not minimum <= whole <= maximum:
        wanted = f">= {minimum}" if whole < minimum else f"<= {maximum}"
        raise ValueError(f"`{name}` must be {wanted}, got {shown(whole)}")
    return whole


def flag(value: Any, name: str) -> bool:
    """`value`, a Python or NumPy bool or integer, as a bool."""
    if type(value) is bool:
        return value
    value = _scalar(value)
    if not isinstance(value, Integral) and not is_bool(value):
        raise TypeError(f"`{name}` must be True or False, got {kind(value)}")
    return bool(value)


def is_bool(value: Any) -> bool:
    """Whether `value` is a bool of Python or of NumPy, which need not be imported."""
    return type(value).__name__ in ("bool", "bool_")


def one_of(value: Any, name: str, known: Sequence[str]) -> str:
    """`value`, a str that is among `known`."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a str, one of {', '.join(known)}, got {kind(value)}")
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {shown(value)}")
    return value


def strings(value: Any, name: str, or_one: bool = False) -> list[str]:
    """`value`, an iterable of str, as a list; also one str alone if `or_one`."""
    if or_one and isinstance(value, str):
        return [value]
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list of str, got {kind(value)}")
    texts = list(value)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"`{name}` must be a list of str, got {kind(text)} in it")
    return texts


def numbers(value: Any, name: str) -> list[Any]:
    """`value`, an iterable of what is checked by the caller, as a list."""
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list of numbers, got {kind(value)}")
    return list(value)


def kind(value: Any) -> str:
    """The type of `value` in the text of an error."""
    return "None" if value is None else type(value).__name__


def shown(value: Any) -> str:
    """`value` in the text of an error, where arrays, long lists and endless numbers have no place."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, Integral) or (isinstance(value, Number) and not isinstance(value, Rational)):
        return str(value)
    if isinstance(value, (tuple, list)) and len(value) <= 8:
        parts = ", ".join(shown(part) if isinstance(part, (str, Number)) else kind(part) for part in value)
        return f"[{parts}]" if isinstance(value, list) else f"({parts},)" if len(value) == 1 else f"({parts})"
    return kind(value)


# Type code -> digits of the significand in bits, and the exponents of the smallest step and of what is infinite.
_FORMATS = {"e": (11, -24, 16), "f": (24, -149, 128), "E": (8, -133, 128)}


def rounded(value: float, dtype: str) -> float:
    """`value` as the nearest number of the dtype of this type code, ties to even, or infinity beyond the last."""
    if dtype == "d" or not math.isfinite(value):
        return value
    digits, smallest, infinite = _FORMATS[dtype]
    exponent = max(math.frexp(value)[1] - digits, smallest)
    nearest = math.ldexp(round(math.ldexp(value, -exponent)), exponent)
    return nearest if abs(nearest) < 2.0**infinite else math.copysign(math.inf, value)


@functools.lru_cache(256)
def lowered(value: float, dtype: str) -> float:
    """The largest number of the dtype of this type code that is not above `value`.

    Numbers of that dtype are above one if and only if they are above the other.
    """
    nearest = rounded(value, dtype)
    if not nearest > value:
        return nearest
    digits, smallest, infinite = _FORMATS[dtype]
    if nearest == math.inf:
        return math.ldexp(1 - 2.0**-digits, infinite)
    exponent = max(math.frexp(value)[1] - digits, smallest)
    return math.ldexp(math.floor(math.ldexp(value, -exponent)), exponent)


def positive(value: Any, name: str) -> float:
    """`value` as a float that is finite and greater than 0."""
    real = number(value, name)
    if not 0 < real < math.inf:
        raise ValueError(f"`{name}` must be finite and > 0, got {shown(value)}")
    return real


ADAPTIVE = -1  # as a `sampling_ratio`: as many samples as cells lie in a bin


def as_sampling_ratio(value: Any, name: str) -> int:
    """`value`, an integer, between 0 and what 32 bits hold."""
    return min(max(integer(value, name), 0), (1 << 31) - 1)


def pair(value: Any, name: str, minimum: int = 1) -> tuple[int, int]:
    """`value`, one integer or two that are at least `minimum`, as (height, width)."""
    if type(value) is int and minimum <= value <= _MOST:
        return value, value
    if not isinstance(value, (tuple, list)):
        value = value, value
    return image_size(value, name, minimum)


def image_size(value: Any, name: str, minimum: int = 1) -> tuple[int, int]:
    """`value` as (height, width), both at least `minimum`."""
    height, width = _integers(value, name, "(height, width)")
    return count(height, name, minimum), count(width, name, minimum)


def image_limits(size: Any, largest: int | None = None) -> tuple[Any, Any]:
    """`size`, two numbers, as (height, width): floats, or, for boxes of integers, integers of at most `largest`."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"`size` must be (height, width), got {shown(size)}")
    height, width = (number(side, "size", 0.0) for side in size)
    if largest is None:
        return height, width
    # Not through a float, which has no neighbouring integers beyond 2**53.
    height, width = (
        side if isinstance(side, Integral) or real < largest else largest
        for side, real in zip(size, (height, width), strict=True)
    )
    return min(int(height), largest), min(int(width), largest)


def image_shape(value: Any, name: str) -> tuple[int, int, int, int]:
    """`value` as the shape (N, C, H, W) of images, with at least one pixel in a plane."""
    images, channels, height, width = _integers(value, name, "(N, C, H, W)")
    return count(images, name), count(channels, name), count(height, name, 1), count(width, name, 1)


def _integers(value: Any, name: str, form: str) -> Sequence[int]:
    """`value`, a tuple or list of as many integers as `form` names."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"`{name}` must be {form}, got {kind(value)}")
    if len(value) != form.count(",") + 1:
        raise ValueError(f"`{name}` must be {form}, got {shown(value)}")
    return [integer(number, name) for number in value]


def working_dtype(*arrays: Any) -> str:
    """Type code of the working precision: d if any array is float64 or a 32- or 64-bit integer, else f.

    None stands for an argument that was not given.
    """
    for array in arrays:
        if array is not None and array.dtype.char in "dilqILQ":
            return "d"
    return "f"


def check_floats(arrays: dict[str, Any]) -> None:
    """Raise TypeError unless the dtype of each array, by argument name, is a floating-point one."""
    for name, array in arrays.items():
        check_dtype(array, name, FLOATS)


def check_same_dtype(arrays: dict[str, Any]) -> None:
    """Raise TypeError unless the dtype of each array, by argument name, is a floating-point one, that of the first."""
    check_floats(arrays)
    (first_name, first), *others = arrays.items()
    for name, array in others:
        if array.dtype != first.dtype:
            raise TypeError(f"`{name}` must be {first.dtype}, the dtype of `{first_name}`, got {array.dtype}")


def check_shape(array: Any, name: str, shape: tuple[int, ...], letters: str) -> None:
    """Raise ValueError unless `array` has this shape, which is `letters` in words of the documentation."""
    if array.shape != shape:
        raise ValueError(f"`{name}` must have shape ({letters}) = {shape}, got {array.shape}")
