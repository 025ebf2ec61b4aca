"""What another thread does to the inputs of a call may change its answer, but kernels stay within their arrays."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import cvops
from cvops._cpu import _roi_kernels, _roi_tables
from tests import strategies_roi as strategies
from tests.strategies import few


def between_marks(size, dtype=np.int64):
    """(array, function that raises when something was written beside it)."""
    memory = np.full(size + 2000, 77, dtype)

    def check():
        assert (memory[:1000] == 77).all()
        assert (memory[1000 + size :] == 77).all()

    return memory[1000 : 1000 + size], check


@pytest.mark.parametrize("value", [-1, 12, 13, -(2**31), 2**31 - 1])
def test_argmax_outside_the_map(value):
    argmax = np.full(2 * 5 * 4, value, np.int32)
    argmax[7] = 3
    argmax.setflags(write=False)
    grad = np.ones(40, np.float32)
    grad.setflags(write=False)
    result, check = between_marks(5 * 12, np.float32)
    order, starts = np.arange(2), np.array([0, 2])
    _roi_kernels.maxima_backward(0, 2, 4, (1, 5, 3, 4), 4, grad, argmax, order, starts, True, result)
    check()
    assert result[12 + 3] == 1
    assert result.sum() == 1


@pytest.mark.parametrize("layout", [_roi_tables.ALIGN, _roi_tables.ALIGN_CENTRES])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e30, 1e30, 5, -3])
def test_boxes_that_were_others_when_they_were_put_in_order(value, layout):
    """The table reads nothing outside the maps, whatever images and corners have become."""
    images, height, width, rows, columns = 2, 7, 5, 2, 3
    boxes = strategies.rois("all", 30, (images, 1, height, width), 1, "f4")
    levels, limits, none = np.array([[height, width, 1.0]]), np.empty(0), np.empty(0, np.int64)
    sizes = 1 << 20, 0, 3, layout, rows, columns, 0, 4, True
    given = boxes.view()
    given.setflags(write=False)  # as kernels get arrays
    bad, order, starts, _ = _roi_tables.table_of_samples(given, images, levels, limits, 0, 100, none, none, *sizes)
    assert bad == -1
    boxes[::2] = value
    bad, _, _, chunk = _roi_tables.table_of_samples(given, images, levels, limits, 1, 100, order, starts, *sizes)
    order, starts, runs, run_starts, first, offset, _ = chunk
    assert bad == -1
    np.testing.assert_array_equal(np.sort(order), np.sort(order) % 30)
    assert (starts[0], starts[-1]) == (0, 29)
    assert (runs[: run_starts[-1]] < 3).all()
    first = first.reshape(29, rows + columns + 2).astype(np.int64)
    assert (np.diff(first.ravel()) >= 0).all()
    for of_roi in first:
        assert (offset[of_roi[0] : of_roi[rows]] < height * width).all()
        assert (offset[of_roi[0] : of_roi[rows]] % width == 0).all()
        assert (offset[of_roi[rows + 1] : of_roi[-1]] < width).all()
        assert (offset[of_roi[0] : of_roi[-1]] >= 0).all()


# A thread changes what is named; the process must live. Calls that find something wrong in time raise ValueError.
HAMMER = """
import sys
import threading
import time

import numpy as np

import cvops

cvops.set_num_threads(2)
random = np.random.default_rng(0)
what = sys.argv[1]


def corners(count, side):
    corner = random.uniform(0, side, (count, 2))
    return np.concatenate([corner, corner + 5], 1).astype("f")


if what in ("idxs", "boxes of nms", "scores"):
    boxes, scores, idxs = corners(200_000, 1000), random.random(200_000).astype("f"), np.zeros(200_000, np.int64)
    changing, values = {
        "idxs": (idxs, [0, 10**9, -(2**62)]), "boxes of nms": (boxes[::3], [0, np.nan, np.inf, -1e38, 1e38]),
        "scores": (scores[::3], [0, np.nan, -np.inf]),
    }[what]
    call = lambda: cvops.batched_nms(boxes, scores, idxs, 0.9, max_output=10)
elif what == "argmax":
    boxes = np.concatenate([np.zeros((20_000, 1), "f"), corners(20_000, 20)], 1)
    maps = random.random((1, 8, 32, 32)).astype("f")
    grad, changing = cvops.roi_pool(maps, boxes, 3, return_argmax=True)
    values = [0, 2**31 - 1, -(2**31), 1023, 1024]
    call = lambda: cvops.roi_pool_backward(grad, boxes, changing, maps.shape)
elif what == "boxes of RoIs":
    boxes = np.concatenate([np.zeros((20_000, 1), "f"), corners(20_000, 20)], 1)
    maps, changing, values = random.random((2, 8, 32, 32)).astype("f"), boxes[::2], [0, 1, np.nan, 1e30, -5, np.inf]
    pool = cvops.MultiScaleRoIAlign(["map"], 2, -1, scales=[1])

    def call():
        cvops.roi_align(maps, boxes, 2)
        cvops.roi_align_backward(np.ones((20_000, 8, 1, 1), "f"), boxes, maps.shape)
        cvops.roi_pool(maps, boxes, 2)
        cvops.ps_roi_align(maps, boxes, 2)
        cvops.ps_roi_pool(maps, boxes, 2)
        pool({"map": maps}, boxes, [])
else:
    image, weight = random.random((1, 16, 60, 60)).astype("f"), random.random((16, 16, 3, 3)).astype("f")
    changing, values = np.zeros((1, 18, 58, 58), "f"), [0, np.nan, np.inf, 1e30, -1e9, 57.5]

    def call():
        cvops.deform_conv2d(image, changing, weight)
        cvops.deform_conv2d_backward(np.ones((1, 16, 58, 58), "f"), image, changing, weight)


call()
stop = []


def change():
    while not stop:
        for value in values:
            changing[...] = value
            time.sleep(random.choice([0, 0.0002, 0.002]))


thread = threading.Thread(target=change)
thread.start()
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        call()
    except (MemoryError, ValueError):
        pass
stop.append(True)
thread.join()
print("alive")
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", few(["idxs", "boxes of nms", "scores", "argmax", "boxes of RoIs", "offset"], 6))
def test_hammer(what):
    command = [sys.executable, "-X", "faulthandler", "-c", HAMMER, what]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr


def test_labels_beside_the_ordinary_answer():
    """Grouping reads each label once, and still groups."""
    random = np.random.default_rng(0)
    corner = random.uniform(0, 30, (600, 2))
    boxes, scores = np.concatenate([corner, corner + 9], 1), random.random(600)
    idxs = random.integers(-3, 4, 600)
    want = [cvops.nms(boxes[idxs == c], scores[idxs == c], 0.3) for c in range(-3, 4)]
    want = np.concatenate([np.flatnonzero(idxs == c)[keep] for c, keep in zip(range(-3, 4), want, strict=True)])
    got = cvops.batched_nms(boxes, scores, idxs, 0.3)
    np.testing.assert_array_equal(np.sort(got), np.sort(want))
