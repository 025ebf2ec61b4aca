"""The same bits for every target and number of threads, of what decides by comparisons: in processes of their own."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from benchmarks.environment import for_avx2, has_beyond_avx2

PROGRAM = """
import hashlib, json
import numpy as np
import cvops
from cvops._cpu import _threads
from tests import data, strategies

_threads.WORTH_NANOSECONDS = 0  # a second thread takes part in everything that threads can share

def add(name, *arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    answers[name] = digest.hexdigest()

def add_all():
    # One dispatch for few, and one for some, whose boxes suit the grid or not; then the hash; and batches.
    for size, threshold in (300, 0.5), (300, 1 / 3), (3000, 0.5), (3000, 0.7), (3000, 0.2), (5000, 0.05):
        boxes, scores, classes = data.clustered(size)
        sets = strategies.many(size)
        chosen = "clustered", "small integers", "six decades", "areas around the least normal one", "disjoint"
        for name in chosen:
            boxes = sets[name].astype(np.float32)
            add(f"nms {name} {size} {threshold}", cvops.nms(boxes, scores, threshold))
            add(f"batched_nms {name} {size} {threshold}", cvops.batched_nms(boxes, scores, classes % 3, threshold))
    boxes, scores, classes = data.clustered(40_000)
    add("nms 40000", cvops.nms(boxes, scores, 0.5))
    add("batched_nms 40000", cvops.batched_nms(boxes, scores, classes, 0.5))
    for size in 300, 3000:
        boxes, scores = data.clustered(size)[0].astype(np.float64) / 3, data.uniform_scores(size).astype(np.float64)
        add(f"nms float64 {size}", cvops.nms(boxes, scores, 0.5))
    boxes = np.stack([data.clustered(1100, seed=seed)[0] for seed in range(3)])
    scores = data.uniform(boxes.shape[:2] + (5,))
    for multi_label in False, True:
        options = dict(score_threshold=0.6, max_candidates=900, multi_label=multi_label)
        add(f"multiclass_nms {multi_label}", *cvops.multiclass_nms(boxes, scores, 0.5, **options))
    for channels, number in (3, 1), (40, 200):
        maps = data.uniform((2, channels, 30, 45)) - np.float32(0.5)
        rois = data.rois(number, 30, 45, 0.25, batch=2)
        add(f"roi_pool {channels} {number}", *cvops.roi_pool(maps, rois, 7, 0.25, return_argmax=True))
        add(f"roi_pool {channels} {number} alone", cvops.roi_pool(maps, rois, 7, 0.25))

for threads in 1, 2:
    cvops.set_num_threads(threads)
    answers = {}
    add_all()
    print(json.dumps(answers))
"""


def answers(**environment):
    """Digests by name, on one thread and on two."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM)]
    settings = {**os.environ, "PYTHONPATH": ".", **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=settings)
    assert done.returncode == 0, done.stderr
    one, two = map(json.loads, done.stdout.splitlines())
    assert len(one) > 50
    return one, two


@pytest.mark.slow
def test_targets_and_threads_decide_alike():
    """On a processor without AVX-512 both targets are one, and threads alone are compared."""
    one, two = answers()
    assert two == one
    if has_beyond_avx2():
        with_avx2, two_with_avx2 = answers(**for_avx2())
        assert with_avx2 == one
        assert two_with_avx2 == one
