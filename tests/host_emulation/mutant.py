"""Runs a kernel file with one barrier removed: `python -m tests.host_emulation.mutant <file> <number of the barrier>`.

Fails, in whatever way, if the emulation notices. A program of its own, because a race may end in a crash.
"""

from __future__ import annotations

import re
import sys

import numpy as np

from benchmarks import data
from tests import host_emulation, reference
from tests.host_emulation import device

BARRIER = re.compile(r"__syncthreads\(\);")


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


# Calls that reach every barrier of a file, with the results they must have.
WORKLOADS = {"nms": nms_workload}


def main(file, number):
    package = device.load()
    broken = device.build(without(device.sources().source(file), number), "f")
    device.library = lambda file, dtype: broken
    device.seeds[:] = 1, 2, 3, 4, 5
    WORKLOADS[file](package)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
