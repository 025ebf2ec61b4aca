"""The RoI operators in chunks of RoIs and parts of maps have the same bits as in one go."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

import cvops
from cvops._cpu import _roi, _roi_few, _xywh
from tests import compare
from tests import reference_roi as reference
from tests import strategies_roi as strategies
from tests.strategies import few

BOUNDS = ("_SORTED_AT_ONCE", "CHUNK_BYTES", "_PART_BYTES", "_BLOCK_BYTES")
# RoIs put in order at a time, bytes of a chunk, of a part and of blocks. Far apart, close by, and one RoI at a time.
SMALL = {"places": (7, 1 << 20, 1 << 20, 1 << 20), "chunks": (32, 20_000, 6_000, 50_000), "single": (1, 1, 1, 1)}
MAPS = {"few channels": (2, 3, 12, 9), "overlapping blocks": (2, 21, 9, 14), "one image": (1, 40, 16, 11)}
DTYPES = ["f4 f4", "f8 f8", "f2 f4", "f4 f8", "f2 f8", "f2 f2"]
BINS = {"1 x 1": (1, 1), "2 x 3": (2, 3)}


def calls(shape, dtypes, bins, layout):
    """Name -> call of every RoI operator on 60 RoIs of all kinds."""
    dtype, dtype_of_boxes = dtypes.split()
    layout = strategies.LAYOUTS[layout]
    boxes = strategies.rois("all", 60, shape, 0.5, dtype_of_boxes)
    maps = layout(strategies.normal(shape, dtype))
    deep = (shape[0], shape[1] * bins[0] * bins[1], *shape[2:])
    deep_maps = layout(strategies.normal(deep, dtype))
    grad = layout(strategies.normal((60, shape[1], *bins), dtype, seed=1))
    argmax = layout(reference.roi_pool(maps, boxes, bins, 0.5)[1])
    pyramid = {"fine": layout(strategies.normal((*shape[:2], 20, 26), dtype)), "coarse": maps}
    pool = cvops.MultiScaleRoIAlign(["fine", "coarse"], bins, 2, canonical_scale=12, canonical_level=1, scales=[1, 0.5])
    return {
        "roi_align": lambda: cvops.roi_align(maps, boxes, bins, 0.5),
        "roi_align_backward": lambda: cvops.roi_align_backward(grad, boxes, shape, 0.5),
        "aligned": lambda: cvops.roi_align(maps, boxes, bins, 0.5, 2, True),
        "expanded": lambda: cvops.roi_align_backward(np.broadcast_to(grad[:1, :1], grad.shape), boxes, shape, 0.5),
        "roi_pool": lambda: cvops.roi_pool(maps, boxes, bins, 0.5),
        "argmax": lambda: cvops.roi_pool(maps, boxes, bins, 0.5, return_argmax=True),
        "roi_pool_backward": lambda: cvops.roi_pool_backward(grad, boxes, argmax, shape, 0.5),
        "ps_roi_align": lambda: cvops.ps_roi_align(deep_maps, boxes, bins, 0.5),
        "ps_roi_align_backward": lambda: cvops.ps_roi_align_backward(grad, boxes, deep, 0.5),
        "ps_roi_pool": lambda: cvops.ps_roi_pool(deep_maps, boxes, bins, 0.5),
        "ps_roi_pool_backward": lambda: cvops.ps_roi_pool_backward(grad, boxes, deep, 0.5),
        "pyramid": lambda: pool(pyramid, boxes, []),
        "pyramid backward": lambda: tuple(pool.backward(grad, pyramid, boxes, []).values()),
    }


def same_bits(got, want):
    got, want = (list(value) if isinstance(value, tuple) else [value] for value in (got, want))
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)  # NaN equals NaN; bits of zeros are compared below
        np.testing.assert_array_equal(np.signbit(one[one == 0]), np.signbit(other[other == 0]))


@pytest.mark.parametrize("case", few(itertools.product(MAPS, DTYPES, BINS), 13), ids=" of ".join)
def test_bits_do_not_depend_on_chunks(case, threads, monkeypatch):
    """Nor on threads, in chunks; and a contiguous map has the bits of one that is copied in parts."""
    shape, dtypes, bins = case
    whole = {name: call() for name, call in calls(MAPS[shape], dtypes, BINS[bins], "contiguous").items()}
    monkeypatch.setattr(_roi_few, "_MOST_VALUES", -1)  # small calls go the general way too
    for layout in ("contiguous", "reversed"):
        for small in SMALL.values():
            for name, value in zip(BOUNDS, small, strict=True):
                monkeypatch.setattr(_roi, name, value)
            for number in (1, 3):
                threads(number)
                for name, call in calls(MAPS[shape], dtypes, BINS[bins], layout).items():
                    same_bits(call(), whole[name])


FORMS = {
    "list": lambda boxes: [boxes[boxes[:, 0] == image, 1:] for image in range(3)],
    "list of float16": lambda boxes: [boxes[boxes[:, 0] == image, 1:].astype("e") for image in range(3)],
    "columns": np.asfortranarray,
    "big endian": lambda boxes: boxes.astype(">f4"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", few(["f4", "f8", "f2"], every=3))
def test_bits_do_not_depend_on_the_form_of_boxes(form, dtype, monkeypatch):
    """Those that would have to be copied are copied in parts, whose RoIs are no others in no other order."""
    shape = (3, 5, 12, 9)
    rows = strategies.rois("all", 60, shape, 0.5, "f2").astype("f4")
    rows = rows[(rows[:, 0] != 1) | (np.arange(60) < 1)]  # one image has next to none
    boxes = rows[np.argsort(rows[:, 0], kind="stable")]
    maps, grad = strategies.normal(shape, dtype), strategies.normal((len(boxes), 5, 2, 2), dtype, seed=1)
    deep = (3, 20, 12, 9)
    deep_maps = strategies.normal(deep, dtype)
    argmax = cvops.roi_pool(maps, boxes, 2, 0.5, return_argmax=True)[1]
    pool = cvops.MultiScaleRoIAlign(["a", "b"], 2, 2, canonical_scale=12, canonical_level=1, scales=[1, 0.5])
    pyramid = {"a": strategies.normal((3, 5, 20, 26), dtype), "b": maps}
    calls = {
        "roi_align": lambda boxes: cvops.roi_align(maps, boxes, 2, 0.5),
        "roi_align_backward": lambda boxes: cvops.roi_align_backward(grad, boxes, shape, 0.5),
        "roi_pool": lambda boxes: cvops.roi_pool(maps, boxes, 2, 0.5, return_argmax=True),
        "roi_pool_backward": lambda boxes: cvops.roi_pool_backward(grad, boxes, argmax, shape, 0.5),
        "ps_roi_align": lambda boxes: cvops.ps_roi_align(deep_maps, boxes, 2, 0.5),
        "ps_roi_align_backward": lambda boxes: cvops.ps_roi_align_backward(grad, boxes, deep, 0.5),
        "ps_roi_pool": lambda boxes: cvops.ps_roi_pool(deep_maps, boxes, 2, 0.5),
        "ps_roi_pool_backward": lambda boxes: cvops.ps_roi_pool_backward(grad, boxes, deep, 0.5),
        "pyramid": lambda boxes: pool(pyramid, boxes, []),
        "pyramid backward": lambda boxes: tuple(pool.backward(grad, pyramid, boxes, []).values()),
    }
    given = FORMS[form](boxes)
    for call in calls.values():
        whole = call(boxes)
        for small in [None, *SMALL.values()]:
            with monkeypatch.context() as patch:
                for bound, value in zip(BOUNDS, small or (), strict=False):
                    patch.setattr(_roi, bound, value)
                same_bits(call(given), whole)


def test_chunks_against_the_reference(monkeypatch):
    """A small case, so that the bits above are not merely those of one mistake made twice."""
    monkeypatch.setattr(_roi_few, "_MOST_VALUES", -1)
    for name, value in zip(BOUNDS, SMALL["chunks"], strict=True):
        monkeypatch.setattr(_roi, name, value)
    shape = (2, 21, 9, 14)
    maps, boxes = strategies.normal(shape, "f4"), strategies.rois("all", 60, shape, 0.5, "f4")
    compare.close(cvops.roi_align(maps, boxes, 2, 0.5), reference.roi_align(maps, boxes, 2, 0.5), maps)
    grad = strategies.normal((60, 21, 2, 2), "f4", seed=1)
    want = reference.roi_align_backward(grad, boxes, shape, 0.5)
    compare.close(cvops.roi_align_backward(grad, boxes, shape, 0.5), want, grad)


@pytest.mark.parametrize("operator", ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"])
def test_a_bad_image_index_in_a_late_chunk(operator, monkeypatch):
    """It is found before any work, and named."""
    monkeypatch.setattr(_roi_few, "_MOST_VALUES", -1)
    for name, value in zip(BOUNDS, SMALL["single"], strict=True):
        monkeypatch.setattr(_roi, name, value)
    boxes = np.zeros((9, 5), np.float32)
    boxes[8, 0] = 1
    for given in (boxes, boxes.astype("f2"), np.asfortranarray(boxes)):
        with pytest.raises(ValueError, match=r"image indices from 0 to 0 in column 0, got 1\.0 in row 8"):
            getattr(cvops, operator)(np.zeros((1, 4, 5, 5), np.float32), given, 2)


@pytest.mark.parametrize("inverted", [4, 5])
@pytest.mark.parametrize("form", ["array", "list", "columns"])
def test_boxes_in_parts_that_look_like_xywh(form, inverted, monkeypatch):
    """More than half of all are inverted, wherever they are."""
    monkeypatch.setattr(_xywh, "_untold", [True])
    monkeypatch.setattr(_roi, "_SORTED_AT_ONCE", 2)
    boxes = np.array([[0, 9, 9, 1, 1]] * inverted + [[0, 0, 0, 4, 4]] * (9 - inverted), np.float32)
    given = {"array": boxes, "list": [boxes[:, 1:]], "columns": np.asfortranarray(boxes)}[form]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cvops.roi_align(np.ones((1, 1, 8, 8)), given, 2)
    assert len(told) == (inverted == 5)
