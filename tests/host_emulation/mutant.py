"""Runs a kernel file with one barrier removed: `python -m tests.host_emulation.mutant <file> <number of the barrier>`.

Fails, in whatever way, if the emulation notices. A program of its own, because a race may end in a crash.
"""

from __future__ import annotations

import re
import sys

import numpy as np

from benchmarks import data
from tests import reference, reference_deform, strategies_deform
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


def deform_conv_workload(package):
    case = strategies_deform.Case((3, 2), channels=20, outputs=40, size=(12, 17), dtype="float32")
    arrays, grad = case.arrays(), case.grad()
    steps = [reference_deform.pair(step) for step in case.options.values()]
    given = (arrays["input"], arrays["offset"], arrays["weight"], arrays["bias"], *steps, arrays["mask"])
    got = package.deform_conv2d(*given), *package.deform_conv2d_backward(grad, *given, tuple(arrays))
    want = reference_deform.deform_conv2d(*given), *reference_deform.deform_conv2d_backward(grad, *given)
    for one, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-5 * np.abs(expected).max())


# Calls that reach every barrier of a file, with the results they must have.
WORKLOADS = {"nms": nms_workload, "deform_conv": deform_conv_workload}


def main(file, number):
    package = device.load()
    broken = device.build(without(device.sources().source(file), number), "f")
    device.library = lambda file, dtype: broken
    device.seeds[:] = 1, 2, 3, 4, 5
    WORKLOADS[file](package)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
