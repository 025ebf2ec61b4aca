"""Non-maximum suppression: the public functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

from . import _arrays
from ._arrays import backend_of, to_caller
from ._checks import (
    FLOATS,
    INTEGERS,
    check_boxes,
    check_dtype,
    check_length,
    count,
    flag,
    number,
    rounded,
)

# From this threshold on, backends look for the suppressor of a box only near it, once many are kept; measured. Below it
# they compare the box with all that are kept.
NEAR_THRESHOLD = 0.1
_MOST_PADDED = 2**48  # indices: more than any memory holds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._types import Array, ArrayT, Indices, Integer, Number


# fmt: off
@overload
def nms(
    boxes: NDArray[Any], scores: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[False] = ...,
) -> Indices: ...
@overload
def nms(
    boxes: ArrayT, scores: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[False] = ...,
) -> ArrayT: ...
@overload
def nms(
    boxes: NDArray[Any], scores: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[True],
) -> tuple[Indices, Indices]: ...
@overload
def nms(
    boxes: ArrayT, scores: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[True],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def nms(
    boxes: NDArray[Any], scores: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: bool,
) -> Indices | tuple[Indices, Indices]: ...
@overload
def nms(
    boxes: ArrayT, scores: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: bool,
) -> ArrayT | tuple[ArrayT, ArrayT]: ...
# fmt: on
def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: Number,
    *,
    score_threshold: Number | None = None,
    max_output: Integer | None = None,
    padded: bool = False,
) -> Any:
    """Keep the best-scored boxes and drop every box that overlaps a better kept one: greedy non-maximum suppression.

    Parameters
    ----------
    boxes : array of shape (L, 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2``, in any one unit. Integers of 32 and 64 bits are computed in float64.
    scores : array of shape (L,), float64 | float32 | float16
        A box of higher score suppresses one of lower score.
    iou_threshold : float from 0 to 1
        A box is dropped when its intersection over union with a kept box is greater than this. 1 drops nothing.
    score_threshold : float, optional
        Only boxes with a score greater than this take part. By default all do. It is rounded to the dtype of `scores`
        first, so that float32 scores of 0.3 do not pass 0.3.
    max_output : int >= 0, optional
        Return at most this many boxes, the best ones.
    padded : bool
        Return arrays whose shapes do not depend on the data; see Returns.

    Returns
    -------
    keep : array of shape (M,), int64
        Indices of the kept boxes by decreasing score; equal scores by increasing index, NaN scores last. An array of
        the library and on the device of `boxes` (JAX without 64-bit types makes it int32).
    keep, count : arrays of shape (max_output or L,) and (), int64
        With ``padded=True``: the same indices followed by -1, and how many there are.

    Raises
    ------
    TypeError
        `boxes` or `scores` is not an array or has another dtype, or a threshold is not a plain number.
    ValueError
        A shape does not fit, `iou_threshold` is not from 0 to 1, `score_threshold` is NaN, `max_output` is negative, or
        the arrays are on different devices.

    See Also
    --------
    batched_nms : the same for each class or image on its own.

    Notes
    -----
    IoU is ``inter / ((area_i + area_j) - inter)`` with areas ``(x2 - x1) * (y2 - y1)``, in float64 if an argument is
    float64, else in float32; a box goes when that number is greater than the threshold as a Python float. Boxes with a
    NaN coordinate, an infinite size or no area have no IoU above 0: they are kept and suppress nothing.

    The result is the same for any number of threads. Memory is O(L); time is near-linear in L for thresholds from 0.1
    upwards, and below that where few of the kept boxes lie near each other.

    On a GPU the call waits for the device once, to read how many boxes are kept; with ``padded=True`` nothing is read,
    and the call can be captured in a CUDA graph. All launches are on the current stream (torch's for torch tensors).

    References
    ----------
    .. [1] A. Neubeck and L. Van Gool, "Efficient Non-Maximum Suppression", ICPR 2006.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]], np.float32)
    >>> scores = np.array([0.8, 0.9, 0.7], np.float32)
    >>> cvops.nms(boxes, scores, iou_threshold=0.5)
    array([1, 2])
    """
    if _arrays.cpu is not None and max_output is None and padded is False:
        keep = _arrays.cpu.lean_nms(boxes, scores, iou_threshold, score_threshold)
        if keep is not None:
            return keep
    with backend_of(boxes=boxes, scores=scores) as backend:
        native_boxes, native_scores = backend.asarray(boxes, "boxes"), backend.asarray(scores, "scores")
        _check(native_boxes, native_scores)
        options = _check_options(native_scores, iou_threshold, score_threshold, max_output, padded)
        return _to_caller(backend.nms(native_boxes, native_scores, *options), boxes)


# fmt: off
@overload
def batched_nms(
    boxes: NDArray[Any], scores: Array, idxs: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[False] = ...,
) -> Indices: ...
@overload
def batched_nms(
    boxes: ArrayT, scores: Array, idxs: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[False] = ...,
) -> ArrayT: ...
@overload
def batched_nms(
    boxes: NDArray[Any], scores: Array, idxs: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[True],
) -> tuple[Indices, Indices]: ...
@overload
def batched_nms(
    boxes: ArrayT, scores: Array, idxs: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: Literal[True],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def batched_nms(
    boxes: NDArray[Any], scores: Array, idxs: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: bool,
) -> Indices | tuple[Indices, Indices]: ...
@overload
def batched_nms(
    boxes: ArrayT, scores: Array, idxs: Array, iou_threshold: Number, *, score_threshold: Number | None = ...,
    max_output: Integer | None = ..., padded: bool,
) -> ArrayT | tuple[ArrayT, ArrayT]: ...
# fmt: on
def batched_nms(
    boxes: Array,
    scores: Array,
    idxs: Array,
    iou_threshold: Number,
    *,
    score_threshold: Number | None = None,
    max_output: Integer | None = None,
    padded: bool = False,
) -> Any:
    """Non-maximum suppression within each class (or image, or level): boxes suppress only boxes of their own class.

    Parameters
    ----------
    boxes : array of shape (L, 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2``.
    scores : array of shape (L,), float64 | float32 | float16
        A box of higher score suppresses one of lower score.
    idxs : array of shape (L,), integer, or float holding integers
        The class of each box: any values, negative and 64-bit ones included.
    iou_threshold, score_threshold, padded
        As in `nms`.
    max_output : int >= 0, optional
        Return at most this many boxes, the best ones of all classes together.

    Returns
    -------
    keep : array of shape (M,), int64
        Indices of the kept boxes of all classes, ordered as in `nms`. With ``padded=True`` a pair, as in `nms`.

    Raises
    ------
    TypeError, ValueError
        As `nms`; `idxs` is bool or complex (TypeError), or holds NaN or a fraction (ValueError).
        On a GPU with ``padded=True``, where nothing is read, such numbers are classes as any other; all NaN are one.

    Notes
    -----
    This is exactly `nms` class by class. It is not done by moving the classes apart, which is wrong for negative
    coordinates, for NaN, and by rounding. Time and memory: as `nms`, whatever the number of classes.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]], np.float32)
    >>> scores = np.array([0.8, 0.9, 0.7], np.float32)
    >>> cvops.batched_nms(boxes, scores, np.array([5, 5, 6]), iou_threshold=0.5)
    array([1, 2])
    """
    if _arrays.cpu is not None and max_output is None and padded is False:
        keep = _arrays.cpu.lean_batched_nms(boxes, scores, idxs, iou_threshold, score_threshold)
        if keep is not None:
            return keep
    with backend_of(boxes=boxes, scores=scores, idxs=idxs) as backend:
        native_boxes, native_scores = backend.asarray(boxes, "boxes"), backend.asarray(scores, "scores")
        native_idxs = backend.asarray(idxs, "idxs")
        _check(native_boxes, native_scores)
        check_length(native_idxs, "idxs", len(native_boxes), "boxes")
        if native_idxs.dtype.char not in INTEGERS:
            check_dtype(native_idxs, "idxs", FLOATS + INTEGERS)
            xp, waits = backend.xp, not (padded and backend.current_gpu() is not None)
            if waits and not bool(xp.all((native_idxs == xp.trunc(native_idxs)) & xp.isfinite(native_idxs))):
                raise ValueError("`idxs` must hold integers, got fractions, NaN or infinities")
        options = _check_options(native_scores, iou_threshold, score_threshold, max_output, padded)
        return _to_caller(backend.batched_nms(native_boxes, native_scores, native_idxs, *options), boxes)


def _check(boxes: Any, scores: Any) -> None:
    if scores.ndim == 3:
        text = "for images with a score for each box and class, use multiclass_nms"
        raise ValueError(f"`scores` must have shape (L,), got {scores.shape}: {text}")
    check_boxes(boxes, "boxes")
    if scores.ndim == 2:
        raise ValueError(
            f"`scores` must have shape ({len(boxes)},), the length of `boxes`, got {scores.shape}: nms takes one score"
            " for each box; for one for each class, use multiclass_nms with `boxes[None]` and `scores[None]`"
        )
    check_length(scores, "scores", len(boxes), "boxes")
    check_dtype(scores, "scores", FLOATS)


def _check_options(
    scores: Any, iou_threshold: Any, score_threshold: Any, max_output: Any, padded: Any
) -> tuple[float, float | None, int | None, bool]:
    padded = flag(padded, "padded")
    return (
        number(iou_threshold, "iou_threshold", 0.0, 1.0),
        # In the dtype of the scores, as a comparison in any array library would be.
        None if score_threshold is None else rounded(number(score_threshold, "score_threshold"), scores.dtype.char),
        None if max_output is None else count(max_output, "max_output", maximum=_MOST_PADDED if padded else math.inf),
        padded,
    )


def _to_caller(keep: Any, like: Any) -> Any:
    if isinstance(keep, tuple):
        return tuple(to_caller(array, like) for array in keep)
    return to_caller(keep, like)
