"""From the decoded output of a head to detections in JAX programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import cvops

from .. import _multiclass
from .._multiclass import PaddedSelection
from ._ffi import foreign
from ._traced import Array, array_of, result_of

if TYPE_CHECKING:
    from .._multiclass import Metric
    from .._types import Integer, Number


def _of_arrays(
    boxes: Any,
    scores: Any,
    *others: Any,
    weighted: bool,
    with_floors: bool,
    floor: float | None = None,
    metric: int,
    **options: Any,
) -> Any:
    """`cvops.multiclass_nms` with its optional arrays in the order in which they are given, those that are there."""
    rest = list(others)
    objectness = rest.pop(0) if weighted else None
    threshold = rest.pop(0) if with_floors else floor
    metric_name: Any = _multiclass.METRICS[metric]
    return cvops.multiclass_nms(
        boxes,
        scores,
        objectness=objectness,
        score_threshold=threshold,
        metric=metric_name,
        padded=True,
        **options,
    )


_host = foreign("cvops.multiclass_nms", _of_arrays)


def multiclass_nms(
    boxes: Array,
    scores: Array,
    iou_threshold: Number,
    *,
    max_output: Integer,
    score_threshold: Number | Array | None = None,
    max_candidates: Integer | None = None,
    max_per_class: Integer | None = None,
    multi_label: bool = True,
    class_agnostic: bool = False,
    objectness: Array | None = None,
    metric: Metric = "iou",
) -> PaddedSelection[jax.Array]:
    """Detections from the boxes and class scores of a batch of images: `cvops.multiclass_nms` with ``padded=True``.

    Parameters
    ----------
    boxes, scores, iou_threshold, score_threshold, objectness
        As in `cvops.multiclass_nms`. Thresholds are Python or NumPy numbers, or an array with a floor for each class.
    max_output : int >= 0
        Length of the result for each image.
    max_candidates, max_per_class, multi_label, class_agnostic, metric
        As in `cvops.multiclass_nms`; part of the program.

    Returns
    -------
    selection : PaddedSelection(box, label, count) of shapes (N, max_output), (N, max_output) and (N,), int64
        As `cvops.multiclass_nms` returns it (int32 while 64-bit types are off).

    Raises
    ------
    TypeError, ValueError
        As `cvops.multiclass_nms`.

    Notes
    -----
    Indices have no gradient; differentiating what they select works.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> boxes = jnp.array([[[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]]])
    >>> scores = jnp.array([[[0.8, 0.1], [0.9, 0.1], [0.1, 0.7]]])
    >>> found = cvops.jax.multiclass_nms(boxes, scores, 0.5, score_threshold=0.25, max_output=3)
    >>> found.box.tolist(), found.label.tolist(), found.count.tolist()
    ([[1, 2, -1]], [[0, 1, -1]], [2])
    """
    arrays = {"boxes": array_of(boxes, "boxes"), "scores": array_of(scores, "scores")}
    if objectness is not None:
        arrays["objectness"] = array_of(objectness, "objectness")
    if isinstance(score_threshold, (jax.Array, np.ndarray)) and score_threshold.ndim:
        arrays["score_threshold"] = array_of(score_threshold, "score_threshold")
    _multiclass.check_arrays(arrays)
    with_floors = "score_threshold" in arrays
    options = _multiclass.check_options(
        arrays["scores"], iou_threshold, None if with_floors else score_threshold, max_candidates, max_per_class,
        max_output, multi_label, class_agnostic, metric, True,
    )._asdict()  # fmt: skip
    del options["padded"]
    options["metric"] = _multiclass.METRICS.index(options["metric"])  # XLA has numbers alone
    floor = options.pop("score_threshold")
    images, size = len(arrays["boxes"]), options["max_output"]
    shapes = (images, size), (images, size), (images,)
    constant = [jax.lax.stop_gradient(array) for array in arrays.values()]
    results = tuple(result_of(shape, np.int64) for shape in shapes)
    found = _host(results, *constant, weighted=objectness is not None, with_floors=with_floors, floor=floor, **options)
    return PaddedSelection(*found)
