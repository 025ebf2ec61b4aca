"""Small calls of roi_align and roi_pool, which one dispatch takes: the bits of the general way, or left to it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import cvops
from cvops._cpu import _roi_few, lean_roi_align, lean_roi_pool
from tests import strategies_roi as strategies

SHAPES = [(1, 1, 50, 50), (1, 20, 19, 30), (2, 3, 20, 30), (2, 4, 5, 6), (3, 17, 13, 9), (1, 64, 1, 1), (1, 2, 1, 40)]


def in_general(monkeypatch, operator, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(_roi_few, "_MOST_VALUES", -1)
        return operator(*arguments)


def same(got, want):
    assert got is not None
    assert (got.shape, got.dtype, got.strides) == (want.shape, want.dtype, want.strides)
    assert got.tobytes() == want.tobytes()
    assert got.flags.writeable
    assert got.ctypes.data % 64 == 0


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_of_the_general_way(shape, count, monkeypatch):
    maps, scale = strategies.normal(shape, "f4"), 0.25
    maps[..., -1, -1], maps[0, 0, 0, 0] = np.nan, -np.inf
    every = strategies.rois("all", 60, shape, scale, "f4")
    for begin in range(0, 60, count):
        boxes = every[begin : begin + count].copy()
        for size in (7, (3, 5), 1):
            want = in_general(monkeypatch, cvops.roi_pool, maps, boxes, size, scale)
            same(lean_roi_pool(maps, boxes, size, scale), want)
            for ratio in (-1, 0, 3):
                for aligned in (False, True):
                    want = in_general(monkeypatch, cvops.roi_align, maps, boxes, size, scale, ratio, aligned)
                    same(lean_roi_align(maps, boxes, size, scale, ratio, aligned), want)


def test_readonly_arrays_are_taken_too():
    maps, boxes = np.ones((1, 1, 4, 4), np.float32), np.array([[0, 0, 0, 3, 3]], np.float32)
    maps.flags.writeable = boxes.flags.writeable = False
    assert lean_roi_align(maps, boxes, 2, 1.0, 2, True) is not None
    assert lean_roi_pool(maps, boxes, 2, 1.0) is not None


MAPS, BOXES = np.ones((1, 2, 4, 4), np.float32), np.array([[0, 0, 0, 3, 3]], np.float32)
UNALIGNED = np.frombuffer(bytes(MAPS.nbytes + 1), np.uint8)[1:].view(np.float32).reshape(MAPS.shape)


@pytest.mark.parametrize(
    "change",
    [
        {"input": MAPS.astype("f8")},
        {"input": MAPS.astype("f2")},
        {"input": MAPS.astype(">f4")},
        {"input": np.ones((1, 4, 4, 2), np.float32).transpose(0, 3, 1, 2)},
        {"input": MAPS[..., ::-1]},
        {"input": UNALIGNED},
        {"input": MAPS[0]},
        {"input": MAPS[:0]},
        {"input": MAPS.tolist()},
        {"input": np.ma.masked_array(MAPS)},
        {"input": np.ones((1, 3000, 4, 4), np.float32), "output_size": 7},
        {"input": MAPS.view(type("Kind", (np.ndarray,), {}))},
        {"input": np.float32(1)},
        {"input": np.ones((1, 0, 4, 4), np.float32)},
        {"boxes": [BOXES[:, 1:]]},
        {"boxes": BOXES.view(type("Kind", (np.ndarray,), {}))},
        {"boxes": BOXES.astype(">f4")},
        {"boxes": np.frombuffer(bytes(21), np.uint8)[1:].view(np.float32).reshape(1, 5)},  # unaligned
        {"boxes": np.zeros((1, 6), np.float32)},
        {"boxes": BOXES[None]},
        {"boxes": BOXES.astype("f8")},
        {"boxes": BOXES[:, 1:]},
        {"boxes": BOXES[0]},
        {"boxes": BOXES[:0]},
        {"boxes": np.repeat(BOXES, 4, 0)[::2]},
        {"boxes": BOXES + 1},  # no such image
        {"boxes": np.repeat(np.array([[0, 3, 3, 1, 1]], np.float32), 8, 0)},  # looks like xywh
        {"output_size": 0},
        {"output_size": -1},
        {"output_size": (2,)},
        {"output_size": [2, 2]},
        {"output_size": (2, 2.0)},
        {"output_size": True},
        {"output_size": 1 << 40},
        {"output_size": 1 << 80},
        {"output_size": (2, -(1 << 80))},
        {"output_size": 30_000},
        {"output_size": np.int64(2)},
        {"spatial_scale": 0.0},
        {"spatial_scale": -1.0},
        {"spatial_scale": float("nan")},
        {"spatial_scale": float("inf")},
        {"spatial_scale": 1},
        {"spatial_scale": 1e30},
        {"spatial_scale": np.float64(1)},
    ],
    ids=lambda change: " ".join(change),
)
def test_every_other_call_goes_the_general_way(change):
    arguments = {"input": MAPS, "boxes": BOXES, "output_size": 2, "spatial_scale": 1.0}
    assert lean_roi_pool(**arguments) is not None
    assert lean_roi_align(**arguments, sampling_ratio=2, aligned=True) is not None
    assert lean_roi_pool(**arguments | change) is None
    assert lean_roi_align(**arguments | change, sampling_ratio=2, aligned=True) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_ratio": 1 << 20},
        {"sampling_ratio": -(1 << 80)},
        {"sampling_ratio": 1 << 80},
        {"sampling_ratio": True},
        {"aligned": 1},
        {"aligned": np.True_},
    ],
)
def test_other_samples_go_the_general_way(change):
    arguments = {"input": MAPS, "boxes": BOXES, "output_size": 2, "spatial_scale": 1.0}
    assert lean_roi_align(**arguments | {"sampling_ratio": 2, "aligned": True} | change) is None


def test_rois_that_read_the_same_pixels_many_times_go_the_general_way():
    """It transposes the maps once: for 38 RoIs as large as a map that was three times as fast."""
    maps, size = np.ones((1, 16, 50, 50), np.float32), 7
    large, small = (np.array([[0, 2, 2, end, end]], np.float32) for end in (47, 9))
    for box, count, taken in ((large, 2, True), (large, 38, False), (small, 38, True)):
        pooled = lean_roi_align(maps, np.repeat(box, count, 0), size, 1.0, -1, True)
        assert (pooled is not None) == taken


def test_a_roi_that_would_take_much_memory_goes_the_general_way():
    """Its taps, or sums of each row for each bin column, would take more than 10 MB."""
    for channels in (1, 4):
        wide = np.ones((1, channels, 2, 900_000), np.float32)
        box = np.array([[0, 0, 0, 900_000, 2]], np.float32)
        assert lean_roi_align(wide, box, (1, 30), 1.0, 0, True) is None
        assert lean_roi_align(wide, box, (1, 30), 1.0, 2, True) is not None
        high = np.ones((1, channels, 2_000, 3), np.float32)
        for x in (0, 100):  # or without taps along x
            box = np.array([[0, x, 0, x + 3, 2_000]], np.float32)
            assert lean_roi_align(high, box, (1, 7_000), 1.0, 0, True) is None
            assert lean_roi_align(high, box, (1, 70), 1.0, 0, True) is not None
    tall = np.ones((1, 1, 600_000, 1), np.float32)
    assert lean_roi_align(tall, np.array([[0, 0, 0, 1, 600_000]], np.float32), (16, 1), 1.0, 0, True) is None


@pytest.mark.parametrize("channels", [2, 5, 20])
@pytest.mark.parametrize("size", [(3, 18), (18, 3), (1, 40)], ids=str)
def test_bits_with_many_bins(channels, size, monkeypatch):
    """Bin rows wider than a vector, bins smaller than a cell, and bins of several units of taps."""
    shape = (2, channels, 40, 50)
    maps = strategies.normal(shape, "f4")
    boxes = np.array(
        [[1, 2, 3, 4, 5], [0, 0, 0, 50, 40], [1, 30, 20, 10, 5], [0, -9, -9, 70, 60], [1, 60, 60, 70, 70]], "f4"
    )
    for ratio in (0, 1, 2, 9):
        for aligned in (False, True):
            want = in_general(monkeypatch, cvops.roi_align, maps, boxes, size, 1.0, ratio, aligned)
            same(lean_roi_align(maps, boxes, size, 1.0, ratio, aligned), want)


def test_the_public_functions_take_it(monkeypatch):
    cvops.roi_pool(MAPS, BOXES, 1, 1.0)
    calls = []
    for name in ("lean_roi_align", "lean_roi_pool"):
        whole = getattr(sys.modules["cvops._cpu"], name)
        monkeypatch.setattr(
            f"cvops._cpu.{name}", lambda *args, whole=whole, name=name: calls.append(name) or whole(*args)
        )
    cvops.roi_align(MAPS, BOXES, 2, 1.0)
    cvops.roi_pool(MAPS, BOXES, 2, 1.0)
    cvops.roi_pool(MAPS, BOXES, 2, 1.0, return_argmax=True)
    assert calls == ["lean_roi_align", "lean_roi_pool"]
