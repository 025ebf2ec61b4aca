"""Non-maximum suppression in JAX programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import cvops

from .. import _nms
from .._checks import FLOATS, INTEGERS, check_dtype, check_length, count
from ._ffi import foreign
from ._traced import Array, as_jax_arrays, result_of

if TYPE_CHECKING:
    from .._types import Integer, Number

_host_nms = foreign("cvops.nms", cvops.nms)
_host_batched_nms = foreign("cvops.batched_nms", cvops.batched_nms)


def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: Number,
    *,
    max_output: Integer,
    score_threshold: Number | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Greedy non-maximum suppression: `cvops.nms` with ``padded=True``.

    Parameters
    ----------
    boxes, scores, iou_threshold, score_threshold
        As in `cvops.nms`. Thresholds are Python or NumPy numbers.
    max_output : int >= 0
        Length of the result.

    Returns
    -------
    keep : array of shape (max_output,), int64 (int32 while 64-bit types are off)
        Indices of the best boxes kept, by score, then -1.
    count : array of shape (), of the same dtype
        How many there are.

    Raises
    ------
    TypeError, ValueError
        As `cvops.nms`.

    Notes
    -----
    Indices have no gradient; differentiating what they select works.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> boxes = jnp.array([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    >>> keep, count = cvops.jax.nms(boxes, jnp.array([0.8, 0.9, 0.7]), 0.5, max_output=3)
    >>> keep.tolist(), int(count)
    ([1, 2, -1], 2)
    """
    return _suppress(_host_nms, as_jax_arrays(boxes=boxes, scores=scores), iou_threshold, score_threshold, max_output)


def batched_nms(
    boxes: Array,
    scores: Array,
    idxs: Array,
    iou_threshold: Number,
    *,
    max_output: Integer,
    score_threshold: Number | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Non-maximum suppression within each class: `cvops.batched_nms` with ``padded=True``.

    Parameters
    ----------
    boxes, scores, idxs, iou_threshold, score_threshold
        As in `cvops.batched_nms`. Thresholds are Python or NumPy numbers.
    max_output : int >= 0
        Length of the result.

    Returns
    -------
    keep, count
        As `nms`.

    Raises
    ------
    TypeError, ValueError
        As `cvops.batched_nms`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> boxes = jnp.array([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 10]])
    >>> keep, count = cvops.jax.batched_nms(boxes, jnp.array([0.8, 0.9, 0.7]), jnp.array([5, 5, 6]), 0.5, max_output=3)
    >>> keep.tolist(), int(count)
    ([1, 2, -1], 2)
    """
    arrays = as_jax_arrays(boxes=boxes, scores=scores, idxs=idxs)
    check_length(arrays["idxs"], "idxs", len(arrays["boxes"]), "boxes")
    check_dtype(arrays["idxs"], "idxs", FLOATS + INTEGERS)
    return _suppress(_host_batched_nms, arrays, iou_threshold, score_threshold, max_output)


def _suppress(
    function: Any, arrays: dict[str, Any], iou_threshold: Any, score_threshold: Any, max_output: Any
) -> tuple[Any, Any]:
    _nms._check(arrays["boxes"], arrays["scores"])
    size = count(max_output, "max_output")
    threshold, floor, _, _ = _nms._check_options(arrays["scores"], iou_threshold, score_threshold, size, True)
    results = result_of((size,), np.int64), result_of((), np.int64)
    constant = [jax.lax.stop_gradient(array) for array in arrays.values()]
    keep, kept = function(
        results, *constant, iou_threshold=threshold, score_threshold=floor, max_output=size, padded=True
    )
    return keep, kept
