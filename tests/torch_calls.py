"""An ordinary call of each operator of `cvops.torch`: NumPy arguments, and what the reference answers."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests import reference, reference_deform, reference_roi

# Marks of tests in which torch warns of itself.
quiet = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),  # deprecated
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # read by opcheck
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0"),
]

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


def _first(function):
    """roi_pool of the reference returns its argmax too."""
    return lambda *args, **options: function(*args, **options)[0]


# Name of a public function -> positional arguments, and the function that knows the answer.
CALLS = {
    "nms": ((BOXES, SCORES, 0.3), reference.nms),
    "batched_nms": ((BOXES, SCORES, IDXS, 0.3), reference.batched_nms),
    "roi_align": ((MAP, ROIS, (2, 3), 0.5, 2, True), reference_roi.roi_align),
    "roi_pool": ((MAP, ROIS, (2, 3), 0.5), _first(reference_roi.roi_pool)),
    "ps_roi_align": ((MAP, ROIS, (2, 3), 0.5, -1), reference_roi.ps_roi_align),
    "ps_roi_pool": ((MAP, ROIS, (2, 3), 0.5), reference_roi.ps_roi_pool),
    "deform_conv2d": (
        (*(DEFORM[name] for name in ("input", "offset", "weight", "bias")), (1, 1), (1, 1), (1, 1), DEFORM["mask"]),
        reference_deform.deform_conv2d,
    ),
    "box_area": ((BOXES,), reference.box_area),
    "box_iou": ((BOXES, BOXES[3:9]), reference.box_iou),
    "generalized_box_iou": ((BOXES, BOXES[3:9]), reference.generalized_box_iou),
    "distance_box_iou": ((BOXES, BOXES[3:9]), reference.distance_box_iou),
    "complete_box_iou": ((BOXES, BOXES[3:9]), reference.complete_box_iou),
    "box_convert": ((BOXES, "xyxy", "cxcywh"), reference.box_convert),
    "clip_boxes_to_image": ((BOXES, (50, 40)), reference.clip_boxes_to_image),
    "remove_small_boxes": ((BOXES, 10.0), reference.remove_small_boxes),
    "masks_to_boxes": ((MAP[0] > 1.5,), reference.masks_to_boxes),
}
RAGGED = ("nms", "batched_nms", "remove_small_boxes")
POOLING = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")


@functools.cache
def want(name, dtype="float32"):
    """The answer to the call with its float32 arrays in this dtype."""
    args, answer = CALLS[name]
    return answer(*(_cast(arg, dtype) for arg in args))


def tensors(name, dtype=None):
    """The arguments with tensors in place of arrays, the float32 ones in this dtype of torch."""
    import torch

    def tensor(value):
        if not isinstance(value, np.ndarray):
            return value
        result = torch.from_numpy(value.copy())
        return result.to(dtype) if dtype is not None and result.dtype == torch.float32 else result

    return [tensor(value) for value in CALLS[name][0]]


def _cast(value, dtype):
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value
