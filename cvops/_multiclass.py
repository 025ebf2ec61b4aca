"""From the decoded output of a detection head to detections: the public function."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

from ._arrays import backend_of, to_caller
from ._checks import BOX_DTYPES, FLOATS, check_dtype, count, flag, kind, number, one_of, rounded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._types import Array, ArrayT, Indices, Integer, Number

    Metric = Literal["iou"]

METRICS = ("iou",)
_MOST = 2**48  # detections: more than any memory holds
_Any = TypeVar("_Any")


class Selection(NamedTuple, Generic[_Any]):
    """Detections of a batch of images, one after the other: ``boxes[s.image, s.box]`` are their boxes.

    Parameters
    ----------
    image, box, label : arrays of shape (M,), int64
        The image, the box in it and the class of each detection.
    """

    image: _Any
    box: _Any
    label: _Any


class PaddedSelection(NamedTuple, Generic[_Any]):
    """Detections of a batch of images in arrays whose shapes do not depend on the data.

    Parameters
    ----------
    box, label : arrays of shape (N, max_output), int64
        The box and the class of each detection of each image, then -1.
    count : array of shape (N,), int64
        How many detections there are.
    """

    box: _Any
    label: _Any
    count: _Any  # type: ignore[assignment]


# fmt: off
@overload
def multiclass_nms(
    boxes: NDArray[Any], scores: Array, iou_threshold: Number, *, score_threshold: Number | Array | None = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., max_output: Integer | None = ...,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Array | None = ..., metric: Metric = ...,
    padded: Literal[False] = ...,
) -> Selection[Indices]: ...
@overload
def multiclass_nms(
    boxes: NDArray[Any], scores: Array, iou_threshold: Number, *, score_threshold: Number | Array | None = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., max_output: Integer,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Array | None = ..., metric: Metric = ...,
    padded: Literal[True],
) -> PaddedSelection[Indices]: ...
@overload
def multiclass_nms(
    boxes: ArrayT, scores: Array, iou_threshold: Number, *, score_threshold: Number | Array | None = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., max_output: Integer | None = ...,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Array | None = ..., metric: Metric = ...,
    padded: Literal[False] = ...,
) -> Selection[ArrayT]: ...
@overload
def multiclass_nms(
    boxes: ArrayT, scores: Array, iou_threshold: Number, *, score_threshold: Number | Array | None = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., max_output: Integer,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Array | None = ..., metric: Metric = ...,
    padded: Literal[True],
) -> PaddedSelection[ArrayT]: ...
@overload
def multiclass_nms(
    boxes: NDArray[Any], scores: Array, iou_threshold: Number, *, score_threshold: Number | Array | None = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., max_output: Integer,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Array | None = ..., metric: Metric = ...,
    padded: bool,
) -> Selection[Indices] | PaddedSelection[Indices]: ...
@overload
def multiclass_nms(
    boxes: ArrayT, scores: Array, iou_threshold: Number, *, score_threshold: Number | Array | None = ...,
    max_candidates: Integer | None = ..., max_per_class: Integer | None = ..., max_output: Integer,
    multi_label: bool = ..., class_agnostic: bool = ..., objectness: Array | None = ..., metric: Metric = ...,
    padded: bool,
) -> Selection[ArrayT] | PaddedSelection[ArrayT]: ...
# fmt: on
def multiclass_nms(
    boxes: Array,
    scores: Array,
    iou_threshold: Number,
    *,
    score_threshold: Number | Array | None = None,
    max_candidates: Integer | None = None,
    max_per_class: Integer | None = None,
    max_output: Integer | None = None,
    multi_label: bool = True,
    class_agnostic: bool = False,
    objectness: Array | None = None,
    metric: Metric = "iou",
    padded: bool = False,
) -> Any:
    """Detections from the boxes and class scores of a batch of images: threshold, rank, and suppress in each class.

    Parameters
    ----------
    boxes : array of shape (N, L, 4) or (N, L, C, 4), float64 | float32 | float16 | integer
        Corners ``x1, y1, x2, y2``, in any unit, of each box, or of each box and class.
    scores : array of shape (N, L, C), float64 | float32 | float16
        Of each box and class, of any strides: a head (N, C, L) enters as ``scores.transpose(0, 2, 1)``, without a copy.
    iou_threshold : float from 0 to 1
        A box is dropped when its intersection over union with a kept box of its image and class is greater than this.
    score_threshold : float or array of shape (C,), optional
        Only boxes and classes with a score greater than this take part; an array has a floor for each class. By default
        all do. It is rounded to the dtype of `scores` first.
    max_candidates : int >= 0, optional
        At most so many boxes and classes of each image, the best ones, take part in suppression.
    max_per_class : int >= 0, optional
        At most so many detections of each class in each image.
    max_output : int >= 0, optional
        At most so many detections in each image, after `max_per_class`.
    multi_label : bool
        Whether a box may be detected as several classes. False: only as that of its highest score, the first of equals.
    class_agnostic : bool
        Whether boxes suppress those of other classes too.
    objectness : array of shape (N, L), float64 | float32 | float16, optional
        Scores are multiplied by this (YOLOv5, YOLOX): in float64 if `boxes`, `scores` or `objectness` is float64, or
        `boxes` has integers of 32 or 64 bits, else in float32.
    metric : {"iou"}
        How the overlap of two boxes is measured.
    padded : bool
        Return arrays whose shapes do not depend on the data; `max_output` is required then.

    Returns
    -------
    selection : Selection(image, box, label) of arrays of shape (M,), int64
        The detections, image after image, in each by decreasing score, then box, then class; NaN last.
        ``boxes[s.image, s.box]`` and ``scores[s.image, s.box, s.label]`` gather what belongs to them. Arrays of the
        library and on the device of `boxes` (JAX without 64-bit types makes them int32).
    selection : PaddedSelection(box, label, count) of shapes (N, max_output), (N, max_output) and (N,), int64
        With ``padded=True``: the same for each image, followed by -1, and how many there are.

    Raises
    ------
    TypeError, ValueError
        As `nms`; a shape does not fit, a limit is negative, or `padded` is asked for without `max_output`; on a GPU an
        image has more than 2**31 - 1 scores (ValueError).

    See Also
    --------
    batched_nms : for boxes that have one score and one class each.
    decode_boxes, distance_to_boxes : what a head predicts as boxes.

    Notes
    -----
    A box whose scores are all NaN has the class 0 where only the best one counts. A floor of NaN lets nothing pass.
    What overlaps is decided as in `nms`. For finite scores and boxes with an area this is ONNX's NonMaxSuppression,
    whose limit is `max_per_class`, up to the order of rows, and TensorRT's EfficientNMS where its limit of 4 096
    candidates does not matter. The result is the same for any number of threads.

    On a GPU with ``padded=True`` nothing is read back from the device, and the call can be captured in a CUDA graph;
    else the host waits once, to read how many detections there are. The workspace there is 16 bytes for each score, or
    for each box with ``multi_label=False`` (24 in float64), and 9 for each of the `max_candidates` of an image, by
    default for each score or box again.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> boxes = np.array([[[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]]], np.float32)
    >>> scores = np.array([[[0.8, 0.1], [0.9, 0.1], [0.1, 0.7]]], np.float32)  # one image, three boxes, two classes
    >>> cvops.multiclass_nms(boxes, scores, 0.5, score_threshold=0.25)
    Selection(image=array([0, 0]), box=array([1, 2]), label=array([0, 1]))
    """
    arrays: dict[str, Any] = {"boxes": boxes, "scores": scores}
    if objectness is not None:
        arrays["objectness"] = objectness
    if hasattr(type(score_threshold), "__dlpack__") and getattr(score_threshold, "ndim", True):
        arrays["score_threshold"] = score_threshold
    with backend_of(**arrays) as backend:
        native = {name: backend.asarray(array, name) for name, array in arrays.items()}
        check_arrays(native)
        floor = native.get("score_threshold")
        options = check_options(
            native["scores"], iou_threshold, score_threshold if floor is None else None, max_candidates, max_per_class,
            max_output, multi_label, class_agnostic, metric, padded,
        )  # fmt: skip
        if floor is not None:
            options = options._replace(score_threshold=floor)
        found = backend.multiclass_nms(native["boxes"], native["scores"], native.get("objectness"), *options)
        of_kind: Any = PaddedSelection if options.padded else Selection
        return of_kind(*(to_caller(array, boxes) for array in found))


class Options(NamedTuple):
    """What a backend gets besides arrays."""

    iou_threshold: float
    score_threshold: Any  # a float, an array (C,), or None
    max_candidates: int | None
    max_per_class: int | None
    max_output: int | None
    multi_label: bool
    class_agnostic: bool
    metric: str
    padded: bool


def check_arrays(arrays: dict[str, Any]) -> None:
    """Raise unless the arrays, by argument name, have shapes and dtypes that fit each other."""
    boxes, scores = arrays["boxes"], arrays["scores"]
    if scores.ndim != 3:
        text = f"`scores` must have shape (N, L, C), got {scores.shape}"
        raise ValueError(text + (": use `scores[None]`" if scores.ndim == 2 else ""))
    images, length, classes = scores.shape
    if boxes.shape not in ((images, length, 4), (images, length, classes, 4)):
        text = f"`boxes` must have shape {(images, length, 4)} or {(images, length, classes, 4)}, as `scores`"
        raise ValueError(f"{text}, got {boxes.shape}")
    check_dtype(boxes, "boxes", BOX_DTYPES)
    for name, shape in (("objectness", (images, length)), ("score_threshold", (classes,))):
        if name in arrays and arrays[name].shape != shape:
            raise ValueError(f"`{name}` must have shape {shape}, as `scores`, got {arrays[name].shape}")
    for name in ("scores", "objectness", "score_threshold"):
        if name in arrays:
            check_dtype(arrays[name], name, FLOATS)


def check_options(
    scores: Any, iou_threshold: Any, score_threshold: Any, max_candidates: Any, max_per_class: Any, max_output: Any,
    multi_label: Any, class_agnostic: Any, metric: Any, padded: Any,
) -> Options:  # fmt: skip
    """The options as plain numbers and flags."""
    check_form_of_floor(score_threshold)
    padded = flag(padded, "padded")
    if padded and max_output is None:
        raise ValueError("`max_output` must be an integer where `padded` is True, got None")

    def limit(value: Any, name: str, maximum: float = math.inf) -> int | None:
        return None if value is None else min(count(value, name, maximum=maximum), _MOST)

    return Options(
        number(iou_threshold, "iou_threshold", 0.0, 1.0),
        None if score_threshold is None else rounded(number(score_threshold, "score_threshold"), scores.dtype.char),
        limit(max_candidates, "max_candidates"),
        limit(max_per_class, "max_per_class"),
        limit(max_output, "max_output", _MOST if padded else math.inf),
        flag(multi_label, "multi_label"),
        flag(class_agnostic, "class_agnostic"),
        one_of(metric, "metric", METRICS),
        padded,
    )


def check_form_of_floor(score_threshold: Any) -> None:
    """Raise TypeError for a floor for each class that is not in an array."""
    if isinstance(score_threshold, (list, tuple)):
        raise TypeError(f"`score_threshold` must be a number or an array of shape (C,), got {kind(score_threshold)}")
