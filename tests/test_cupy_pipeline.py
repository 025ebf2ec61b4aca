"""examples/cupy_pipeline.py: its computation on both backends, and what it says without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cvops
from examples import cupy_pipeline
from tests import reference, reference_roi

ROOT = Path(__file__).parents[1]


def run():
    command = [sys.executable, "-W", "error", ROOT / "examples" / "cupy_pipeline.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_it_says_what_it_needs():
    if not cupy_pipeline.missing():
        pytest.skip("there is a GPU")
    result = run()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("cupy_pipeline.py: error: this example needs CuPy and a GPU: CuPy ")


def test_it_runs():
    if cupy_pipeline.missing():
        pytest.skip(cupy_pipeline.missing())
    result = run()
    assert (result.returncode, result.stderr) == (0, "")
    assert re.match(r"3270 candidates of 90 classes in 2 images, \d+ above 0\.1 kept:\nimage ", result.stdout)
    assert result.stdout.endswith("in the other order: the same features.\n")


def test_what_it_computes(ops):
    batch, _, _ = cupy_pipeline.load()
    found = cupy_pipeline.detect(np, ops, batch)
    centre, size = batch["codes"][:, :2], batch["codes"][:, 2:]
    boxes = np.clip(np.concatenate([centre - size / 2, centre + size / 2], 1), 0, 1) * 416
    likely = np.flatnonzero(batch["scores"] > cupy_pipeline.SCORE)
    groups = batch["labels"] * 2 + batch["images"]
    keep = likely[reference.batched_nms_of_many(boxes[likely], batch["scores"][likely], groups[likely], 0.5)]
    assert found.count == len(keep)
    assert found.candidates[: len(keep)].tolist() == keep.tolist()
    rois = np.concatenate([batch["images"][keep, None], boxes[keep]], 1).astype(np.float32)
    np.testing.assert_array_equal(found.boxes[: len(keep)], rois[:, 1:])
    want = reference_roi.roi_align(batch["features"], rois, (7, 7), 1 / 8, 2, True)
    np.testing.assert_allclose(found.pooled[: len(keep)], want, atol=1e-4)
    assert found.pooled.shape == (20, 16, 7, 7)


def test_it_prints_what_it_found(capsys):
    batch, names, classes = cupy_pipeline.load()
    cupy_pipeline.report(cupy_pipeline.detect(np, cvops, batch), batch, names, classes)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3270 candidates of {classes} classes in 2 images, {len(lines) - 1} above 0.1 kept:"
    assert {line.split()[1] for line in lines[1:]} == {"0", "1"}
