"""The second stage of a detector: pool the features of each box from a pyramid, with `cvops.MultiScaleRoIAlign`.

    pip install ".[demo]"
    python examples/two_stage.py
    python examples/two_stage.py my_pyramid.npz --out pooled.png

Draws each box of the first stage as it looks in the photograph and, below, as a second stage sees it: 7 x 7 bins of the
pooled features, by their norm over the channels, each box in its own range. `--help` says what a pyramid file holds,
and data/NOTICE.md where the one there comes from.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detect import ASTRONAUT, OneLineParser, picture_path, read, read_arrays, said_if_slow
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import cvops

PYRAMID = Path(__file__).parent / "data" / "nanodet_fpn_astronaut_small.npz"
LEVELS = ("p3", "p4", "p5")
SIDE = 416  # of the square picture that the detector saw
FILE_FORMAT = f"""\
A pyramid file is what numpy.savez writes, with these arrays, made from the photograph of the astronaut, which is drawn:
  p3, p4, p5  (1, C, H, W), floats: feature maps; of {SIDE} x {SIDE} pixels, 8, 16 and 32 make a cell
  rois        (L, 4), floats: boxes of the first stage, x1, y1, x2, y2 in these pixels
  roi_scores  (L,), floats: their scores
"""
TILE, GAP, COLUMNS, TITLE = 112, 10, 8, 26
# From weak to strong features: dark blue, violet, orange, light yellow.
COLOURS = np.array([(13, 8, 80), (140, 30, 130), (240, 120, 60), (250, 245, 170)], float)


class Pyramid(NamedTuple):
    """Feature maps and the boxes that a first stage found in them."""

    features: dict[str, NDArray[Any]]
    boxes: NDArray[Any]
    scores: NDArray[Any]


def main() -> None:
    parser = OneLineParser("Pool the boxes of a feature pyramid; draw their crops and pooled features.", FILE_FORMAT)
    add = parser.add_argument
    add("file", nargs="?", type=Path, default=PYRAMID, help="pyramid file, see below (default: the one in data/)")
    add(
        "--out",
        type=picture_path,
        default="two_stage.png",
        help="picture to write: .png or .jpg (default: %(default)s)",
    )
    options = parser.parse_args()

    pool = cvops.MultiScaleRoIAlign(LEVELS, output_size=7, sampling_ratio=2)
    try:
        pyramid = read_pyramid(options.file)
        with said_if_slow("Compiling, which only the first run on a machine does ..."):
            pool(pyramid.features, [pyramid.boxes], [(SIDE, SIDE)])
        start = time.perf_counter()
        pooled = pool(pyramid.features, [pyramid.boxes], [(SIDE, SIDE)])
        milliseconds = 1e3 * (time.perf_counter() - start)
        scores = pyramid.scores
        if scores.shape != (len(pooled),) or scores.dtype.kind != "f":
            raise ValueError(
                f"`roi_scores` must be floats of shape ({len(pooled)},), got {scores.dtype} {scores.shape}"
            )
    except (TypeError, ValueError) as error:
        parser.error(f"{options.file}: {error}")
    photograph = read(ASTRONAUT).picture.resize((SIDE, SIDE))
    picture = draw(photograph, pyramid, pooled)
    try:
        picture.save(options.out)
    except OSError as error:
        parser.error(f"argument --out: {options.out}: {error.strerror or error}")
    maps = ", ".join(f"{name} {array.shape[2]} x {array.shape[3]}" for name, array in pyramid.features.items())
    print(f"{len(pyramid.boxes)} boxes pooled from {maps} to {pooled.shape} in {milliseconds:.2f} ms; {options.out}")


def read_pyramid(path: Path) -> Pyramid:
    """Read a pyramid file; ValueError says what is wrong with it, save for maps and boxes, which cvops checks."""
    arrays = read_arrays(path)
    missing = [name for name in (*LEVELS, "rois", "roi_scores") if name not in arrays]
    if missing:
        raise ValueError(f"not a pyramid file, lacks {', '.join(missing)} (it holds {', '.join(arrays)})")
    return Pyramid({name: arrays[name] for name in LEVELS}, arrays["rois"], arrays["roi_scores"])


def draw(photograph: Image.Image, pyramid: Pyramid, pooled: NDArray[Any]) -> Image.Image:
    """Return a sheet of the boxes: the crop of each, and its pooled features below."""
    rows = max(1, -(-len(pyramid.boxes) // COLUMNS))
    step_x, step_y = TILE + GAP, 2 * TILE + 3 * GAP + 16
    sheet = Image.new("RGB", (COLUMNS * step_x + GAP, TITLE + rows * step_y + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    title = "Each box: its part of the photograph; below, the strength of its features, pooled to 7 x 7 (light: strong)"
    pen.text((GAP, GAP), title, fill="black", font=ImageFont.load_default(15))
    strength = np.linalg.norm(np.nan_to_num(pooled.astype(float), posinf=0, neginf=0), axis=1)  # (K, 7, 7)
    for i, (box, score) in enumerate(zip(pyramid.boxes, pyramid.scores, strict=True)):
        left, top = GAP + i % COLUMNS * step_x, TITLE + GAP + i // COLUMNS * step_y
        pen.text((left, top), f"{i + 1}: score {score:.2f}", fill="black", font=font)
        sheet.paste(crop(photograph, box), (left, top + 18))
        heat = Image.fromarray(coloured(strength[i])).resize((TILE, TILE), Image.Resampling.NEAREST)
        sheet.paste(heat, (left, top + 18 + TILE + GAP // 2))
    return sheet


def crop(photograph: Image.Image, box: NDArray[Any]) -> Image.Image:
    """Return what the box shows, stretched to a tile as the bins are; grey for a box outside, inverted or NaN."""
    x1, y1, x2, y2 = np.clip(box.astype(float), 0, SIDE)
    if not (x2 - x1 >= 1 and y2 - y1 >= 1):
        return Image.new("RGB", (TILE, TILE), "grey")
    return photograph.resize((TILE, TILE), Image.Resampling.BICUBIC, box=(x1, y1, x2, y2))


def coloured(strength: NDArray[Any]) -> NDArray[np.uint8]:
    """Return RGB pixels for numbers from the smallest to the largest."""
    stops = np.linspace(strength.min(), max(strength.max(), strength.min() + 1e-9), len(COLOURS))
    return np.stack([np.interp(strength, stops, channel) for channel in COLOURS.T], -1).astype(np.uint8)


if __name__ == "__main__":
    main()
