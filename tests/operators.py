"""The one table of operators: an ordinary call of each, its answer, and what is special about it.

Generic tests iterate over it; a public function without a row, or one that a layer forgets, is a failing test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests import reference, reference_decode, reference_deform, reference_multiclass, reference_roi

_random = np.random.default_rng(0)
_corners = _random.uniform(0, 60, (24, 2))
BOXES = np.concatenate([_corners, _corners + _random.uniform(1, 30, (24, 2))], 1).astype(np.float32)
SCORES = _random.permutation(24).astype(np.float32) / 32  # exact in 16 bits, no ties
IDXS = _random.integers(0, 3, 24)

MAP = _random.normal(size=(2, 12, 9, 10)).astype(np.float32)
ROIS = np.array(
    [[0, 1, 2, 6, 7], [1, 0, 0, 9, 8], [1, 3.25, 1.5, 5.75, 8], [0, -2, 4, 12, 9.5], [1, 2, 2, 2.5, 2.5]], np.float32
)
DEFORM = {
    "input": MAP[:, :4],
    "offset": _random.uniform(-1.5, 1.5, (2, 36, 9, 10)).astype(np.float32),
    "weight": _random.uniform(-1, 1, (6, 2, 3, 3)).astype(np.float32),
    "bias": _random.uniform(-1, 1, 6).astype(np.float32),
    "mask": _random.uniform(0, 1, (2, 18, 9, 10)).astype(np.float32),
}
_CONVOLVED = (*(DEFORM[name] for name in ("input", "offset", "weight", "bias")), (1, 1), (1, 1), (1, 1), DEFORM["mask"])
_GRAD, _GRAD_BY_POSITION, _GRAD_OF_CONVOLUTION = (
    np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
    for shape in ((5, 12, 2, 3), (5, 2, 2, 3), (2, 6, 9, 10))
)
_ARGMAX = reference_roi.roi_pool(MAP, ROIS, (2, 3), 0.5)[1]
_LEVELS = [MAP, np.ascontiguousarray(MAP[:, :, ::2, ::2])]
_SCALES = {"scales": [1.0, 0.5], "sampling_ratio": 2, "canonical_scale": 8, "canonical_level": 0}


def _first(function):
    """roi_pool of the reference returns its argmax too."""
    return lambda *args, **options: function(*args, **options)[0]


def _pooled(features, boxes, output_size, *, sampling_ratio, **options):
    by_name = {str(i): each for i, each in enumerate(features)}
    listed = [boxes[boxes[:, 0] == image][:, 1:] for image in range(2)]
    pooled = reference_roi.multiscale_roi_align(by_name, listed, [], [*by_name], output_size, sampling_ratio, **options)
    result = np.empty_like(pooled)
    result[np.argsort(boxes[:, 0], kind="stable")] = pooled
    return result


def _pooled_backward(grad, boxes, shapes, *, sampling_ratio, **options):
    by_name = {str(i): np.zeros(shape, grad.dtype) for i, shape in enumerate(shapes)}
    listed = [boxes[boxes[:, 0] == image][:, 1:] for image in range(2)]
    grad = grad[np.argsort(boxes[:, 0], kind="stable")]
    gradients = reference_roi.multiscale_roi_align_backward(
        grad, by_name, listed, [], [*by_name], sampling_ratio, **options
    )
    return list(gradients.values())


class Operator(NamedTuple):
    """A row: positional arguments and options of a call, and the function that knows the answer."""

    args: tuple[Any, ...]
    want: Callable[..., Any]
    options: dict[str, Any] = {}  # noqa: RUF012
    lacks: tuple[str, ...] = ()  # layers that have not got it: "torch", "jax"
    gradient: str = ""  # the public function that computes it
    ragged: bool = False  # whether the length of the result depends on values
    indices: bool = False  # whether the result is exact
    in_torchvision: bool = True  # whether torchvision.ops has a function of this name
    traced: bool = False  # whether cvops.torch makes it of torch's operators; otherwise it registers one


_MEASURED = (BOXES, BOXES[3:9])
_BACKWARD = ("torch", "jax")  # where gradients are no functions of their own
OPERATORS = {
    "nms": Operator((BOXES, SCORES, 0.3), reference.nms, ragged=True, indices=True),
    "batched_nms": Operator((BOXES, SCORES, IDXS, 0.3), reference.batched_nms, ragged=True, indices=True),
    "multiclass_nms": Operator(
        (BOXES[None], np.stack([SCORES, SCORES[::-1]], 1)[None], 0.3), reference_multiclass.multiclass_nms,
        ragged=True, indices=True, in_torchvision=False,
    ),
    "roi_align": Operator((MAP, ROIS, (2, 3), 0.5, 2, True), reference_roi.roi_align, gradient="roi_align_backward"),
    "roi_pool": Operator((MAP, ROIS, (2, 3), 0.5), _first(reference_roi.roi_pool), gradient="roi_pool_backward"),
    "ps_roi_align": Operator(
        (MAP, ROIS, (2, 3), 0.5, -1), reference_roi.ps_roi_align, gradient="ps_roi_align_backward"
    ),
    "ps_roi_pool": Operator((MAP, ROIS, (2, 3), 0.5), reference_roi.ps_roi_pool, gradient="ps_roi_pool_backward"),
    "multiscale_roi_align": Operator(
        (_LEVELS, ROIS, (2, 3)), _pooled, _SCALES, gradient="multiscale_roi_align_backward",
        in_torchvision=False,
    ),
    "deform_conv2d": Operator(_CONVOLVED, reference_deform.deform_conv2d, gradient="deform_conv2d_backward"),
    "roi_align_backward": Operator(
        (_GRAD, ROIS, MAP.shape, 0.5, 2, True), reference_roi.roi_align_backward, lacks=_BACKWARD
    ),
    "roi_pool_backward": Operator(
        (_GRAD, ROIS, _ARGMAX, MAP.shape, 0.5), reference_roi.roi_pool_backward, lacks=_BACKWARD
    ),
    "ps_roi_align_backward": Operator(
        (_GRAD_BY_POSITION, ROIS, MAP.shape, 0.5, -1), reference_roi.ps_roi_align_backward, lacks=_BACKWARD
    ),
    "ps_roi_pool_backward": Operator(
        (_GRAD_BY_POSITION, ROIS, MAP.shape, 0.5), reference_roi.ps_roi_pool_backward, lacks=_BACKWARD
    ),
    "multiscale_roi_align_backward": Operator(
        (_GRAD, ROIS, [each.shape for each in _LEVELS]), _pooled_backward, _SCALES, lacks=_BACKWARD
    ),
    "deform_conv2d_backward": Operator(
        (_GRAD_OF_CONVOLUTION, *_CONVOLVED), reference_deform.deform_conv2d_backward, lacks=_BACKWARD
    ),
    "box_area": Operator((BOXES,), reference.box_area, traced=True),
    "box_iou": Operator(_MEASURED, reference.box_iou),
    "generalized_box_iou": Operator(_MEASURED, reference.generalized_box_iou),
    "distance_box_iou": Operator(_MEASURED, reference.distance_box_iou),
    "complete_box_iou": Operator(_MEASURED, reference.complete_box_iou),
    "box_convert": Operator((BOXES, "xyxy", "cxcywh"), reference.box_convert, traced=True),
    "clip_boxes_to_image": Operator((BOXES, (50, 40)), reference.clip_boxes_to_image, traced=True),
    "remove_small_boxes": Operator(
        (BOXES, 10.0), reference.remove_small_boxes, lacks=("jax",), ragged=True, indices=True, traced=True
    ),
    "masks_to_boxes": Operator((MAP[0] > 1.5,), reference.masks_to_boxes, traced=True),
    "decode_boxes": Operator(
        (np.outer(SCORES, [1, 2, -1, 1]).astype(np.float32), BOXES), reference_decode.decode_boxes,
        in_torchvision=False, traced=True,
    ),
    "encode_boxes": Operator(
        (BOXES, BOXES[::-1]), reference_decode.encode_boxes, in_torchvision=False, traced=True
    ),
    "distance_to_boxes": Operator(
        (BOXES[:, :2], BOXES), reference_decode.distance_to_boxes, in_torchvision=False, traced=True
    ),
    "scale_boxes": Operator(
        (BOXES, (60, 90), (50, 70)), reference_decode.scale_boxes, {"letterbox": True},
        in_torchvision=False, traced=True,
    ),
}  # fmt: skip
# Functions that take no arrays, and so have no call here: a test of their own reaches each.
WITHOUT_ARRAYS = {"get_num_threads", "set_num_threads", "warmup", "make_points", "make_anchors"}


def converted(value, convert):
    """The value with each array in it, also in lists, passed through `convert`."""
    if isinstance(value, list) and any(isinstance(each, np.ndarray) for each in value):
        return [convert(each) for each in value]
    return convert(value) if isinstance(value, np.ndarray) else value
