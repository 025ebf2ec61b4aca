"""examples/torch_dropin.py and examples/train_deform_conv.py, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(program, folder, *arguments):
    command = [sys.executable, "-W", "error", ROOT / "examples" / program, *arguments]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Waiting threads of torch keep a busy machine from its work.
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("model", ["fasterrcnn_resnet50_fpn", "fcos_resnet50_fpn"])
def test_the_detector_finds_the_same(tmp_path, model, torchvision):
    result = run("torch_dropin.py", tmp_path, "--side", "96", "--model", model, "--repeats", "1")
    assert (result.returncode, result.stderr) == (0, "")
    progress, title, *rows = (line for line in re.split(r"\n(?=96 x 96)|\n(?!first)", result.stdout) if line)
    assert progress.startswith(f"{model}: making one with random weights\nfirst call: torchvision\nfirst call: ")
    assert re.fullmatch(r"96 x 96 pixels, [1-9]\d* detections, one thread each", title)
    names = [re.fullmatch(r"(.*?) +\d+\.\d ms(?:  (.*))?", row).groups() for row in rows[:-1]]
    swapped = [("roi_heads.box_roi_pool swapped", "the same detections")] if "rcnn" in model else []
    assert names == [("torchvision", None), ("replace_torchvision()", "the same detections"), *swapped]
    assert re.match(r"run on cvops: nms \([1-9]\d* times\)", rows[-1])
    assert ("roi_align" in rows[-1]) == ("rcnn" in model)


def test_the_network_learns_the_twist(tmp_path, torch):
    result = run("train_deform_conv.py", tmp_path, "--out", "learned.png")
    assert (result.returncode, result.stderr) == (0, "")
    numbers = re.search(
        r"400 steps in [\d.]+ s, loss ([\d.]+) to ([\d.]+)\noffsets: ([\d.]+) .* to ([\d.]+);", result.stdout
    )
    assert [int(step) for step in re.findall(r"^step (\d+) of 400: loss ", result.stdout, re.M)] == [
        0,
        100,
        200,
        300,
        400,
    ]
    first, last, mean, error = map(float, numbers.groups())
    assert last < first / 100
    assert error < mean / 5
    with Image.open(tmp_path / "learned.png") as picture:
        assert min(picture.size) >= 600
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("program", "packages"), [("torch_dropin.py", ["torch", "torchvision"]), ("train_deform_conv.py", ["torch"])]
)
def test_progress_is_shown_while_it_runs(tmp_path, program, packages):
    command = [sys.executable, ROOT / "examples" / program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().strip()
            assert process.poll() is None  # not only at the end
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: must be 1 or more, got 0"),
        (["--out", "a.gif"], "argument --out: must end in .png or .jpg, got 'a.gif'"),
        (
            ["--steps", "1", "--out", "no/such/folder.png"],
            "argument --out: no/such/folder.png: No such file or directory",
        ),
    ],
)
def test_refused_arguments(tmp_path, arguments, message, torch):
    result = run("train_deform_conv.py", tmp_path, *arguments)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"train_deform_conv.py: error: {message}\n")


def test_refused_sides(tmp_path):
    result = run("torch_dropin.py", tmp_path, "--side", "3")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "torch_dropin.py: error: argument --side: must be from 64 to 2048, got 3\n"


@pytest.mark.parametrize("program", ["torch_dropin.py", "train_deform_conv.py"])
def test_help_explains_every_option(tmp_path, program):
    result = run(program, tmp_path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    options = re.findall(r" (--[a-z]+) [A-Z{]", text.partition("options:")[2])
    assert options
    for option in options:
        assert re.search(rf"{option} [A-Z{{][^(]+ \(default: ", text), option
