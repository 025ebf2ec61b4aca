"""The example programs, run as a user runs them, on the data that comes with them."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cvops
from examples import detect as example
from tests.strategies import few

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data"
DETECTION_FILES = ["ssd_coco_astronaut", "ssd_coco_chelsea", "ssd_coco_coffee", "picodet_layout_zoo"]


def detect(folder, *arguments):
    command = [sys.executable, "-W", "error", ROOT / "examples" / "detect.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def load(name):
    with np.load(DATA / f"{name}.npz") as archive:
        return dict(archive)


def printed_rows(result):
    """The rows of the printed table, as lists of strings; columns are at least two blanks apart."""
    assert (result.returncode, result.stderr) == (0, "")
    heading, *rows = (re.split(r"\s{2,}", line.strip()) for line in result.stdout.split("\n\n")[0].splitlines())
    assert heading == ["rank", "class", "score", "x1", "y1", "x2", "y2"]
    return rows


def expected_rows(file, keep, score=0.5):
    """The table that the stored answer `keep` must print."""
    rows = []
    for index in keep[file["scores"][keep] > score]:
        name = file["class_names"][file["labels"][index]]
        numbers = [f"{file['scores'][index]:.3f}", *(f"{coordinate:.1f}" for coordinate in file["boxes"][index])]
        rows.append([str(len(rows) + 1), str(name), *numbers])
    return rows


def input_picture(file):
    if "image_jpeg" in file:
        return np.asarray(Image.open(io.BytesIO(file["image_jpeg"].tobytes())))
    return np.full((*file["image_hw"], 3), 255, np.uint8)


def picture(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


def panels(path, size):
    """The two pictures of this (height, width) on a page: the candidates, and what was kept."""
    page = picture(path)
    height, width = size
    gap = round(max(15, (height + width) / 70))
    top, left, step = page.shape[0] - gap // 2 - height, gap // 2, page.shape[1] // 2
    assert (page[: top - gap // 2] != 255).any()  # captions
    return [page[top : top + height, x : x + width] for x in (left, left + step)]


@pytest.mark.parametrize("name", DETECTION_FILES)
@pytest.mark.parametrize("percent", [50, 60, 70])
def test_batched_nms_reproduces_the_stored_answers(name, percent):
    file = load(name)
    keep = cvops.batched_nms(file["boxes"], file["scores"], file["labels"], percent / 100)
    assert keep.dtype == np.int64
    np.testing.assert_array_equal(keep, file[f"keep_0{percent}"])


def test_default_run(tmp_path):
    file = load("ssd_coco_astronaut")
    result = detect(tmp_path)
    assert printed_rows(result) == expected_rows(file, file["keep_050"])
    assert result.stdout.splitlines()[-1].startswith("1635 candidates, 4 above score 0.5, 1 kept at IoU 0.5 in ")
    before, after = panels(tmp_path / "detections.png", (512, 512))
    changed = (after != input_picture(file)).any(axis=2)
    assert changed[490, 100:300].all()  # the lower edge of the person
    assert not changed[495:, :].any()  # all boxes end above
    assert not changed[100:, 400:].any()  # the Space Shuttle is no bottle
    assert (before != input_picture(file)).any(axis=2).mean() > 0.5  # candidates all over the place


@pytest.mark.slow
def test_the_picture_in_the_readme_is_what_the_default_run_draws(tmp_path):
    detect(tmp_path)
    shown, drawn = (picture(folder / "detections.png").astype(int) for folder in (ROOT / "docs", tmp_path))
    assert np.abs(shown - drawn).mean() < 2  # decoders and fonts of Pillow's versions differ a little


@pytest.mark.slow
@pytest.mark.parametrize("name", few(DETECTION_FILES, every=4))
def test_every_candidate_is_in_the_first_panel(name, tmp_path):
    file = load(name)
    detect(tmp_path, DATA / f"{name}.npz", "--score", "inf")
    before, after = panels(tmp_path / "detections.png", tuple(file["image_hw"]))
    np.testing.assert_array_equal(after, input_picture(file))
    limits = np.array(file["image_hw"])[[1, 0, 1, 0]] - 1
    x1, y1, x2, y2 = np.round(np.clip(file["boxes"], 0, limits)).astype(int).T
    changed = (before != input_picture(file)).any(axis=2)
    corners = np.concatenate([changed[y1, x1], changed[y2, x1], changed[y1, x2], changed[y2, x2]])
    assert corners.mean() > 0.98  # here and there the line has the colour of the picture


@pytest.mark.slow
@pytest.mark.parametrize("name", few(DETECTION_FILES, every=4))
def test_every_shipped_file(name, tmp_path):
    file = load(name)
    result = detect(tmp_path, DATA / f"{name}.npz")
    assert printed_rows(result) == expected_rows(file, file["keep_050"])
    for panel in panels(tmp_path / "detections.png", tuple(file["image_hw"])):
        assert panel.shape == (*file["image_hw"], 3)
        assert (panel != input_picture(file)).any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("iou", "stored"), [("0.6", "keep_060"), pytest.param("0.7", "keep_070", marks=pytest.mark.slow)]
)
def test_iou(iou, stored, tmp_path):
    file = load("picodet_layout_zoo")
    result = detect(tmp_path, DATA / "picodet_layout_zoo.npz", "--iou", iou)
    assert printed_rows(result) == expected_rows(file, file[stored])


@pytest.mark.slow
def test_iou_one_keeps_every_box_above_the_score(tmp_path):
    file = load("ssd_coco_chelsea")
    result = detect(tmp_path, DATA / "ssd_coco_chelsea.npz", "--iou", "1")
    assert printed_rows(result) == expected_rows(file, np.arange(len(file["scores"])))


@pytest.mark.slow
def test_score(tmp_path):
    file = load("ssd_coco_coffee")
    result = detect(tmp_path, DATA / "ssd_coco_coffee.npz", "--score", "0.05")
    assert printed_rows(result) == expected_rows(file, file["keep_050"], 0.05)


@pytest.mark.slow
def test_max(tmp_path):
    file = load("ssd_coco_coffee")
    result = detect(tmp_path, DATA / "ssd_coco_coffee.npz", "--max", "2")
    assert printed_rows(result) == expected_rows(file, file["keep_050"][:2])


@pytest.mark.slow
def test_out(tmp_path):
    result = detect(tmp_path, "--out", "astronaut.JPG")
    assert result.stdout.endswith("picture: astronaut.JPG\n")
    with Image.open(tmp_path / "astronaut.JPG") as opened:
        assert opened.format == "JPEG"
    assert [path.name for path in tmp_path.iterdir()] == ["astronaut.JPG"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--score", "0.99"), ("--score", "inf"), ("--max", "0")])
def test_no_boxes_still_saves_the_picture(arguments, tmp_path):
    result = detect(tmp_path, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("No boxes to show.\n")
    assert "0 kept" in result.stdout
    _, after = panels(tmp_path / "detections.png", (512, 512))
    np.testing.assert_array_equal(after, input_picture(load("ssd_coco_astronaut")))


def test_help_explains_every_option(tmp_path):
    result = detect(tmp_path, "--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.split())
    for option in (
        r"--iou IOU .*: 0 to 1 \(default: 0\.5\)",
        r"--score SCORE .*: any number \(default: 0\.5\)",
        r"--max MAX .*: 0 or more \(default: no limit\)",
        r"--out OUT .*: \.png or \.jpg \(default: detections\.png\)",
    ):
        assert re.search(option, text)
    for name in ("boxes", "scores", "labels", "class_names", "image_hw", "image_jpeg"):
        assert re.search(rf"{name} +\(\w+,.*\)", result.stdout)


def small_file():
    """A detection file without a picture: two cats that overlap by an IoU of 0.8, and a dog."""
    return {
        "boxes": np.array([[10, 20, 50, 60], [10, 20, 50, 52], [60, 30, 90, 70]], np.float32),
        "scores": np.array([0.9, 0.8, 0.7], np.float32),
        "labels": np.array([0, 0, 1], np.int32),
        "class_names": np.array(["cat", "dog"]),
        "image_hw": np.array([80, 100]),
    }


@pytest.mark.slow
def test_file_without_picture_gets_a_white_canvas(tmp_path):
    np.savez(tmp_path / "small.npz", **small_file())
    rows = printed_rows(detect(tmp_path, "small.npz"))
    assert rows == [
        ["1", "cat", "0.900", "10.0", "20.0", "50.0", "60.0"],
        ["2", "dog", "0.700", "60.0", "30.0", "90.0", "70.0"],
    ]
    before, drawn = panels(tmp_path / "detections.png", (80, 100))
    assert (before[52, 20:40] != 255).any(axis=1).all()  # the second cat is a candidate
    assert (drawn[52, 20:40] == 255).all()  # and dropped
    assert (drawn[:, :8] == 255).all()
    assert (drawn[40, 10] != 255).any()
    assert (drawn[40, 60] != drawn[40, 10]).any()  # a colour a class


@pytest.mark.slow
def test_boxes_that_cannot_be_seen_are_listed_but_not_drawn(tmp_path):
    boxes = np.array([[200, 200, 300, 300], [50, 60, 10, 20], [np.nan, 20, 50, 60]], np.float32)
    np.savez(tmp_path / "small.npz", **{**small_file(), "boxes": boxes})
    assert len(printed_rows(detect(tmp_path, "small.npz", "--iou", "1"))) == 3
    assert all((panel == 255).all() for panel in panels(tmp_path / "detections.png", (80, 100)))


@pytest.mark.slow
def test_no_candidates(tmp_path):
    file = small_file()
    empty = {name: file[name][:0] for name in ("boxes", "scores", "labels")}
    np.savez(tmp_path / "small.npz", **{**file, **empty})
    assert detect(tmp_path, "small.npz").stdout.startswith("No boxes to show.\n\n0 candidates")


@pytest.mark.slow
@pytest.mark.parametrize("image_hw", [(1, 1), (3, 2), (80, 1), (1, 10_000)])
def test_picture_too_small_for_labels(image_hw, tmp_path):
    np.savez(tmp_path / "small.npz", **{**small_file(), "image_hw": np.array(image_hw)})
    assert len(printed_rows(detect(tmp_path, "small.npz"))) == 2
    assert panels(tmp_path / "detections.png", image_hw)[1].shape == (*image_hw, 3)


def assert_refused(result, message):
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"detect\.py: error: .*\n", result.stderr)
    assert message in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iou", "-0.1"], "argument --iou: must be from 0 to 1, got -0.1"),
        (["--iou", "1.01"], "argument --iou: must be from 0 to 1, got 1.01"),
        (["--iou", "nan"], "argument --iou: must be from 0 to 1, got nan"),
        (["--iou", "half"], "argument --iou: invalid iou value: 'half'"),
        (["--score", "nan"], "argument --score: must be a number, got nan"),
        (["--score", "high"], "argument --score: invalid score value: 'high'"),
        (["--max", "-1"], "argument --max: must be 0 or more, got -1"),
        (["--max", "1.5"], "argument --max: invalid count value: '1.5'"),
        (["--out", "picture.npz"], "argument --out: must end in .png or .jpg, got 'picture.npz'"),
        (["--out", ""], "argument --out: must end in .png or .jpg, got ''"),
        (["--out", "no/such/folder.png"], "argument --out: no/such/folder.png: No such file or directory"),
        (["--out", "folder.png"], "argument --out: folder.png: Is a directory"),
        (["--colour"], "unrecognized arguments: --colour"),
        (["two\nlines.npz"], "two lines.npz: No such file or directory"),
        (["missing.npz"], "missing.npz: No such file or directory"),
        (["folder.png"], "folder.png: Is a directory"),
        ([DATA / "NOTICE.md"], "NOTICE.md: not an .npz file of plain arrays, or a damaged one"),
        (
            [DATA / "nanodet_fpn_astronaut_small.npz"],
            "nanodet_fpn_astronaut_small.npz: not a detection file, lacks boxes, scores, labels, class_names, image_hw",
        ),
    ],
)
def test_refused_arguments(arguments, message, tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert_refused(detect(tmp_path, *arguments), message)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", few([lambda c: b"", lambda c: c[: len(c) // 2], lambda c: c[:-10], flipped], every=4)
)
def test_refused_damaged_file(damage, tmp_path):
    (tmp_path / "file.npz").write_bytes(damage((DATA / "ssd_coco_chelsea.npz").read_bytes()))
    assert_refused(detect(tmp_path, "file.npz"), "file.npz: not an .npz file of plain arrays, or a damaged one")


JPEG = load("ssd_coco_chelsea")["image_jpeg"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("boxes", np.ones((3, 5), np.float32), "`boxes` must have shape (L, 4), got (3, 5)"),
        ("boxes", np.float32(1), "`boxes` must have shape (L, 4), got ()"),
        ("boxes", np.ones((3, 4), complex), "`boxes` must be"),
        ("boxes", np.full((3, 4), "1"), "`boxes` must be"),
        ("boxes", np.array([None] * 3), "not an .npz file of plain arrays"),  # saved as a pickle
        ("boxes", np.ones((2, 4), np.float32), "`scores` must have shape (2,)"),
        ("scores", np.ones(2, np.float32), "`labels` must be integers, one for each score, got int32 (3,)"),
        ("scores", np.ones(3, int), "`scores` must be"),
        ("labels", np.zeros(2, int), "`labels` must be integers, one for each score, got int64 (2,)"),
        ("labels", np.zeros(3), "`labels` must be integers, one for each score, got float64 (3,)"),
        ("labels", np.array([0, 1, 2]), "`labels` must be from 0 to 1"),
        ("labels", np.array([0, 1, -1]), "`labels` must be from 0 to 1"),
        ("class_names", np.array([b"cat", b"dog"]), "`class_names` must be printable text of shape (C,)"),
        ("class_names", np.array("cat"), "`class_names` must be printable text of shape (C,)"),
        ("class_names", np.array(["cat", "two\nlines"]), "`class_names` must be printable text of shape (C,)"),
        ("image_hw", np.array([80, 100, 3]), "`image_hw` must be two integers from 1 to 10000, got [80, 100, 3]"),
        ("image_hw", np.array([80.0, 100.0]), "`image_hw` must be two integers from 1 to 10000, got [80.0, 100.0]"),
        ("image_hw", np.array([0, 100]), "`image_hw` must be two integers from 1 to 10000, got [0, 100]"),
        ("image_hw", np.array([80, 10**9]), "`image_hw` must be two integers from 1 to 10000, got [80, 1000000000]"),
        ("image_jpeg", JPEG, "`image_jpeg` is 451 x 300, `image_hw` says 100 x 80"),
        ("image_jpeg", JPEG[:2000], "`image_jpeg` cannot be decoded as a JPEG"),
        ("image_jpeg", np.zeros((80, 100, 3)), "`image_jpeg` cannot be decoded as a JPEG"),
    ],
)
def test_refused_array(name, value, message, tmp_path):
    np.savez(tmp_path / "small.npz", **{**small_file(), name: value})
    assert_refused(detect(tmp_path, "small.npz"), message)
    assert [path.name for path in tmp_path.iterdir()] == ["small.npz"]


@pytest.mark.parametrize("name", few(["boxes", "scores", "labels", "class_names", "image_hw"], every=5))
def test_refused_missing_array(name, tmp_path):
    file = small_file()
    del file[name]
    np.savez(tmp_path / "small.npz", **file)
    assert_refused(detect(tmp_path, "small.npz"), f"small.npz: not a detection file, lacks {name} (it holds ")


EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
# Runs an example as if none of the frameworks were installed.
WITHOUT_FRAMEWORKS = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "jax", "jaxlib", "cupy"]))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_frameworks(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", WITHOUT_FRAMEWORKS, *command]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("example", few(EXAMPLES, every=4))
def test_help_needs_no_framework(example, tmp_path):
    result = run_without_frameworks(tmp_path, ROOT / "examples" / example, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "options:" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("example", few(EXAMPLES, every=4))
def test_a_missing_framework_is_reported_in_one_line(example, tmp_path):
    packages = {
        "jax_grad.py": "jax",
        "train_deform_conv.py": "torch",
        "torch_dropin.py": "torch and torchvision",
        "cupy_pipeline.py": "CuPy",
    }
    result = run_without_frameworks(tmp_path, ROOT / "examples" / example)
    if example in packages:
        assert (result.returncode, result.stdout) == (2, "")
        assert re.fullmatch(rf"{example}: error: .*needs {packages[example]}.*install.*\n", result.stderr)
    else:
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("example", few(EXAMPLES, every=4))
def test_unknown_options_are_refused_in_one_line(example, tmp_path):
    result = run_without_frameworks(tmp_path, ROOT / "examples" / example, "--colour")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"{example}: error: unrecognized arguments: --colour\n"


@pytest.mark.parametrize("example", ["pyramid.py", "two_stage.py"])
def test_help_says_what_a_file_of_maps_holds(example, tmp_path):
    text = run_without_frameworks(tmp_path, ROOT / "examples" / example, "--help").stdout
    assert re.search(r"p3, p4, p5 +\(1, C, H, W\), floats", text)
    assert re.search(r"rois +\(L, 4\), floats", text)


def test_what_takes_more_than_seconds_says_so(capsys, monkeypatch):
    waited = []

    class Timer(threading.Timer):
        def __init__(self, seconds, *arguments):
            waited.append(seconds)
            super().__init__(0, *arguments)

    monkeypatch.setattr(example.threading, "Timer", Timer)
    with example.said_if_slow("Compiling"):
        time.sleep(0.5)
    assert (waited, capsys.readouterr().out) == ([3], "Compiling\n")


def test_what_takes_no_time_says_nothing(capsys):
    with example.said_if_slow("Compiling"):
        pass
    assert capsys.readouterr().out == ""
