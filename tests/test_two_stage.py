"""examples/two_stage.py, run as a user runs it, on the pyramid that comes with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data"
PYRAMID = DATA / "nanodet_fpn_astronaut_small.npz"


def two_stage(folder, *arguments):
    command = [sys.executable, "-W", "error", ROOT / "examples" / "two_stage.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def picture(path):
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def written(folder, *arguments):
    """The one picture that a run leaves in an empty folder."""
    folder.mkdir()
    result = two_stage(folder, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    (path,) = folder.iterdir()
    assert path.name in result.stdout
    return picture(path)


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The picture of a run without arguments."""
    return written(tmp_path_factory.mktemp("default") / "run")


@pytest.mark.slow
def test_default_run(default):
    assert min(default.shape[:2]) >= 200
    assert len(np.unique(default.reshape(-1, 3), axis=0)) > 1000  # a photograph is on it


@pytest.mark.slow
def test_the_default_is_the_shipped_pyramid(default, tmp_path):
    np.testing.assert_array_equal(written(tmp_path / "run", PYRAMID), default)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p3", "p4"])
def test_the_features_are_on_the_picture(default, name, tmp_path):
    """Boxes are pooled from these two maps; the largest is too small for the third."""
    with np.load(PYRAMID) as file:
        arrays = dict(file)
    arrays[name] = arrays[name][:, :, ::-1].copy()
    np.savez(tmp_path / "other.npz", **arrays)
    other = written(tmp_path / "run", tmp_path / "other.npz")
    assert other.shape == default.shape
    assert (other != default).any()


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_drawn_as_weak(value, tmp_path):
    with np.load(PYRAMID) as file:
        arrays = dict(file)
    arrays["p3"][:, :, 20:30] = value
    np.savez(tmp_path / "other.npz", **arrays)
    written(tmp_path / "run", tmp_path / "other.npz")


@pytest.mark.slow
def test_out(tmp_path):
    result = two_stage(tmp_path, "--out", "crops.JPG")
    assert (result.returncode, result.stderr) == (0, "")
    with Image.open(tmp_path / "crops.JPG") as opened:
        assert opened.format == "JPEG"
    assert [path.name for path in tmp_path.iterdir()] == ["crops.JPG"]


def test_help_explains_every_option(tmp_path):
    result = two_stage(tmp_path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    assert re.search(r"--out OUT .*\.png or \.jpg \(default: ", text)
    for option in re.findall(r" (--[a-z-]+) [A-Z]", text.partition("options:")[2]):
        assert re.search(rf"{option} [A-Z_]+ \w.*default", text)


def assert_refused(result, message):
    # A slow machine has been told that the first run compiles.
    assert (result.returncode, re.sub(r"^Compiling, .*\n", "", result.stdout)) == (2, "")
    assert re.fullmatch(r"two_stage\.py: error: .*\n", result.stderr)
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "picture.npz"], "argument --out: must end in .png or .jpg, got 'picture.npz'"),
        (["--out", "no/such/folder.png"], "argument --out: no/such/folder.png: No such file or directory"),
        pytest.param(["--colour"], "unrecognized arguments: --colour", marks=pytest.mark.slow),
        pytest.param(["missing.npz"], "missing.npz: No such file or directory", marks=pytest.mark.slow),
        ([DATA / "NOTICE.md"], "NOTICE.md: not an .npz file of plain arrays, or a damaged one"),
        ([DATA / "ssd_coco_astronaut.npz"], "ssd_coco_astronaut.npz: "),
    ],
)
def test_refused_arguments(arguments, message, tmp_path):
    assert_refused(two_stage(tmp_path, *arguments), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rois", None, "rois"),
        ("p4", None, "p4"),
        ("rois", np.ones((3, 5), np.float32), "must have shape (L, 4), got (3, 5)"),
        ("rois", np.ones((3, 4), int), "must be"),
        ("p3", np.ones((16, 52, 52), np.float32), "must have shape (N, C, H, W)"),
        ("p3", np.ones((1, 15, 52, 52), np.float32), "p3"),
        ("p5", np.ones((1, 16, 13, 13)), "p5"),
        ("roi_scores", np.ones(3, np.float32), "`roi_scores` must be floats of shape (24,), got float32 (3,)"),
        ("roi_scores", np.full(24, "high"), "`roi_scores` must be floats of shape (24,), got <U4 (24,)"),
        ("roi_scores", np.full(24, 1j), "`roi_scores` must be floats of shape (24,), got complex128 (24,)"),
        ("p3", np.array([None]), "not an .npz file of plain arrays, or a damaged one"),
    ],
)
def test_refused_arrays(name, value, message, tmp_path):
    with np.load(PYRAMID) as file:
        arrays = dict(file)
    arrays[name] = value
    np.savez(tmp_path / "small.npz", **{name: array for name, array in arrays.items() if array is not None})
    assert_refused(two_stage(tmp_path, "small.npz"), message)
    assert [path.name for path in tmp_path.iterdir()] == ["small.npz"]


def test_refused_damaged_file(tmp_path):
    content = PYRAMID.read_bytes()
    (tmp_path / "file.npz").write_bytes(content[: len(content) // 2])
    assert_refused(two_stage(tmp_path, "file.npz"), "file.npz: not an .npz file of plain arrays, or a damaged one")
