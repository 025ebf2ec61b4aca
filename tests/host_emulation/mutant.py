"""Runs a kernel file with one barrier removed: `python -m tests.host_emulation.mutant <file> <number of the barrier>`.

Fails, in whatever way, if the emulation notices. A program of its own, because a race may end in a crash.
"""

from __future__ import annotations

import re
import sys

import numpy as np

from tests import (
    data,
    host_emulation,
    reference,
    reference_deform,
    reference_multiclass,
    reference_roi,
    strategies_deform,
    strategies_roi,
)
from tests.host_emulation import device

BARRIER = re.compile(r"__sync(threads|warp)\(\);")


def without(text, number):
    """The text without its barrier of that number."""
    start, end = list(BARRIER.finditer(text))[number].span()
    return text[:start] + ";" + text[end:]


def nms_workload(package):
    host_emulation.nms_module()._BATCH = host_emulation.SMALL_BATCH
    for name, size, threshold in (
        ("chain", 1000, 0.3),
        ("dense", 300, 0.3),
        ("chain", 1100, 0.3),
        ("dense", 1300, 0.3),
        ("identical", 1100, 0.3),
        ("chain", 3300, 0.3),
        ("chain", 2200, 0.05),
    ):
        boxes, scores = data.hostile(size)[name], data.uniform_scores(size)
        idxs = np.arange(size) // 600
        want = reference.nms_of_many(boxes, scores, threshold)
        np.testing.assert_array_equal(package.nms(boxes, scores, threshold, None, None, False), want)
        want = reference.batched_nms_of_many(boxes, scores, idxs, threshold)
        np.testing.assert_array_equal(package.batched_nms(boxes, scores, idxs, threshold, None, None, False), want)


def multiclass_nms_workload(package):
    """More candidates than a block has threads, in parts, kept ones in several chunks, and limits of each kind."""
    images, length, classes = 3, 600, 3
    boxes = data.clustered(images * length)[0].reshape(images, length, 4)
    scores = np.random.default_rng(0).permutation(images * length * classes) // 3
    scores = scores.astype(np.float32).reshape(images, classes, length).transpose(0, 2, 1)
    for class_agnostic in (False, True):
        want = reference_multiclass.multiclass_nms_of_many(
            boxes, scores, 0.8, max_per_class=120, class_agnostic=class_agnostic
        )
        got = package.multiclass_nms(
            boxes, scores, None, 0.8, None, None, 120, None, True, class_agnostic, "iou", False
        )
        np.testing.assert_array_equal(np.stack(got, 1), want)


def roi_pool_workload(package):
    maps, rois = strategies_roi.normal((2, 3, 7, 8)), strategies_roi.rois("all", 300, (2, 3, 7, 8))
    pooled, argmax = package.roi_pool(maps, rois, (2, 3), 1.0, True)
    want = reference_roi.roi_pool(maps, rois, (2, 3))
    np.testing.assert_array_equal(pooled, want[0])
    np.testing.assert_array_equal(argmax, want[1])
    got = package.roi_pool_backward(pooled, rois, argmax, maps.shape, 1.0)
    np.testing.assert_allclose(got, reference_roi.roi_pool_backward(pooled, rois, argmax, maps.shape), 1e-4, 1e-4)
    many_channels, large = argmax.repeat(30, 1), (2, 90, 7, 600)
    got = package.roi_pool_backward(pooled.repeat(30, 1), rois, many_channels, large, 1.0)
    want = reference_roi.roi_pool_backward(pooled.repeat(30, 1), rois, many_channels, large)
    np.testing.assert_allclose(got, want, 1e-4, 1e-4)


def ps_roi_workload(package):
    maps, rois = strategies_roi.normal((2, 12, 7, 8)), strategies_roi.rois("all", 300, (2, 12, 7, 8))
    for name, ratio in (("ps_roi_align", [-1]), ("ps_roi_pool", [])):
        pooled = getattr(package, name)(maps, rois, (2, 3), 1.0, *ratio)
        np.testing.assert_allclose(pooled, getattr(reference_roi, name)(maps, rois, (2, 3)), 1e-4, 1e-4)
        got = getattr(package, name + "_backward")(pooled, rois, maps.shape, 1.0, *ratio)
        want = getattr(reference_roi, name + "_backward")(pooled, rois, maps.shape)
        np.testing.assert_allclose(got, want, 1e-4, 1e-4)


def deform_conv_workload(package):
    case = strategies_deform.Case((3, 2), channels=20, outputs=40, size=(12, 17), dtype="float32")
    arrays, grad = case.arrays(), case.grad()
    steps = [reference_deform.pair(step) for step in case.options.values()]
    given = (arrays["input"], arrays["offset"], arrays["weight"], arrays["bias"], *steps, arrays["mask"])
    got = package.deform_conv2d(*given), *package.deform_conv2d_backward(grad, *given, tuple(arrays))
    want = reference_deform.deform_conv2d(*given), *reference_deform.deform_conv2d_backward(grad, *given)
    for one, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5 * np.abs(expected).max())


def roi_align_workload(package):
    """Bins that are pooled in several pieces or windows of taps, and RoIs that a tile takes in several rounds."""
    random = np.random.default_rng(0)
    maps = random.standard_normal((1, 9, 5, 600), np.float32)
    last = np.ascontiguousarray(maps.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    rois = np.float32([[0, 2, 0, 598, 4], [0, 30, 1, 50, 3], [0, 590, 2, 20, 1]])
    few = np.tile(np.float32([[0, 1, 1, 12, 4], [0, 300, 1, 320, 3], [0, 3, 0, 9, 2]]), (200, 1))
    for bins, boxes in (((1, 1), rois), ((1, 2), rois[1:]), ((3, 150), rois[:1])):
        want = reference_roi.roi_align(maps, boxes, bins)
        for layout in (maps, last):
            np.testing.assert_allclose(package.roi_align(layout, boxes, bins, 1.0, -1, False), want, atol=1e-4)
    for bins, boxes in (((1, 1), few), ((2, 40), rois[1:])):
        grad = random.standard_normal((len(boxes), 9, *bins), np.float32)
        want = reference_roi.roi_align_backward(grad, boxes, (1, 9, 5, 40))
        got = package.roi_align_backward(grad, boxes, (1, 9, 5, 40), 1.0, -1, False)
        np.testing.assert_allclose(got, want, atol=1e-3)


# Calls that reach every barrier of a file, with the results they must have.
WORKLOADS = {
    "nms": nms_workload,
    "multiclass_nms": multiclass_nms_workload,
    "roi_align": roi_align_workload,
    "roi_pool": roi_pool_workload,
    "ps_roi": ps_roi_workload,
    "deform_conv": deform_conv_workload,
}


def main(file, number):
    package, sources = device.load(), device.sources()
    broken = device.build(without(sources.source(file), number), sources.options(file, "f"), device.module(f"_{file}"))
    device.library = lambda file, dtype: broken
    device.seeds[:] = 1, 2, 3, 4, 5
    WORKLOADS[file](package)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
