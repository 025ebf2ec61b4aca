"""The warning for boxes that look like x, y, width and height: once in a process, and only where it may be."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest

import cvops
from tests import libraries, strategies

_xywh = pytest.importorskip("cvops._cpu._xywh")
MAP = np.ones((1, 4, 8, 8), np.float32)
OPERATORS = {
    "nms": lambda boxes: cvops.nms(boxes, _scores(boxes), 0.5),
    "nms with a score threshold": lambda boxes: cvops.nms(boxes, _scores(boxes), 0.5, score_threshold=2),
    "padded nms": lambda boxes: cvops.nms(boxes, _scores(boxes), 0.5, max_output=1, padded=True),
    "batched_nms": lambda boxes: cvops.batched_nms(boxes, _scores(boxes), np.arange(len(boxes)) % 2, 0.5),
    "batched_nms of few": lambda boxes: cvops.batched_nms(
        boxes, _scores(boxes), np.arange(len(boxes)) % 2, 0.5, score_threshold=2
    ),
    "multiclass_nms": lambda boxes: cvops.multiclass_nms(boxes[None], _scores(boxes)[None, :, None], 0.5),
    "multiclass_nms of many": lambda boxes: cvops.multiclass_nms(
        boxes[None], _scores(boxes)[None, :, None], 0.5, class_agnostic=True, max_per_class=9
    ),
    "roi_align": lambda boxes: cvops.roi_align(MAP, [boxes], 1),
    "RoIAlign": lambda boxes: cvops.RoIAlign(1, 1.0, -1)(MAP, [boxes]),
    "roi_pool": lambda boxes: cvops.roi_pool(MAP, _rois(boxes), 1),
    "ps_roi_align": lambda boxes: cvops.ps_roi_align(MAP, _rois(boxes), 2),
    "ps_roi_pool": lambda boxes: cvops.ps_roi_pool(MAP, [boxes], 2),
    "MultiScaleRoIAlign": lambda boxes: cvops.MultiScaleRoIAlign(["a"], 1, 2, scales=[1])({"a": MAP}, [boxes], []),
}
BOX_FUNCTIONS = {
    "box_area": cvops.box_area,
    "box_iou": lambda boxes: cvops.box_iou(boxes, boxes),
    "complete_box_iou": lambda boxes: cvops.complete_box_iou(boxes, boxes),
    "box_convert": lambda boxes: cvops.box_convert(boxes, "xyxy", "xywh"),
    "clip_boxes_to_image": lambda boxes: cvops.clip_boxes_to_image(boxes, (5, 5)),
    "remove_small_boxes": lambda boxes: cvops.remove_small_boxes(boxes, 1),
}
every_operator = pytest.mark.parametrize("operator", OPERATORS)


def _scores(boxes):
    return np.linspace(0, 1, len(boxes), dtype=np.float32)


def _rois(boxes):
    return np.concatenate([np.zeros((len(boxes), 1)), boxes], 1)


def boxes_of(inverted, upright, axis=0, dtype=np.float32):
    """Boxes of which so many are inverted along an axis, in a drawn order."""
    boxes = np.tile(np.array([50, 60, 70, 90], dtype), (inverted + upright, 1))
    boxes[:inverted, 2 + axis] = 30
    return np.random.default_rng(0).permutation(boxes)


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    monkeypatch.setattr(_xywh, "_untold", [True])


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [warning for warning in caught if "looks like xywh" in str(warning.message)]


@every_operator
@pytest.mark.parametrize("dtype", strategies.few([np.float32, np.float64, np.float16], every=3))
@pytest.mark.parametrize(
    ("inverted", "upright"),
    [(8, 0), (7, 0), (5, 3), (4, 4), (4, 3), (3, 5), (0, 8), (0, 0), (5, 4), (151, 150), (150, 150), (501, 500)],
)
def test_more_than_half_of_at_least_8(operator, inverted, upright, dtype):
    wanted = inverted + upright >= 8 and inverted > upright
    for axis in (0, 1):
        _xywh._untold[:] = [True]
        assert len(told(lambda a=axis: OPERATORS[operator](boxes_of(inverted, upright, a, dtype)))) == wanted


@every_operator
def test_once_and_with_advice(operator):
    (warning,) = told(lambda: [OPERATORS[operator](boxes_of(9, 0)) for _ in range(3)])
    assert warning.category is UserWarning
    assert 'cvops.box_convert(boxes, "xywh", "xyxy")' in str(warning.message)
    assert warning.filename == __file__
    for other in OPERATORS:
        assert not told(functools.partial(OPERATORS[other], boxes_of(9, 0)))


@pytest.mark.parametrize("function", BOX_FUNCTIONS)
def test_box_functions_say_nothing(function):
    assert not told(lambda: BOX_FUNCTIONS[function](boxes_of(9, 0)))


def test_other_odd_boxes_say_nothing():
    odd = np.array([[math.nan] * 4, [5, 5, 5, 5], [math.nan, 0, 0, 9], [-math.inf, 0, math.inf, 9]], np.float32)
    assert not told(lambda: cvops.nms(np.tile(odd, (8, 1)), np.ones(32, np.float32), 0.5))


def test_a_gpu_says_nothing(emulated):
    assert not told(lambda: cvops.nms(emulated(boxes_of(9, 0)), emulated(np.ones(9, np.float32)), 0.5))
    assert not told(lambda: cvops.roi_align(emulated(MAP), emulated(_rois(boxes_of(9, 0))), 1))


@pytest.mark.parametrize("library", ["array_api_strict", "torch", "jax"])
def test_arrays_of_other_libraries_on_the_cpu(library):
    convert = libraries.CONVERTERS[library]
    assert told(lambda: cvops.nms(convert(boxes_of(9, 0)), convert(np.ones(9, np.float32)), 0.5))


def test_cvops_torch(torch):
    import cvops.torch as ops

    boxes = torch.from_numpy(boxes_of(9, 0))
    assert len(told(lambda: [ops.nms(boxes, torch.ones(9), 0.5) for _ in range(2)])) == 1
    assert not told(lambda: ops.box_convert(boxes, "xywh", "xyxy"))


def test_the_answer_is_the_same():
    boxes = boxes_of(9, 3)
    _xywh._untold.clear()
    want = cvops.nms(boxes, _scores(boxes), 0.5).tolist()
    _xywh._untold.append(True)
    told_of = told(lambda: np.testing.assert_array_equal(cvops.nms(boxes, _scores(boxes), 0.5), want))
    assert len(told_of) == 1


@pytest.mark.parametrize("skipped", [0, 40, 300])
@pytest.mark.parametrize("images", [1, 3])
def test_the_answer_of_multiclass_nms_is_the_same(skipped, images):
    """What was found on the way to the warning is not used up, wherever the candidates lie."""
    boxes = np.stack([boxes_of(320, 0)] * images) + np.arange(320, dtype=np.float32)[:, None]
    scores = np.random.default_rng(0).uniform(0.5, 1, (images, 320, 5)).astype(np.float32)
    scores[:, :skipped] = 0
    options = {"score_threshold": 0.2, "max_output": 20}
    _xywh._untold.clear()
    want = cvops.multiclass_nms(boxes, scores, 0.5, **options)
    _xywh._untold.append(True)
    told_of = told(lambda: np.testing.assert_array_equal(cvops.multiclass_nms(boxes, scores, 0.5, **options), want))
    assert len(told_of) == 1


@pytest.mark.slow
def test_a_process_of_its_own():
    code = """
import numpy as np, cvops
boxes = np.array([[50, 60, 7, 9]] * 8, np.float32)
for _ in range(2):
    cvops.nms(boxes, np.ones(8, np.float32), 0.5)
    cvops.roi_pool(np.ones((1, 1, 8, 8), np.float32), [boxes], 1)
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("looks like xywh"), done.stderr.count("UserWarning")) == (0, 1, 1)
