"""examples/pyramid.py, run as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.strategies import few

ROOT = Path(__file__).parents[1]
COLOUR_OF_LEVEL = {"p3": (110, 235, 255), "p4": (140, 255, 120), "p5": (255, 150, 240)}
DATA = ROOT / "examples" / "data"
MAPS = DATA / "nanodet_fpn_astronaut_small.npz"


def run(folder, *arguments):
    command = [sys.executable, "-W", "error", ROOT / "examples" / "pyramid.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def real_maps():
    with np.load(MAPS) as archive:
        return dict(archive)


def picture(path):
    with Image.open(path) as opened:
        return opened.format, np.asarray(opened.convert("RGB"))


@pytest.mark.slow
def test_default_run(tmp_path):
    result = run(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    for level in ("p3", "p4", "p5"):
        assert level in result.stdout
    assert f"{len(real_maps()['rois'])} boxes" in result.stdout
    (path,) = tmp_path.iterdir()
    assert str(path.name) in result.stdout
    form, pixels = picture(path)
    assert form == "PNG"
    assert min(pixels.shape[:2]) >= 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50  # it shows maps, not an empty page


@pytest.mark.slow
def test_every_run_gives_the_same(tmp_path):
    results = [run(tmp_path, "--out", name) for name in ("one.png", "two.png")]
    assert [result.returncode for result in results] == [0, 0]
    np.testing.assert_array_equal(picture(tmp_path / "one.png")[1], picture(tmp_path / "two.png")[1])


@pytest.mark.slow
def test_out(tmp_path):
    result = run(tmp_path, MAPS, "--out", "maps.JPG")
    assert (result.returncode, result.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["maps.JPG"]
    assert picture(tmp_path / "maps.JPG")[0] == "JPEG"


@pytest.mark.slow
def test_maps_of_another_file(tmp_path):
    file = real_maps()
    np.savez(tmp_path / "other.npz", **{**file, "rois": file["rois"][:3]})
    result = run(tmp_path, "other.npz", "--out", "other.png")
    assert (result.returncode, result.stderr) == (0, "")
    assert "3 boxes" in result.stdout
    assert run(tmp_path, "--out", "default.png").returncode == 0
    other, default = (picture(tmp_path / f"{name}.png")[1] for name in ("other", "default"))
    assert other.shape != default.shape or (other != default).any()


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_drawn_as_weak(value, tmp_path):
    file = real_maps()
    file["p3"][:, :, 20:30] = value
    np.savez(tmp_path / "other.npz", **file)
    result = run(tmp_path, "other.npz")
    assert (result.returncode, result.stderr) == (0, "")


def expected_levels(rois):
    """The level of each box by the formula of the paper on feature pyramids (T.-Y. Lin et al., 2017)."""
    area = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
    return [f"p{level:.0f}" for level in np.clip(np.floor(4 + np.log2(np.sqrt(area) / 224) + 1e-6), 3, 5)]


@pytest.mark.slow
def test_each_box_is_drawn_on_its_level_and_in_its_colour(tmp_path):
    """Without the boxes of a level, nothing on the page has the colour of that level."""
    file = real_maps()
    large = np.array([[2, 2, 414, 414]], np.float32)  # none there is as large as the third level wants
    rois = np.concatenate([file["rois"][[0, 4, 9, 12]], large * 1.2])
    levels = expected_levels(rois)
    assert sorted(set(levels)) == ["p3", "p4", "p5"]

    def coloured(boxes):
        np.savez(tmp_path / "file.npz", **{**file, "rois": boxes})
        result = run(tmp_path, "file.npz")
        assert (result.returncode, result.stderr) == (0, "")
        said = dict(re.findall(r"^(p\d) .* cells, (\d+) boxes$", result.stdout, re.M))
        pixels = picture(tmp_path / "pyramid.png")[1]
        counts = {name: np.count_nonzero((pixels == colour).all(axis=2)) for name, colour in COLOUR_OF_LEVEL.items()}
        return {name: int(count) for name, count in said.items()}, counts

    said, all_drawn = coloured(rois)
    assert said == {name: levels.count(name) for name in ("p3", "p4", "p5")}
    for name in ("p3", "p4", "p5"):
        others = rois[[level != name for level in levels]]
        said, drawn = coloured(others)
        assert said[name] == 0
        assert drawn[name] == 0 < all_drawn[name]


@pytest.mark.slow
def test_boxes_outside_or_not_finite_have_no_level(tmp_path):
    rois = np.array([[500, 500, 600, 600], [np.nan, 1, 2, 3], [10, 10, 60, 60]], np.float32)
    np.savez(tmp_path / "file.npz", **{**real_maps(), "rois": rois})
    result = run(tmp_path, "file.npz")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.findall(r"(\d+) boxes$", result.stdout, re.M) == ["1", "0", "0"]


def test_help(tmp_path):
    result = run(tmp_path, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    assert re.search(r"A file of maps .* p3, p4, p5 \(1, C, H, W\), floats", text)
    assert re.search(r"--out OUT .*\.png or \.jpg \(default: \S+\.png\)", text)
    assert list(tmp_path.iterdir()) == []


def assert_refused(result, folder, *said):
    # A slow machine has been told that the first run compiles.
    assert (result.returncode, re.sub(r"^Compiling, .*\n", "", result.stdout)) == (2, "")
    assert re.fullmatch(r"pyramid\.py: error: .*\n", result.stderr)
    for words in said:
        assert words in result.stderr
    assert not [path for path in folder.iterdir() if path.suffix in (".png", ".jpg")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.npz"], ["missing.npz", "No such file"]),
        (["."], ["Is a directory"]),
        ([DATA / "NOTICE.md"], ["NOTICE.md"]),
        ([DATA / "ssd_coco_coffee.npz"], ["ssd_coco_coffee.npz", "lacks", "p3", "rois"]),
        (["two\nlines.npz"], ["two lines.npz"]),
        (["--out", "pyramid.npz"], ["--out", ".png or .jpg", "pyramid.npz"]),
        (["--out", "no/such/folder.png"], ["--out", "no/such/folder.png"]),
        (["--colour"], ["--colour"]),
        ([MAPS, MAPS], ["unrecognized"]),
    ],
)
def test_refused_arguments(arguments, said, tmp_path):
    assert_refused(run(tmp_path, *arguments), tmp_path, *said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("p4", None, ["lacks", "p4"]),
        ("rois", None, ["lacks", "rois"]),
        ("rois", lambda rois: rois[:, :3], ["rois"]),
        ("rois", lambda rois: rois[0], ["rois"]),
        ("rois", lambda rois: rois.astype(complex), ["rois"]),
        ("p3", lambda map: map[0, 0], ["p3"]),
        ("p3", lambda map: map.astype("U8"), ["p3"]),
        ("p5", lambda map: map[:, :5, :0], ["p5"]),
    ],
)
def test_refused_files(name, change, said, tmp_path):
    file = real_maps()
    if change is None:
        del file[name]
    else:
        file[name] = change(file[name])
    np.savez(tmp_path / "file.npz", **file)
    assert_refused(run(tmp_path, "file.npz"), tmp_path, "file.npz", *said)


@pytest.mark.parametrize("share", few([0.5, 0, 0.99], every=3))
def test_refused_damaged_file(share, tmp_path):
    content = MAPS.read_bytes()
    (tmp_path / "file.npz").write_bytes(content[: int(share * len(content))])
    assert_refused(run(tmp_path, "file.npz"), tmp_path, "file.npz")
