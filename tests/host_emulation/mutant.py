"""Runs a kernel file with one barrier removed: `python -m tests.host_emulation.mutant <file> <number of the barrier>`.

Fails, in whatever way, if the emulation notices. A program of its own, because a race may end in a crash.
"""

from __future__ import annotations

import re
import sys

import numpy as np

from benchmarks import data
from tests import reference
from tests.host_emulation import device

BARRIER = re.compile(r"__syncthreads\(\);")


def without(text, number):
    """The text without its barrier of that number."""
    start, end = list(BARRIER.finditer(text))[number].span()
    return text[:start] + ";" + text[end:]


def nms_workload(package):
    from cvops_cuda_emulated import _nms  # made by device.load()

    for name, size in (("chain", 1100), ("identical", 300), ("dense", 1300)):
        boxes, scores = data.hostile(size)[name], data.uniform_scores(size)
        idxs = np.arange(size) // 400
        want = reference.nms_of_many(boxes, scores, 0.3)
        np.testing.assert_array_equal(package.nms(boxes, scores, 0.3, None, None, False), want)
        for labels in (None, idxs):
            keep, count = _nms._in_a_chain(boxes, scores, labels, "f", _nms._round_down(0.3, "f"), np.nan, size)
            want = reference.batched_nms_of_many(boxes, scores, idxs * (labels is not None), 0.3)
            np.testing.assert_array_equal(keep[: int(count)], want)


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
