"""Runs a kernel file with one barrier removed: `python -m tests.host_emulation.mutant <file> <number of the barrier>`.

Fails, in whatever way, if the emulation notices. A program of its own, because a race may end in a crash.
"""

from __future__ import annotations

import re
import sys

import numpy as np

from benchmarks import data
from tests import host_emulation, reference, reference_roi
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
WORKLOADS = {"nms": nms_workload, "roi_align": roi_align_workload}


def main(file, number):
    package = device.load()
    broken = device.build(without(device.sources().source(file), number), "f")
    device.library = lambda file, dtype: broken
    device.seeds[:] = 1, 2, 3, 4, 5
    WORKLOADS[file](package)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
