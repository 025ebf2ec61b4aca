"""Operations on axis-aligned boxes: the public functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from ._arrays import backend_of, to_caller
from ._box_formulas import area_of, columns
from ._checks import (
    BOX_DTYPES,
    FLOATS,
    INTEGERS,
    check_batched_boxes,
    check_batches,
    check_boxes,
    check_dtype,
    check_format,
    image_limits,
    number,
    working_dtype,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._types import Array, ArrayT, Floats, FloatT, Format, Indices, Number, WorkingT

IOU, GENERALIZED, DISTANCE, COMPLETE = range(4)  # pairwise measures, as the kernels of both backends know them
_BLOCK = 1 << 14  # boxes that are converted, or masks that are looked at, at a time
_MASK_SIDES = 1 << 22  # rows and columns of them, unless one mask has more


@overload
def box_area(boxes: NDArray[WorkingT], fmt: Format = ...) -> NDArray[WorkingT]: ...
@overload
def box_area(boxes: NDArray[Any], fmt: Format = ...) -> Floats: ...
@overload
def box_area(boxes: ArrayT, fmt: Format = ...) -> ArrayT: ...
def box_area(boxes: Array, fmt: Format = "xyxy") -> Any:
    """Area of each box.

    Parameters
    ----------
    boxes : array of shape (..., 4), float64 | float32 | float16 | integer
        Boxes in the format `fmt`.
    fmt : {"xyxy", "xywh", "cxcywh"}
        Two corners; corner and size; centre and size.

    Returns
    -------
    area : array of shape (...), float64 | float32
        ``(x2 - x1) * (y2 - y1)``, negative for a box inverted along one axis; float64 for float64 and 32- and 64-bit
        integers, else float32.

    Raises
    ------
    TypeError, ValueError
        `boxes` is not an array, or its dtype or shape does not fit, or `fmt` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> cvops.box_area(np.array([[0, 0, 2, 3], [1, 1, 2, 2]], np.float32))
    array([6., 1.], dtype=float32)
    """
    check_format(fmt, "fmt")
    with backend_of(boxes=boxes) as backend:
        native = backend.asarray(boxes, "boxes")
        check_batched_boxes(native, "boxes")
        area = backend.empty(native.shape[:-1], working_dtype(native))
        with backend.ignore_fp_errors():
            for some, into in _blocks(native, area, backend):
                into[...] = area_of(some.astype(area.dtype, copy=False), fmt)
        return to_caller(area, boxes)


@overload
def box_iou(boxes1: NDArray[WorkingT], boxes2: NDArray[WorkingT], fmt: Format = ...) -> NDArray[WorkingT]: ...
@overload
def box_iou(boxes1: NDArray[Any], boxes2: Array, fmt: Format = ...) -> Floats: ...
@overload
def box_iou(boxes1: ArrayT, boxes2: Array, fmt: Format = ...) -> ArrayT: ...
def box_iou(boxes1: Array, boxes2: Array, fmt: Format = "xyxy") -> Any:
    """Intersection over union (Jaccard index) of each box of one set with each of another.

    Parameters
    ----------
    boxes1 : array of shape (..., N, 4), float64 | float32 | float16 | integer
        Boxes in the format `fmt`.
    boxes2 : array of shape (..., M, 4), float64 | float32 | float16 | integer
        Boxes in the format `fmt`. Leading dimensions broadcast against those of `boxes1`.
    fmt : {"xyxy", "xywh", "cxcywh"}
        Two corners; corner and size; centre and size.

    Returns
    -------
    iou : array of shape (..., N, M), float64 | float32
        float64 if an argument is float64 or a 32- or 64-bit integer, else float32. 0/0, of two empty boxes, is NaN.

    Raises
    ------
    TypeError, ValueError
        An argument is not an array, or its dtype or shape does not fit, or `fmt` is unknown.

    Notes
    -----
    Nothing of the size of the result is allocated but the result. On a GPU nothing waits for the device.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2]], np.float32)
    >>> cvops.box_iou(boxes, boxes)
    array([[1.        , 0.33333334],
           [0.33333334, 1.        ]], dtype=float32)
    """
    with backend_of(boxes1=boxes1, boxes2=boxes2) as backend:
        sets = _checked_sets(backend, boxes1, boxes2, fmt)
        return to_caller(backend.box_iou(*sets, fmt), boxes1)


@overload
def generalized_box_iou(
    boxes1: NDArray[WorkingT], boxes2: NDArray[WorkingT], *, fmt: Format = ...
) -> NDArray[WorkingT]: ...
@overload
def generalized_box_iou(boxes1: NDArray[Any], boxes2: Array, *, fmt: Format = ...) -> Floats: ...
@overload
def generalized_box_iou(boxes1: ArrayT, boxes2: Array, *, fmt: Format = ...) -> ArrayT: ...
def generalized_box_iou(boxes1: Array, boxes2: Array, *, fmt: Format = "xyxy") -> Any:
    """Generalized IoU of each pair of boxes [1]_: IoU less the empty share of the smallest box around both.

    Parameters
    ----------
    boxes1, boxes2, fmt
        As in `box_iou`.

    Returns
    -------
    giou : array of shape (..., N, M), float64 | float32
        In (-1, 1].

    Raises
    ------
    TypeError, ValueError
        As `box_iou`.

    References
    ----------
    .. [1] H. Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> one, two = np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([[3.0, 0.0, 4.0, 1.0]])
    >>> cvops.generalized_box_iou(one, two)
    array([[-0.5]])
    """
    with backend_of(boxes1=boxes1, boxes2=boxes2) as backend:
        sets = _checked_sets(backend, boxes1, boxes2, fmt)
        return to_caller(backend.generalized_box_iou(*sets, fmt), boxes1)


@overload
def distance_box_iou(
    boxes1: NDArray[WorkingT], boxes2: NDArray[WorkingT], eps: Number = ..., *, fmt: Format = ...
) -> NDArray[WorkingT]: ...
@overload
def distance_box_iou(boxes1: NDArray[Any], boxes2: Array, eps: Number = ..., *, fmt: Format = ...) -> Floats: ...
@overload
def distance_box_iou(boxes1: ArrayT, boxes2: Array, eps: Number = ..., *, fmt: Format = ...) -> ArrayT: ...
def distance_box_iou(boxes1: Array, boxes2: Array, eps: Number = 1e-7, *, fmt: Format = "xyxy") -> Any:
    """Distance IoU of each pair of boxes [1]_: IoU less the squared distance of the centres over the hull's diagonal.

    Parameters
    ----------
    boxes1, boxes2, fmt
        As in `box_iou`.
    eps : float >= 0
        Added to the squared diagonal.

    Returns
    -------
    diou : array of shape (..., N, M), float64 | float32
        In (-1, 1].

    Raises
    ------
    TypeError, ValueError
        As `box_iou`.

    References
    ----------
    .. [1] Z. Zheng et al., "Distance-IoU Loss", AAAI 2020.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> one, two = np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[2.0, 0.0, 4.0, 2.0]])
    >>> cvops.distance_box_iou(one, two).round(3)
    array([[-0.2]])
    """
    with backend_of(boxes1=boxes1, boxes2=boxes2) as backend:
        sets = _checked_sets(backend, boxes1, boxes2, fmt)
        return to_caller(backend.distance_box_iou(*sets, fmt, number(eps, "eps", 0.0)), boxes1)


@overload
def complete_box_iou(
    boxes1: NDArray[WorkingT], boxes2: NDArray[WorkingT], eps: Number = ..., *, fmt: Format = ...
) -> NDArray[WorkingT]: ...
@overload
def complete_box_iou(boxes1: NDArray[Any], boxes2: Array, eps: Number = ..., *, fmt: Format = ...) -> Floats: ...
@overload
def complete_box_iou(boxes1: ArrayT, boxes2: Array, eps: Number = ..., *, fmt: Format = ...) -> ArrayT: ...
def complete_box_iou(boxes1: Array, boxes2: Array, eps: Number = 1e-7, *, fmt: Format = "xyxy") -> Any:
    """Complete IoU of each pair of boxes [1]_: distance IoU less a term for the difference of aspect ratios.

    Parameters
    ----------
    boxes1, boxes2, fmt
        As in `box_iou`.
    eps : float >= 0
        Added to the two denominators.

    Returns
    -------
    ciou : array of shape (..., N, M), float64 | float32
        At most 1.

    Raises
    ------
    TypeError, ValueError
        As `box_iou`.

    References
    ----------
    .. [1] Z. Zheng et al., "Distance-IoU Loss", AAAI 2020.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> one, two = np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[0.0, 0.0, 4.0, 2.0]])
    >>> cvops.complete_box_iou(one, two).round(3)
    array([[0.447]])
    """
    with backend_of(boxes1=boxes1, boxes2=boxes2) as backend:
        sets = _checked_sets(backend, boxes1, boxes2, fmt)
        return to_caller(backend.complete_box_iou(*sets, fmt, number(eps, "eps", 0.0)), boxes1)


@overload
def box_convert(boxes: NDArray[FloatT], in_fmt: Format, out_fmt: Format) -> NDArray[FloatT]: ...
@overload
def box_convert(boxes: NDArray[Any], in_fmt: Format, out_fmt: Format) -> NDArray[Any]: ...
@overload
def box_convert(boxes: ArrayT, in_fmt: Format, out_fmt: Format) -> ArrayT: ...
def box_convert(boxes: Array, in_fmt: Format, out_fmt: Format) -> Any:
    """Boxes in another format.

    Parameters
    ----------
    boxes : array of shape (..., 4), float64 | float32 | float16 | integer
        Boxes in the format `in_fmt`.
    in_fmt, out_fmt : {"xyxy", "xywh", "cxcywh"}
        Two corners; corner and size; centre and size.

    Returns
    -------
    converted : array of shape (..., 4)
        A new array. Floats keep the dtype, and so do integers between xyxy and xywh; where centres would bring halves
        into integers, the result is float64 for those of 32 and 64 bits, else float32.

    Raises
    ------
    TypeError, ValueError
        `boxes` is not an array, or its dtype or shape does not fit, or a format is unknown or not supported yet.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> cvops.box_convert(np.array([[10, 20, 31, 60]]), "xyxy", "cxcywh")
    array([[20.5, 40. , 21. , 40. ]])
    """
    with backend_of(boxes=boxes) as backend:
        return to_caller(_converted(backend.asarray(boxes, "boxes"), in_fmt, out_fmt, backend), boxes)


def clip_boxes_to_image(boxes: ArrayT, size: Sequence[Number]) -> ArrayT:
    """Boxes with their corners moved into the image.

    Parameters
    ----------
    boxes : array of shape (..., 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2`` in pixels.
    size : (int, int)
        Height and width of the image in pixels.

    Returns
    -------
    clipped : array of shape (..., 4)
        A new array of the dtype of `boxes`: x in [0, width], y in [0, height]. NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        `boxes` is not an array, or its dtype or shape does not fit, or `size` is not two numbers >= 0.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> cvops.clip_boxes_to_image(np.array([[-5, 10, 700, 90]]), (480, 640))
    array([[  0,  10, 640,  90]])
    """
    with backend_of(boxes=boxes) as backend:
        return to_caller(_clipped(backend.asarray(boxes, "boxes"), size, backend), boxes)


@overload
def remove_small_boxes(boxes: NDArray[Any], min_size: Number) -> Indices: ...
@overload
def remove_small_boxes(boxes: ArrayT, min_size: Number) -> ArrayT: ...
def remove_small_boxes(boxes: Array, min_size: Number) -> Any:
    """Indices of the boxes of which both sides are at least `min_size`.

    Parameters
    ----------
    boxes : array of shape (L, 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2``.
    min_size : float
        Smallest side to keep, in the unit of the boxes.

    Returns
    -------
    keep : array of shape (M,), int64
        Increasing indices.

    Raises
    ------
    TypeError, ValueError
        `boxes` is not an array, or its dtype or shape does not fit, or `min_size` is not a number.

    Notes
    -----
    The number of indices depends on the data, so a GPU is waited for.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> cvops.remove_small_boxes(np.array([[0.0, 0.0, 9.0, 1.0], [0.0, 0.0, 3.0, 2.0]]), 2)
    array([1])
    """
    min_size = number(min_size, "min_size")
    with backend_of(boxes=boxes) as backend:
        native = backend.asarray(boxes, "boxes")
        check_boxes(native, "boxes")
        with backend.ignore_fp_errors():
            return to_caller(_numbers_of_big(native, min_size, backend), boxes)


@overload
def masks_to_boxes(masks: NDArray[Any]) -> NDArray[np.float32]: ...
@overload
def masks_to_boxes(masks: ArrayT) -> ArrayT: ...
def masks_to_boxes(masks: Array) -> Any:
    """The smallest box around the nonzero pixels of each mask.

    Parameters
    ----------
    masks : array of shape (N, H, W), bool | integer | float64 | float32 | float16
        Nonzero (and NaN) is inside.

    Returns
    -------
    boxes : array of shape (N, 4), float32
        ``x1, y1, x2, y2`` of the first and last nonzero columns and rows, both included; zeros for an empty mask.

    Raises
    ------
    TypeError, ValueError
        `masks` is not an array, or its dtype or shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> masks = np.zeros((1, 6, 8), bool)
    >>> masks[0, 2:5, 3:7] = True
    >>> cvops.masks_to_boxes(masks)
    array([[3., 2., 6., 4.]], dtype=float32)
    """
    with backend_of(masks=masks) as backend:
        return to_caller(_boxes_of(backend.asarray(masks, "masks"), backend), masks)


def _converted(native: Any, in_fmt: str, out_fmt: str, backend: Any) -> Any:
    """`box_convert` of a native array."""
    working, result_dtype = dtypes_of_conversion(native, in_fmt, out_fmt)
    if in_fmt == out_fmt:
        return backend.copy(native)
    result = backend.empty(native.shape, result_dtype)
    with backend.ignore_fp_errors():
        for some, into in _blocks(native, result, backend):
            for k, column in enumerate(columns(some.astype(working, copy=False), in_fmt, out_fmt)):
                into[..., k] = column
    return result


def _blocks(boxes: Any, result: Any, backend: Any) -> Iterator[tuple[Any, Any]]:
    """Parts of boxes (..., 4) and of what is computed of them, with an axis before the last.

    On the CPU these are few boxes at a time, so that next to nothing but the result is allocated.
    """
    if boxes.ndim == 1:
        yield boxes[None], result[None]
    elif boxes.size <= 4 * _BLOCK or backend.current_gpu() is not None:
        yield boxes, result
    else:
        longest = max(range(boxes.ndim - 1), key=boxes.shape.__getitem__)
        boxes, result = (backend.xp.moveaxis(array, longest, 0) for array in (boxes, result))
        step = max(_BLOCK * len(boxes) // (boxes.size // 4), 1)
        for begin in range(0, len(boxes), step):
            yield boxes[begin : begin + step], result[begin : begin + step]


def dtypes_of_conversion(native: Any, in_fmt: str, out_fmt: str) -> tuple[Any, Any]:
    """The dtypes in which `box_convert` computes and which its result has, when its arguments fit."""
    check_format(in_fmt, "in_fmt")
    check_format(out_fmt, "out_fmt")
    check_batched_boxes(native, "boxes")
    working = working_dtype(native)
    if native.dtype.char not in INTEGERS:
        return working, native.dtype
    halves = in_fmt != out_fmt and "cxcywh" in (in_fmt, out_fmt)
    return (working, working) if halves else (native.dtype, native.dtype)


def _clipped(native: Any, size: Any, backend: Any) -> Any:
    """`clip_boxes_to_image` of a native array."""
    limits, xp = limits_of_clipping(native, size), backend.xp
    clipped = backend.empty(native.shape, native.dtype)
    with backend.ignore_fp_errors():
        if backend.current_gpu() is None:
            xp.maximum(native, native.dtype.type(0), out=clipped)
            return xp.minimum(clipped, limits, out=clipped)
        bounded = xp.maximum(native, native.dtype.type(0))
        # To a GPU go scalars, as arguments of kernels: a CUDA graph would upload an array again from where it was.
        for column, limit in enumerate(limits[:2]):
            clipped[..., column::2] = xp.minimum(bounded[..., column::2], limit)
        return clipped


def limits_of_clipping(native: Any, size: Any) -> Any:
    """What `clip_boxes_to_image` limits each coordinate to, a NumPy array of the dtype of the boxes."""
    check_batched_boxes(native, "boxes")
    import numpy as np

    height, width = image_limits(size, int(np.iinfo(native.dtype).max) if native.dtype.char in INTEGERS else None)
    with np.errstate(all="ignore"):
        return np.asarray([width, height, width, height]).astype(native.dtype)


def _numbers_of_big(boxes: Any, min_size: float, backend: Any) -> Any:
    """`remove_small_boxes` of a native array."""
    xp = backend.xp
    if len(boxes) <= _BLOCK or backend.current_gpu() is not None:
        return backend.copy(xp.flatnonzero(_are_big(boxes, min_size)).astype("int64", copy=False))
    # On the CPU a block of boxes at a time: of each box one byte is kept until the length of the result is known.
    blocks = [_are_big(boxes[begin : begin + _BLOCK], min_size) for begin in range(0, len(boxes), _BLOCK)]
    numbers, end = backend.empty((sum(map(int, map(xp.count_nonzero, blocks))),), "int64"), 0
    for block, big in enumerate(blocks):
        found = xp.flatnonzero(big)
        begin, end = end, end + len(found)
        xp.add(found, block * _BLOCK, out=numbers[begin:end])
    return numbers


def _are_big(boxes: Any, min_size: float) -> Any:
    """Whether each box has no side below `min_size`."""
    boxes = boxes.astype(working_dtype(boxes), copy=False)
    return (boxes[:, 2] - boxes[:, 0] >= min_size) & (boxes[:, 3] - boxes[:, 1] >= min_size)


def _boxes_of(masks: Any, backend: Any) -> Any:
    """`masks_to_boxes` of a native array."""
    xp = backend.xp
    _check_masks(masks)
    if masks.size == 0:
        return backend.copy(xp.zeros((len(masks), 4), "f"))
    if backend.current_gpu() is not None:
        if masks.dtype.char in FLOATS:
            masks = masks.view(f"u{masks.itemsize}") << 1  # all but the sign: CuPy takes subnormal numbers for zero
        return backend.copy(_edges(masks, xp))
    # On the CPU some masks at a time, as `box_convert`.
    step = max(min(_BLOCK, _MASK_SIDES // sum(masks.shape[1:])), 1)
    boxes = backend.empty((len(masks), 4), "f")
    for begin in range(0, len(masks), step):
        boxes[begin : begin + step] = _edges(masks[begin : begin + step], xp)
    return boxes


def _check_masks(masks: Any) -> None:
    if masks.ndim != 3:
        raise ValueError(f"`masks` must have shape (N, H, W), got {masks.shape}")
    if masks.dtype.char != "?":
        check_dtype(masks, "masks", BOX_DTYPES)


def _edges(masks: Any, xp: Any) -> Any:
    """`masks_to_boxes` of native masks that are not empty."""
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    last_row, last_column = masks.shape[1] - 1, masks.shape[2] - 1
    edges = [
        columns.argmax(axis=1),
        rows.argmax(axis=1),
        last_column - columns[:, ::-1].argmax(axis=1),
        last_row - rows[:, ::-1].argmax(axis=1),
    ]
    return (xp.stack(edges, 1) * rows.any(axis=1)[:, None]).astype("f")


def _checked_sets(backend: Any, boxes1: Any, boxes2: Any, fmt: str) -> tuple[Any, Any]:
    """Both sets as native arrays, with leading dimensions that broadcast."""
    check_format(fmt, "fmt")
    sets = backend.asarray(boxes1, "boxes1"), backend.asarray(boxes2, "boxes2")
    for native, name in zip(sets, ("boxes1", "boxes2"), strict=True):
        check_batched_boxes(native, name)
        if native.ndim < 2:
            raise ValueError(f"`{name}` must have shape (..., N, 4), got {native.shape}")
    check_batches(sets[0].shape[:-2], sets[1].shape[:-2])
    return sets


def corners_and_area(boxes: Any, fmt: str, dtype: str, xp: Any) -> tuple[Any, Any]:
    """Corners and area of each box, computed in the dtype of this type code."""
    boxes = boxes.astype(dtype, copy=False)
    corners = boxes if fmt == "xyxy" else xp.stack(columns(boxes, fmt, "xyxy"), -1)
    return corners, area_of(boxes, fmt)
