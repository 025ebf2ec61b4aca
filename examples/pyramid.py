"""From feature maps of three scales to a pyramid, and from the pyramid to one small patch for each detected box.

    pip install ".[demo]"
    python examples/pyramid.py
    python examples/pyramid.py maps.npz --out maps.png

The network's weights are made by hand, so that the picture can be understood: each level takes over the coarser ones
and is smoothed. data/NOTICE.md says what a file of maps holds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from detect import OneLineParser, picture_path, read_arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import cvops

ASTRONAUT = Path(__file__).parent / "data" / "nanodet_fpn_astronaut_small.npz"
LEVELS = {"p3": 8, "p4": 16, "p5": 32}  # name of a map -> image pixels per cell
PANEL = 312  # pixels of a side of a map in the picture
PATCH = 68  # of a pooled box
GAP = 12
# From low to high: the colours of the heat maps.
COLOURS = np.array([[13, 8, 60], [84, 22, 120], [190, 55, 85], [245, 140, 40], [252, 253, 190]], np.float64)

Array = NDArray[Any]


def main() -> None:
    parser = OneLineParser(description="Build a feature pyramid, pool boxes from it, and draw both.")
    add = parser.add_argument
    add("file", nargs="?", type=Path, default=ASTRONAUT, help="file of maps (.npz; default: the astronaut in data/)")
    add("--out", type=picture_path, default="pyramid.png", help="picture to write: .png or .jpg (default: %(default)s)")
    options = parser.parse_args()

    try:
        maps, rois = read(options.file)
        build_and_pool(maps, rois)  # the first call compiles
        start = time.perf_counter()
        pyramid, pooled = build_and_pool(maps, rois)
        milliseconds = 1e3 * (time.perf_counter() - start)
    except (TypeError, ValueError) as error:
        parser.error(f"{options.file}: {error}")
    try:
        draw(maps, pyramid, rois, pooled).save(options.out)
    except OSError as error:
        parser.error(f"argument --out: {options.out}: {error.strerror or error}")

    for name, level in pyramid.items():
        print(f"{name:5}{level.shape[1]} channels of {level.shape[2]} x {level.shape[3]} cells")
    size = " x ".join(map(str, pooled.shape[1:]))
    print(f"\n{len(rois)} boxes, {size} each; pyramid and boxes in {milliseconds:.2f} ms; picture: {options.out}")


def read(path: Path) -> tuple[dict[str, Array], Array]:
    """Read maps and boxes; ValueError says what is wrong with them, save for what cvops checks."""
    arrays = read_arrays(path)
    missing = [name for name in (*LEVELS, "rois") if name not in arrays]
    if missing:
        raise ValueError(f"not a file of maps, lacks {', '.join(missing)} (it holds {', '.join(arrays)})")
    maps, rois = {name: arrays[name] for name in LEVELS}, arrays["rois"]
    for name, array in maps.items():
        if array.ndim != 4 or array.shape[:2] != (1, maps["p3"].shape[1]) or 0 in array.shape:
            raise ValueError(f"`{name}` must have shape (1, C, H, W), C as in `p3`, got {array.shape}")
    if rois.ndim != 2 or rois.shape[1] != 4 or rois.dtype.kind != "f":
        raise ValueError(f"`rois` must be floats of shape (L, 4), got {rois.dtype} {rois.shape}")
    return maps, rois


def build_and_pool(maps: dict[str, Array], rois: Array) -> tuple[dict[str, Array], Array]:
    """Return the pyramid of the maps, and the boxes, each pooled from the level that suits its size."""
    channels = maps["p3"].shape[1]
    network = cvops.FeaturePyramidNetwork([channels] * len(maps), channels)
    network.load_state_dict(smoothing(network.state_dict()))
    pyramid = network(maps)
    pool = cvops.MultiScaleRoIAlign(list(LEVELS), 7, sampling_ratio=2, scales=[1 / cell for cell in LEVELS.values()])
    return pyramid, pool(pyramid, [rois], [])


def smoothing(parameters: dict[str, Array]) -> dict[str, Array]:
    """Return weights of the same names and shapes under which each channel is averaged with its neighbours."""
    for array in parameters.values():
        array[:] = 0
        if array.ndim == 4:
            same = np.arange(len(array))
            array[same, same] = 1 / array[0, 0].size
    return parameters


def draw(maps: dict[str, Array], pyramid: dict[str, Array], rois: Array, pooled: Array) -> Image.Image:
    """Return one page: the maps, under them the pyramid with the boxes, under it the pooled boxes."""
    columns = (len(maps) * (PANEL + GAP) - GAP) // (PATCH + GAP)
    rows = -(-len(rois) // columns)
    title = 22
    width = len(maps) * (PANEL + GAP) + GAP
    page = Image.new("RGB", (width, 3 * title + 2 * (PANEL + GAP) + rows * (PATCH + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    top = GAP
    for text, levels, boxes in (("maps", maps, rois[:0]), ("pyramid, with the boxes", pyramid, rois)):
        pen.text((GAP, top - 4), text, fill="black", font=font)
        top += title - GAP // 2
        for column, (name, cell) in enumerate(LEVELS.items()):
            left = GAP + column * (PANEL + GAP)
            panel = heat(levels[name][0], PANEL)
            outline(panel, boxes * (PANEL / (cell * levels[name].shape[2])))
            page.paste(panel, (left, top))
            pen.text((left + 6, top + 4), name, fill="white", font=font)
        top += PANEL + GAP
    pen.text((GAP, top - 4), "each box, pooled", fill="black", font=font)
    top += title - GAP // 2
    for k, patch in enumerate(pooled):
        corner = GAP + k % columns * (PATCH + GAP), top + k // columns * (PATCH + GAP)
        page.paste(heat(patch, PATCH), corner)
    return page


def heat(features: Array, side: int) -> Image.Image:
    """Return the strength of the features in each cell, as a square picture in colour."""
    strength = np.sqrt(np.mean(np.square(np.nan_to_num(features.astype(np.float64))), axis=0))
    strength = (strength - strength.min()) / max(float(np.ptp(strength)), 1e-12) * (len(COLOURS) - 1)
    scale = np.arange(len(COLOURS))
    pixels = np.stack([np.interp(strength, scale, channel) for channel in COLOURS.T], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)


def outline(panel: Image.Image, boxes: Array) -> None:
    pen = ImageDraw.Draw(panel)
    for x1, y1, x2, y2 in np.clip(np.nan_to_num(boxes), 0, PANEL - 1):
        if x1 < x2 and y1 < y2:
            pen.rectangle((x1, y1, x2, y2), outline="white")


if __name__ == "__main__":
    main()
