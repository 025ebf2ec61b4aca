"""From what a detection head predicts to boxes and back: the public functions.

Their formulas stand in _box_formulas.py, for CUDA and for whatever traces or differentiates them; the CPU backend has
kernels besides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from ._arrays import backend_of, to_caller
from ._box_formulas import Fit, fitted
from ._checks import (
    BOX_DTYPES,
    FLOATS,
    check_batched_boxes,
    check_dtype,
    image_size,
    is_bool,
    kind,
    number,
    positive,
    shown,
    working_dtype,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._types import Array, ArrayT, FloatT, Integer, Number

    Letterbox = bool | Literal["center", "topleft"]
    Stride = Number | tuple[Number, Number]

CLIP = math.log(1000 / 16)
_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


# fmt: off
@overload
def decode_boxes(
    deltas: NDArray[FloatT], anchors: Array, weights: Sequence[Number] = ..., *, clip: Number | None = ...,
) -> NDArray[FloatT]: ...
@overload
def decode_boxes(
    deltas: NDArray[Any], anchors: Array, weights: Sequence[Number] = ..., *, clip: Number | None = ...,
) -> NDArray[Any]: ...
@overload
def decode_boxes(
    deltas: ArrayT, anchors: Array, weights: Sequence[Number] = ..., *, clip: Number | None = ...,
) -> ArrayT: ...
# fmt: on
def decode_boxes(
    deltas: Array, anchors: Array, weights: Sequence[Number] = _WEIGHTS, *, clip: Number | None = CLIP
) -> Any:
    """Boxes from the deltas that a head predicts relative to anchors or proposals, as in Faster R-CNN [1]_.

    Parameters
    ----------
    deltas : array of shape (..., L, 4), float64 | float32 | float16 | integer
        ``dx, dy, dw, dh``: the shift of the centre in sizes of the anchor, and the logarithm of the ratio of the sizes.
    anchors : array of shape (..., L, 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2``, in any unit. The shapes broadcast. For deltas of shape (L, C * 4), a box for each
        class, give ``deltas.reshape(L, C, 4)`` and ``anchors[:, None]``.
    weights : four numbers > 0
        The deltas are divided by these. Those of detectors with two stages are often (10, 10, 5, 5).
    clip : float, optional
        Upper bound of dw and dh after that division, ``log(1000 / 16)`` by default. None: no bound.

    Returns
    -------
    boxes : array of shape (..., L, 4), dtype of `deltas`
        Corners ``x1, y1, x2, y2`` in the unit of `anchors`. Integers become float64 if they have 32 or 64 bits, else
        float32.

    Raises
    ------
    TypeError, ValueError
        An argument is not an array, its dtype is not one of those above, or a shape, a weight or `clip` does not fit.

    See Also
    --------
    encode_boxes : the inverse.
    distance_to_boxes : for heads without anchors.

    Notes
    -----
    An anchor of width w and centre x gives a box of width ``exp(min(dw / ww, clip)) * w`` and centre
    ``dx / wx * w + x``; heights likewise. This is the coder of torchvision and detectron2. It is computed in float64 if
    an argument is float64 or an integer of 32 or 64 bits, else in float32. Infinite and inverted anchors give what the
    formula gives, without a warning. On the CPU exponentials are off by at most two units in the last place.

    References
    ----------
    .. [1] S. Ren et al., "Faster R-CNN", NeurIPS 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> anchors = np.array([[0, 0, 10, 20]], np.float32)
    >>> cvops.decode_boxes(np.array([[0.5, 0, 0, 0]], np.float32), anchors)
    array([[ 5.,  0., 15., 20.]], dtype=float32)
    """
    with backend_of(deltas=deltas, anchors=anchors) as backend:
        native_deltas, native_anchors = backend.asarray(deltas, "deltas"), backend.asarray(anchors, "anchors")
        check_pair(native_deltas, "deltas", native_anchors, "anchors")
        options = check_weights(weights), check_clip(clip)
        return to_caller(backend.decode_boxes(native_deltas, native_anchors, *options), deltas)


# fmt: off
@overload
def encode_boxes(
    boxes: NDArray[FloatT], anchors: Array, weights: Sequence[Number] = ...
) -> NDArray[FloatT]: ...
@overload
def encode_boxes(boxes: NDArray[Any], anchors: Array, weights: Sequence[Number] = ...) -> NDArray[Any]: ...
@overload
def encode_boxes(boxes: ArrayT, anchors: Array, weights: Sequence[Number] = ...) -> ArrayT: ...
# fmt: on
def encode_boxes(boxes: Array, anchors: Array, weights: Sequence[Number] = _WEIGHTS) -> Any:
    """Deltas of boxes relative to anchors, which a head is trained to predict [1]_: the inverse of `decode_boxes`.

    Parameters
    ----------
    boxes : array of shape (..., L, 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2``.
    anchors : array of shape (..., L, 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2``, in the unit of `boxes`. The shapes broadcast.
    weights : four numbers > 0
        The deltas are multiplied by these.

    Returns
    -------
    deltas : array of shape (..., L, 4), dtype of `boxes`
        ``dx, dy, dw, dh``. Integers become float64 if they have 32 or 64 bits, else float32.

    Raises
    ------
    TypeError, ValueError
        As `decode_boxes`.

    Notes
    -----
    ``dx = wx * (x - x_anchor) / w_anchor`` of the centres, ``dw = ww * log(w / w_anchor)``. Anchors without width or
    height give infinities or NaN, without a warning. The logarithms of the CPU backend are off by at most three units
    in the last place.

    References
    ----------
    .. [1] S. Ren et al., "Faster R-CNN", NeurIPS 2015.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> anchors = np.array([[0, 0, 10, 20]], np.float32)
    >>> cvops.encode_boxes(np.array([[5, 0, 15, 20]], np.float32), anchors)
    array([[0.5, 0. , 0. , 0. ]], dtype=float32)
    """
    with backend_of(boxes=boxes, anchors=anchors) as backend:
        native_boxes, native_anchors = backend.asarray(boxes, "boxes"), backend.asarray(anchors, "anchors")
        check_pair(native_boxes, "boxes", native_anchors, "anchors")
        return to_caller(backend.encode_boxes(native_boxes, native_anchors, check_weights(weights)), boxes)


# fmt: off
@overload
def distance_to_boxes(points: NDArray[Any], distances: NDArray[FloatT]) -> NDArray[FloatT]: ...
@overload
def distance_to_boxes(points: NDArray[Any], distances: Array) -> NDArray[Any]: ...
@overload
def distance_to_boxes(points: ArrayT, distances: Array) -> ArrayT: ...
# fmt: on
def distance_to_boxes(points: Array, distances: Array) -> Any:
    """Boxes from the distances of points to the four sides, as heads without anchors predict them (FCOS [1]_, YOLO).

    Parameters
    ----------
    points : array of shape (L, 2), float64 | float32 | float16 | integer
        ``x, y``, as `make_points` makes them.
    distances : array of shape (..., L, 4), float64 | float32 | float16 | integer
        Distances to the left, top, right and bottom side, in the unit of the points.

    Returns
    -------
    boxes : array of shape (..., L, 4), dtype of `distances`
        ``x - left, y - top, x + right, y + bottom``. Integers become float64 if they have 32 or 64 bits, else float32.

    Raises
    ------
    TypeError, ValueError
        An argument is not an array, or its dtype or shape does not fit.

    Notes
    -----
    Computed in float64 if an argument is float64 or an integer of 32 or 64 bits, else in float32.

    References
    ----------
    .. [1] Z. Tian et al., "FCOS", ICCV 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> points = cvops.make_points([(1, 2)], [8])
    >>> cvops.distance_to_boxes(points, np.array([[1, 2, 3, 4], [4, 4, 4, 4]], np.float32))
    array([[ 3.,  2.,  7.,  8.],
           [ 8.,  0., 16.,  8.]], dtype=float32)
    """
    with backend_of(points=points, distances=distances) as backend:
        native_points, native_distances = backend.asarray(points, "points"), backend.asarray(distances, "distances")
        check_points(native_points, native_distances)
        return to_caller(backend.distance_to_boxes(native_points, native_distances), points)


@overload
def scale_boxes(
    boxes: NDArray[FloatT], from_size: Sequence[Number], to_size: Sequence[Number], *, letterbox: Letterbox = ...
) -> NDArray[FloatT]: ...
@overload
def scale_boxes(
    boxes: NDArray[Any], from_size: Sequence[Number], to_size: Sequence[Number], *, letterbox: Letterbox = ...
) -> NDArray[Any]: ...
@overload
def scale_boxes(
    boxes: ArrayT, from_size: Sequence[Number], to_size: Sequence[Number], *, letterbox: Letterbox = ...
) -> ArrayT: ...
def scale_boxes(
    boxes: Array, from_size: Sequence[Number], to_size: Sequence[Number], *, letterbox: Letterbox = False
) -> Any:
    """Boxes in the input of a network as boxes in the image that was resized to it.

    Parameters
    ----------
    boxes : array of shape (..., 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2`` in pixels of the input.
    from_size : (number, number)
        Height and width of the network's input.
    to_size : (number, number)
        Height and width of the image.
    letterbox : bool, "center" or "topleft"
        How the image was fitted into the input. False: each axis was scaled on its own. True or "center": both axes
        by one factor, and the rest was padded alike on both sides. "topleft": by one factor, and padded at the right or
        the bottom.

    Returns
    -------
    scaled : array of shape (..., 4), dtype of `boxes`
        Corners in pixels of the image, not clipped to it: `clip_boxes_to_image` does that. Integers become float64 if
        they have 32 or 64 bits, else float32.

    Raises
    ------
    TypeError, ValueError
        `boxes` is not an array, its dtype or shape does not fit, a size is not two numbers > 0, or `letterbox` is none
        of the above.

    Notes
    -----
    ``(box - padding) / gain``, where the gain is ``from_size / to_size``, with a letterbox the smaller of both axes.
    The padding is exactly half of what the image leaves free; ultralytics rounds it to whole pixels, which moves boxes
    by up to half a pixel of the input.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> boxes = np.array([[0, 80, 640, 560]], np.float32)
    >>> cvops.scale_boxes(boxes, (640, 640), (240, 320), letterbox=True)
    array([[  0.,   0., 320., 240.]], dtype=float32)
    """
    with backend_of(boxes=boxes) as backend:
        native = backend.asarray(boxes, "boxes")
        check_batched_boxes(native, "boxes")
        return to_caller(backend.scale_boxes(native, check_fit(from_size, to_size, letterbox)), boxes)


@overload
def make_points(
    sizes: Sequence[Sequence[Integer]], strides: Sequence[Stride], *, offset: Number = ..., like: None = ...
) -> NDArray[np.float32]: ...
@overload
def make_points(
    sizes: Sequence[Sequence[Integer]], strides: Sequence[Stride], *, offset: Number = ..., like: NDArray[FloatT]
) -> NDArray[FloatT]: ...
@overload
def make_points(
    sizes: Sequence[Sequence[Integer]], strides: Sequence[Stride], *, offset: Number = ..., like: ArrayT
) -> ArrayT: ...
def make_points(
    sizes: Sequence[Sequence[Integer]],
    strides: Sequence[Stride],
    *,
    offset: Number = 0.5,
    like: Any = None,
) -> Any:
    """Where in the image the cells of feature maps lie: a point for each.

    Parameters
    ----------
    sizes : list of (int, int)
        Height and width of each map in cells.
    strides : list of a number > 0 or two
        For each map the pixels that a cell is wide and high: one number, or (y, x).
    offset : float
        Where in a cell its point lies, in cells: 0.5 is the centre, 0 the corner.
    like : array, float64 | float32 | float16, optional
        The result is of its library, on its device and of its dtype. By default a NumPy array of float32.

    Returns
    -------
    points : array of shape (L, 2)
        ``x, y`` in pixels: ``(column + offset) * stride``, map after map, in each row by row.

    Raises
    ------
    TypeError, ValueError
        `like` is not an array of floats, or a size, a stride or the offset does not fit.

    Examples
    --------
    >>> import cvops
    >>> cvops.make_points([(1, 2), (1, 1)], [8, 16])
    array([[ 4.,  4.],
           [12.,  4.],
           [ 8.,  8.]], dtype=float32)
    """
    grids, shift = check_maps(sizes, strides), number(offset, "offset")
    with _backend_of_like(like) as backend:
        dtype = _dtype_like(like, backend)
        points = backend.empty((sum(grid.height * grid.width for grid in grids), 2), dtype)
        with backend.ignore_fp_errors():
            for x, y, place in _cells(grids, 1, points, shift, backend):
                place[..., 0, 0], place[..., 0, 1] = x, y
        return points if like is None else to_caller(points, like)


@overload
def make_anchors(
    sizes: Sequence[Sequence[Integer]], strides: Sequence[Stride], *, scales: Sequence[Any], ratios: Sequence[Any],
    like: None = ...,
) -> NDArray[np.float32]: ...  # fmt: skip
@overload
def make_anchors(
    sizes: Sequence[Sequence[Integer]], strides: Sequence[Stride], *, scales: Sequence[Any], ratios: Sequence[Any],
    like: NDArray[FloatT],
) -> NDArray[FloatT]: ...  # fmt: skip
@overload
def make_anchors(
    sizes: Sequence[Sequence[Integer]], strides: Sequence[Stride], *, scales: Sequence[Any], ratios: Sequence[Any],
    like: ArrayT,
) -> ArrayT: ...  # fmt: skip
def make_anchors(
    sizes: Sequence[Sequence[Integer]],
    strides: Sequence[Stride],
    *,
    scales: Sequence[Any],
    ratios: Sequence[Any],
    like: Any = None,
) -> Any:
    """Anchor boxes at every cell of feature maps, as in Faster R-CNN [1]_.

    Parameters
    ----------
    sizes : list of (int, int)
        Height and width of each map in cells.
    strides : list of a number > 0 or two
        For each map the pixels that a cell is wide and high: one number, or (y, x).
    scales : tuple of numbers > 0, or a list of one tuple for each map
        Side lengths in pixels, of a square of the same area.
    ratios : tuple of numbers > 0, or a list of one tuple for each map
        Height over width.
    like : array, float64 | float32 | float16, optional
        The result is of its library, on its device and of its dtype. By default a NumPy array of float32.

    Returns
    -------
    anchors : array of shape (L, 4)
        Corners ``x1, y1, x2, y2`` in pixels: map after map, row by row, at each cell ratio by ratio, for each ratio the
        scales.

    Raises
    ------
    TypeError, ValueError
        `like` is not an array of floats, or a size, a stride, a scale or a ratio does not fit.

    Notes
    -----
    These are the anchors of torchvision's AnchorGenerator. Those of a cell have their centre at
    ``column * stride, row * stride``, without an offset, and corners that are rounded to whole pixels (halves to even)
    around it.

    References
    ----------
    .. [1] S. Ren et al., "Faster R-CNN", NeurIPS 2015.

    Examples
    --------
    >>> import cvops
    >>> cvops.make_anchors([(1, 2)], [16], scales=(32,), ratios=(1,))
    array([[-16., -16.,  16.,  16.],
           [  0., -16.,  32.,  16.]], dtype=float32)
    """
    grids = check_maps(sizes, strides)
    of_maps = _for_each_map(scales, "scales", len(grids)), _for_each_map(ratios, "ratios", len(grids))
    with _backend_of_like(like) as backend:
        dtype = _dtype_like(like, backend)
        working = "d" if dtype == "d" else "f"
        of_cells = [base_anchors(*each, working) for each in zip(*of_maps, strict=True)]
        length = sum(grid.height * grid.width * len(base) for grid, base in zip(grids, of_cells, strict=True))
        anchors, begin = backend.empty((length, 4), dtype), 0
        with backend.ignore_fp_errors():
            for grid, base in zip(grids, of_cells, strict=True):
                end = begin + grid.height * grid.width * len(base)
                for x, y, place in _cells([grid], len(base), anchors[begin:end], 0.0, backend):
                    for a, corners in enumerate(base):
                        for k, corner in enumerate(corners):
                            place[..., a, k] = (y if k % 2 else x) + corner
                begin = end
        return anchors if like is None else to_caller(anchors, like)


# --------------------------------------------------------------------------------------------------------- formulas


def base_anchors(scales: list[float], ratios: list[float], dtype: str) -> list[list[float]]:
    """The anchors around the point (0, 0): ratio by ratio, computed in the dtype of this type code."""
    import numpy as np

    heights = np.sqrt(np.asarray(ratios, dtype))
    with np.errstate(all="ignore"):
        width, height = (side[:, None] * np.asarray(scales, dtype) / 2 for side in (1 / heights, heights))
        corners: list[list[float]] = np.stack([-width, -height, width, height], -1).round().reshape(-1, 4).tolist()
    return corners


def _cells(grids: list[Grid], per_cell: int, result: Any, offset: float, backend: Any) -> Any:
    """Of each map the x of the columns, the y of the rows, and the part of `result` for its cells, (H, W, n, k)."""
    begin, working = 0, "d" if result.dtype.char == "d" else "f"
    for height, width, stride_y, stride_x in grids:
        x = (backend.xp.arange(width, dtype=working) + offset) * stride_x
        y = (backend.xp.arange(height, dtype=working) + offset) * stride_y
        end = begin + height * width * per_cell
        yield x[None, :], y[:, None], result[begin:end].reshape(height, width, per_cell, result.shape[1])
        begin = end


# ----------------------------------------------------------------------------------------------------------- checks


class Grid(NamedTuple):
    """The cells of a feature map."""

    height: int
    width: int
    stride_y: float
    stride_x: float


def result_dtype(native: Any) -> Any:
    """The dtype of a result that keeps that of `native` where it is a float."""
    return native.dtype if native.dtype.char in FLOATS else working_dtype(native)


def _backend_of_like(like: Any) -> AbstractContextManager[Any]:
    """As `backend_of`, whose errors name a module of which these functions are no part."""
    try:
        return backend_of(**({} if like is None else {"like": like}))
    except TypeError as error:
        text = re.sub(r"use cvops\.\w+, or ", "", str(error))
        error.args = (re.sub(r"use cvops\.\w+", "call this outside, and pass the result in", text),)
        raise


def _dtype_like(like: Any, backend: Any) -> Any:
    if like is None:
        return "f"
    native = backend.asarray(like, "like")
    check_dtype(native, "like", FLOATS)
    return native.dtype.char if native.dtype.char != "E" else native.dtype


def check_pair(one: Any, one_name: str, other: Any, other_name: str) -> None:
    check_batched_boxes(one, one_name)
    check_batched_boxes(other, other_name)
    check_broadcast(one.shape, one_name, other.shape, other_name)


def check_broadcast(one: Sequence[int], one_name: str, other: Sequence[int], other_name: str) -> None:
    """Raise ValueError unless arrays of both shapes broadcast."""
    for size, of_other in zip(one[::-1], other[::-1], strict=False):
        if size != of_other and 1 not in (size, of_other):
            shapes = f"{tuple(one)} and {tuple(other)}"
            raise ValueError(f"`{one_name}` and `{other_name}` must have shapes that broadcast, got {shapes}")


def check_points(points: Any, distances: Any) -> None:
    """Raise unless both have a shape and a dtype that `distance_to_boxes` takes."""
    check_batched_boxes(distances, "distances")
    if points.ndim != 2 or points.shape[1] != 2 or distances.shape[-2:-1] != points.shape[:1]:
        shapes = f"{points.shape} and {distances.shape}"
        raise ValueError(f"`points` must have shape (L, 2) and `distances` (..., L, 4), got {shapes}")
    check_dtype(points, "points", BOX_DTYPES)


def check_weights(weights: Any) -> list[float]:
    if not isinstance(weights, (tuple, list)):
        raise TypeError(f"`weights` must be four numbers, got {kind(weights)}")
    if len(weights) != 4:
        raise ValueError(f"`weights` must be four numbers, got {shown(weights)}")
    return [positive(weight, "weights") for weight in weights]


def check_clip(clip: Any) -> float | None:
    return None if clip is None else number(clip, "clip")


def check_fit(from_size: Any, to_size: Any, letterbox: Any) -> Fit:
    """How an image of `to_size` lies in an input of `from_size`."""
    given, wanted = check_size(from_size, "from_size"), check_size(to_size, "to_size")
    one_gain, centred = check_letterbox(letterbox)
    gain_y, gain_x = given[0] / wanted[0], given[1] / wanted[1]
    if one_gain:
        gain_y = gain_x = min(gain_y, gain_x)
    return fitted(given, wanted, gain_y, gain_x, centred)


def check_size(size: Any, name: str) -> list[float]:
    """`size`, (height, width)."""
    if not isinstance(size, (tuple, list)):
        raise TypeError(f"`{name}` must be (height, width), got {kind(size)}")
    if len(size) != 2:
        raise ValueError(f"`{name}` must be (height, width), got {shown(size)}")
    return [positive(side, name) for side in size]


def check_letterbox(letterbox: Any) -> tuple[bool, bool]:
    """Whether both axes have one gain, and whether what is left is padded on both sides."""
    known = "`letterbox` must be True, False, 'center' or 'topleft'"
    if isinstance(letterbox, str) and letterbox not in ("center", "topleft"):
        raise ValueError(f"{known}, got {shown(letterbox)}")
    if not isinstance(letterbox, str) and not is_bool(letterbox):
        raise TypeError(f"{known}, got {kind(letterbox)}")
    return bool(letterbox), letterbox != "topleft" and bool(letterbox)


def check_maps(sizes: Any, strides: Any) -> list[Grid]:
    """`sizes` and `strides` of feature maps."""
    for value, name in ((sizes, "sizes"), (strides, "strides")):
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"`{name}` must be a list with an entry for each map, got {kind(value)}")
    if len(sizes) != len(strides):
        raise ValueError(
            f"`strides` must have an entry for each of the {len(sizes)} maps of `sizes`, got {len(strides)}"
        )
    grids = []
    for size, stride in zip(sizes, strides, strict=True):
        steps = stride if isinstance(stride, (tuple, list)) else (stride, stride)
        if len(steps) != 2:
            raise ValueError(f"`strides` must be a number or (y, x) for each map, got {shown(stride)}")
        y, x = (positive(step, "strides") for step in steps)
        grids.append(Grid(*image_size(size, "sizes", 0), y, x))
    return grids


def _for_each_map(values: Any, name: str, maps: int) -> list[list[float]]:
    """Numbers > 0 for each map: one tuple for all, or a list of one for each."""
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"`{name}` must be a tuple of numbers, or a list of one for each map, got {kind(values)}")
    if not any(isinstance(value, (tuple, list)) for value in values):
        return [[positive(value, name) for value in values]] * maps
    if len(values) != maps:
        raise ValueError(f"`{name}` must have a tuple for each of the {maps} maps, got {len(values)}")
    for value in values:
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"`{name}` must be a tuple of numbers, or a list of one for each map, got {kind(value)}")
    return [[positive(number, name) for number in each] for each in values]
