"""examples/yolo_head.py and examples/retina_head.py, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cvops

ROOT = Path(__file__).parents[1]
DETECTIONS = ROOT / "examples" / "data" / "ssd_coco_coffee.npz"
every_example = pytest.mark.parametrize("name", ["yolo_head", "retina_head"])


def run(name, folder, *arguments):
    command = [sys.executable, "-W", "error", ROOT / "examples" / f"{name}.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@every_example
def test_the_detections_are_those_of_the_candidates(name, tmp_path):
    """Those of batched_nms on the boxes from which the head is made, up to the rounding of the way there and back."""
    with np.load(DETECTIONS) as file:
        boxes, scores, labels = file["boxes"], file["scores"], file["labels"]
    iou = 0.45 if name == "yolo_head" else 0.5
    kept = len(cvops.batched_nms(boxes, scores, labels, iou, score_threshold=0.1))
    done = run(name, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    candidates, found = map(int, re.search(r"(\d+) candidates, (\d+) kept", done.stdout).groups())
    assert (candidates, found) == ((scores > 0.1).sum(), kept)
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 1000  # a photograph is on it


@pytest.mark.slow
@every_example
def test_options(name, tmp_path):
    done = run(name, tmp_path, "--score", "0.5", "--iou", "1", "--out", "other.jpg")
    assert (done.returncode, done.stderr) == (0, "")
    candidates, found = map(int, re.search(r"(\d+) candidates, (\d+) kept", done.stdout).groups())
    assert candidates == found > 0
    assert [path.name for path in tmp_path.iterdir()] == ["other.jpg"]
    for wrong in (("--iou", "50"), ("--score", "nan"), ("--out", "picture.gif")):
        done = run(name, tmp_path, *wrong)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
